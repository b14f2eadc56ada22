// Optimal transport between two batches: costs come from a network, the plan is found here, again for
// every touch of a slider.

const MOST = 200; // iterations that can be looked at

// Log-domain Sinkhorn on one n x n cost, each iteration a (columns), then b (rows); g and f are their
// logarithms in units of the marginal 1/n.
// Returns the plan after so many iterations, and how far off the column sums are after each of
// `watched` (rows are exact).
function sinkhorn(cost, n, eps, iterations, watched = 0) {
  const kernel = Float64Array.from(cost, (q) => -q / eps),
    f = new Float64Array(n),
    g = new Float64Array(n),
    errors = [];
  let plan;
  for (let step = 0; step < Math.max(iterations, watched + 1); step++) {
    let off = 0;
    for (let j = 0; j < n; j++) {
      let top = -Infinity,
        sum = 0;
      for (let i = 0; i < n; i++) top = Math.max(top, kernel[i * n + j] + f[i]);
      for (let i = 0; i < n; i++) sum += Math.exp(kernel[i * n + j] + f[i] - top);
      const next = -Math.log(n * sum) - top;
      // what the column summed to before: n P_.j = exp(g - next)
      off = Math.max(off, Math.abs(Math.expm1(g[j] - next)));
      g[j] = next;
    }
    if (step > 0 && step <= watched) errors.push(off);
    for (let i = 0; i < n; i++) {
      let top = -Infinity,
        sum = 0;
      for (let j = 0; j < n; j++) top = Math.max(top, kernel[i * n + j] + g[j]);
      for (let j = 0; j < n; j++) sum += Math.exp(kernel[i * n + j] + g[j] - top);
      f[i] = -Math.log(n * sum) - top;
    }
    if (step + 1 === iterations)
      plan = kernel.map((k, at) => Math.exp(k + f[Math.floor(at / n)] + g[at % n]));
  }
  return { plan, errors };
}

const settled = (value) => (Math.abs(value) < 1e-9 ? 0 : value); // what rounding leaves of a difference
function price(plan, cost) {
  return plan.reduce((sum, share, at) => sum + share * cost[at], 0);
}

function draw(model, element) {
  const state = { entry: 0, cost: "cosine", eps: 1, iterations: 10 };
  let data, entry, n, costs;

  const controls = node("div", { class: "row", role: "group", "aria-label": "Transport" });
  const costPicture = pixels("Cost of carrying each sample to each", 204),
    planPicture = pixels("Plan: how much of each sample goes to each", 204);
  const costScale = node("div"),
    planScale = node("div"),
    convergence = node("div"),
    limits = node("div");
  const broad = (title, ...children) => {
    const made = panel(title, ...children);
    made.style.maxWidth = "380px";
    return made;
  };
  const about = node("p", { class: "said" }),
    said = node("p", { class: "said", "aria-live": "polite" });
  const points = broad("The plan: of each row its three strongest lines");
  element.append(
    controls,
    about,
    node(
      "div",
      { class: "row" },
      panel("Cost Q: row to column", costPicture, costScale),
      panel("Plan: shares of a row", planPicture, planScale),
      points,
      broad("Marginals: how far off", convergence),
      broad("Divergence over blur", limits),
    ),
    said,
  );

  const again = gently(paint);

  function load() {
    entry = data.entries[state.entry];
    n = entry.samples;
    costs = {};
    for (const [name, one] of Object.entries(entry.costs)) {
      const values = numbers(one.matrices);
      costs[name] = [0, 1, 2].map((k) => values.subarray(k * n * n, (k + 1) * n * n));
    }
    about.textContent = entry.about;
    points.hidden = !entry.points;
  }

  function offer() {
    const options = data.entries.map((one, k) => [k, one.title]);
    controls.replaceChildren(
      choice({
        label: "Batches",
        options,
        value: state.entry,
        change: (k) => {
          state.entry = Number(k);
          load();
          again();
        },
      }),
      choice({
        label: "Ground cost",
        options: [
          ["cosine", "1 − cosine"],
          ["l2", "Euclidean distance"],
        ],
        value: state.cost,
        change: (name) => {
          state.cost = name;
          again();
        },
      }),
      slider({
        label: "Blur ε",
        low: -3,
        high: 2,
        step: 0.05,
        value: Math.log10(state.eps),
        show: (v) => brief(10 ** v),
        input: (v) => {
          state.eps = 10 ** v;
          again();
        },
      }),
      slider({
        label: "Iterations L",
        low: 1,
        high: MOST,
        value: state.iterations,
        input: (v) => {
          state.iterations = v;
          again();
        },
      }),
    );
  }

  function paint() {
    const began = performance.now(),
      { eps, iterations, cost } = state,
      [between, first, second] = costs[cost],
      known = entry.costs[cost];
    const { plan, errors } = sinkhorn(between, n, eps, iterations, MOST);
    const loss = price(plan, between);
    const divergence = settled(
      2 * loss -
        price(sinkhorn(first, n, eps, iterations).plan, first) -
        price(sinkhorn(second, n, eps, iterations).plan, second),
    );
    const shares = plan.map((share) => n * share);
    costScale.replaceChildren(
      scale(CIVIDIS, ...tiles(costPicture, between, 1, n, n, { across: 1 }), "Q"),
    );
    planScale.replaceChildren(
      scale(CIVIDIS, ...tiles(planPicture, shares, 1, n, n, { across: 1 }), "n P"),
    );
    showErrors(errors);
    showLimits(known, divergence);
    if (entry.points) showPoints(shares);

    const kept = entry.partner.reduce((sum, j, i) => sum + plan[i * n + j], 0),
      error = errors[iterations - 1];
    const percent = 100 * error;
    said.textContent =
      `At ε = ${brief(eps)} and L = ${iterations}, column sums are off by up to ` +
      `${percent < 0.1 ? brief(percent) : percent.toFixed(1)} %; the divergence is ` +
      `${brief(divergence)}. Optimal transport (ε → 0) would make it ` +
      `${brief(settled(known.transport))}, an even plan (ε → ∞) ${brief(settled(known.uniform))}. ` +
      `${(100 * kept).toFixed(1)} % of the mass goes to samples' own partners; ` +
      `chance would send ${(100 / n).toFixed(1)} %.`;
    tell(element, {
      title: entry.title,
      cost,
      eps,
      iterations,
      loss,
      divergence,
      error,
      plan: [...plan],
      kept,
      transport: known.transport,
      uniform: known.uniform,
      curve: known.divergence.length,
      milliseconds: performance.now() - began,
    });
  }

  function showErrors(errors) {
    const floor = 1e-8,
      least = Math.max(Math.min(...errors), floor),
      most = Math.max(...errors, 1e-6);
    const low = 10 ** Math.floor(Math.log10(least)),
      high = 10 ** Math.ceil(Math.log10(most) + 1e-9);
    const lines = chart({
      label: "Largest error of a column sum over iterations, logarithmic",
      x: { low: 1, high: MOST, title: "iterations L" },
      y: { low, high: Math.max(high, 10 * low), title: "marginal error", log: true },
    });
    lines.line(
      errors.map((error, k) => [k + 1, Math.max(error, floor)]),
      { stroke: INK[0] },
    );
    lines.rule(state.iterations, true, { stroke: "currentColor", "stroke-opacity": 0.4 });
    lines.dot(state.iterations, Math.max(errors[state.iterations - 1], floor), { fill: INK[3] });
    convergence.replaceChildren(
      lines,
      key([INK[0], "as a share of 1/n; drawn down to 10⁻⁸"], [INK[3], `L = ${state.iterations}`]),
    );
  }

  function showLimits(known, divergence) {
    const all = [...known.divergence, known.transport, known.uniform, divergence],
      least = settled(Math.min(0, ...all)),
      top = Math.max(...all),
      most = top - least < 1e-4 ? least + 1 : top;
    const lines = chart({
      label: "Sinkhorn divergence over blur, between optimal transport and the mean over all pairs",
      x: { low: 1e-3, high: 100, title: "blur ε", log: true },
      y: { low: least, high: most + 0.08 * (most - least), title: "divergence" },
    });
    lines.rule(known.transport, false, {
      stroke: INK[2],
      "stroke-width": 1.5,
      "stroke-dasharray": "6 3",
    });
    lines.rule(known.uniform, false, {
      stroke: INK[1],
      "stroke-width": 1.5,
      "stroke-dasharray": "2 3",
    });
    lines.line(
      known.divergence.map((y, k) => [data.eps[k], y]),
      { stroke: INK[0] },
    );
    lines.dot(state.eps, divergence, { fill: INK[3] });
    limits.replaceChildren(
      lines,
      key(
        [INK[0], "at convergence"],
        [INK[3], `at L = ${state.iterations}`],
        [INK[2], "optimal transport"],
        [INK[1], "uniform plan (MMD-like)"],
      ),
    );
  }

  function showPoints(shares) {
    const where = numbers(entry.points),
      [, , two] = entry.points.shape,
      at = (k) => [where[two * k], where[two * k + 1]];
    const span = (axis) => {
      const values = Array.from({ length: 2 * n }, (_, k) => at(k)[axis]),
        low = Math.min(...values),
        high = Math.max(...values);
      return {
        low: low - 0.08 * (high - low),
        high: high + 0.08 * (high - low),
        title: axis ? "second feature" : "first feature",
      };
    };
    const field = chart({
      label: "Samples of both batches and the strongest lines of the plan",
      x: span(0),
      y: span(1),
      height: 300,
    });
    const order = [...shares.keys()].sort((a, b) => shares[a] - shares[b]),
      left = new Int32Array(n).fill(n);
    for (const k of order) {
      // weak lines first, so that strong ones lie on top
      if (left[Math.floor(k / n)]-- > 3) continue;
      field.line([at(Math.floor(k / n)), at(n + (k % n))], {
        stroke: "currentColor",
        "stroke-width": 1.2,
        "stroke-opacity": Math.min(0.06 + 0.74 * shares[k], 0.8).toFixed(3),
      });
    }
    for (let k = 0; k < 2 * n; k++)
      field.dot(
        ...at(k),
        k < n ? { fill: INK[0] } : { fill: "none", stroke: INK[1], "stroke-width": 2, r: 5.5 },
      );
    points.replaceChildren(
      points.firstChild,
      field,
      key([INK[0], "first batch (rows)"], [INK[1], "second batch (columns)"]),
    );
  }

  function arrive() {
    data = model.get("data");
    if (!data.entries || !data.entries.length) return;
    state.entry = Math.min(state.entry, data.entries.length - 1);
    load();
    offer();
    paint();
    askForCurves();
  }

  // they take the kernel a second or two, and the first picture needs none
  function askForCurves() {
    const [first] = data.entries;
    if (first.costs.cosine.divergence.length) return;
    model.set("asked", first.title);
    model.save_changes();
  }
  model.on("change:data", arrive);
  arrive();
}
