// Routing by agreement, run by the reader: votes come from a network, what becomes of them is computed here.

const squashed = (square) => Math.sqrt(square) / (1 + square); // |squash(s)| / |s|

function softmax(logits, n, classes, axis, temperature) {
  const c = new Float64Array(n * classes);
  const [outer, inner, far, near] =
    axis === "higher" ? [n, classes, classes, 1] : [classes, n, 1, classes];
  for (let o = 0; o < outer; o++) {
    let most = -Infinity,
      total = 0;
    for (let k = 0; k < inner; k++) most = Math.max(most, logits[o * far + k * near] / temperature);
    for (let k = 0; k < inner; k++)
      total += c[o * far + k * near] = Math.exp(logits[o * far + k * near] / temperature - most);
    for (let k = 0; k < inner; k++) c[o * far + k * near] /= total;
  }
  return c;
}

// Dynamic routing (Eqn 1 of the paper's Sec. 2.1). votes: [lower, class, dim]; lengths after each iteration.
function dynamic(votes, n, classes, dim, { iterations, temperature, axis }) {
  const logits = new Float64Array(n * classes),
    lengths = [];
  let c, v;
  for (let step = 0; step < iterations; step++) {
    c = softmax(logits, n, classes, axis, temperature);
    v = new Float64Array(classes * dim);
    for (let i = 0; i < n; i++)
      for (let j = 0; j < classes; j++) {
        const weight = c[i * classes + j],
          from = (i * classes + j) * dim;
        for (let e = 0; e < dim; e++) v[j * dim + e] += weight * votes[from + e];
      }
    for (let j = 0; j < classes; j++) {
      let square = 0;
      for (let e = 0; e < dim; e++) square += v[j * dim + e] ** 2;
      for (let e = 0; e < dim; e++) v[j * dim + e] *= squashed(square);
    }
    lengths.push(
      Array.from({ length: classes }, (_, j) => Math.hypot(...v.subarray(j * dim, (j + 1) * dim))),
    );
    for (let i = 0; i < n; i++)
      for (let j = 0; j < classes; j++) {
        const from = (i * classes + j) * dim;
        let along = 0;
        for (let e = 0; e < dim; e++) along += votes[from + e] * v[j * dim + e];
        logits[i * classes + j] += along;
      }
  }
  return { coefficients: c, capsules: v, lengths };
}

// EM routing (Eqns 2 and 3), in log space; its activations take the place of lengths.
function em(votes, n, classes, dim, { iterations, temperature, active, betaU, betaA }) {
  let r = new Float64Array(n * classes).fill(1 / classes),
    mean;
  const lengths = [],
    share = n / classes;
  for (let step = 0; step < iterations; step++) {
    const variance = new Float64Array(classes * dim),
      mass = new Float64Array(classes),
      logActive = new Float64Array(classes);
    mean = new Float64Array(classes * dim);
    for (let i = 0; i < n; i++)
      for (let j = 0; j < classes; j++) {
        const weight = r[i * classes + j] * active[i],
          from = (i * classes + j) * dim;
        mass[j] += weight;
        for (let e = 0; e < dim; e++) mean[j * dim + e] += weight * votes[from + e];
      }
    for (let k = 0; k < mean.length; k++) mean[k] /= mass[Math.floor(k / dim)] + 1e-8;
    for (let i = 0; i < n; i++)
      for (let j = 0; j < classes; j++) {
        const weight = r[i * classes + j] * active[i],
          from = (i * classes + j) * dim;
        for (let e = 0; e < dim; e++)
          variance[j * dim + e] += weight * (votes[from + e] - mean[j * dim + e]) ** 2;
      }
    for (let j = 0; j < classes; j++) {
      let spread = 0;
      for (let e = 0; e < dim; e++)
        spread += Math.log(
          (variance[j * dim + e] = variance[j * dim + e] / (mass[j] + 1e-8) + 1e-4),
        );
      const x =
        ((1 - 0.95 ** (step + 1)) / temperature) *
        (betaA[j] - ((betaU[j] * dim + 0.5 * spread) * mass[j]) / share);
      logActive[j] = Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));
    }
    lengths.push(Array.from(logActive, Math.exp));
    if (step + 1 === iterations) break;
    const fit = new Float64Array(n * classes);
    for (let i = 0; i < n; i++)
      for (let j = 0; j < classes; j++) {
        let distance = 0;
        const from = (i * classes + j) * dim;
        for (let e = 0; e < dim; e++)
          distance +=
            (votes[from + e] - mean[j * dim + e]) ** 2 / variance[j * dim + e] +
            Math.log(variance[j * dim + e]);
        fit[i * classes + j] = logActive[j] - 0.5 * distance;
      }
    r = softmax(fit, n, classes, "higher", 1);
  }
  return { coefficients: r, capsules: mean, lengths };
}

// Cosine and length of every vote for one class, and Figure 2's histogram of them.
function agreement(votes, n, classes, dim, chosen, capsules) {
  const v = capsules.subarray(chosen * dim, (chosen + 1) * dim),
    size = Math.hypot(...v);
  const share = new Float64Array(20),
    length = new Float64Array(20);
  let square = 0;
  for (let i = 0; i < n; i++) {
    const from = (i * classes + chosen) * dim;
    let along = 0,
      own = 0;
    for (let e = 0; e < dim; e++) {
      along += votes[from + e] * v[e];
      own += votes[from + e] ** 2;
    }
    own = Math.sqrt(own);
    const cosine = own * size > 0 ? Math.min(Math.max(along / (own * size), -1), 1) : 0;
    const bin = Math.min(Math.floor((cosine + 1) * 10), 19);
    share[bin] += 1 / n;
    length[bin] += own;
    square += cosine ** 2 / n;
  }
  for (let k = 0; k < 20; k++) length[k] = share[k] ? length[k] / (share[k] * n) : 0;
  return { share, length, polarisation: (square - 1 / dim) / (1 - 1 / dim) };
}

function draw(model, element) {
  const state = { entry: 0, chosen: 0, iterations: 3, temperature: 1, axis: "higher" };
  let entry, votes, more;

  const controls = node("div", { class: "row", role: "group", "aria-label": "Routing" });
  const picture = pixels("The image", 128),
    couplings = pixels("Coefficients of the chosen class over the lower capsules", 270);
  const couplingScale = node("div"),
    lengths = node("div"),
    histogram = node("div"),
    pose = node("div"),
    said = node("p", { class: "said", "aria-live": "polite" });
  const couplingTitle = node("h3");
  element.append(
    controls,
    node(
      "div",
      { class: "row" },
      panel("Image", picture),
      node("section", { class: "panel" }, couplingTitle, couplings, couplingScale),
      panel("Votes for the chosen class (Fig. 2)", histogram),
      panel("Class capsules", lengths),
      panel("The chosen capsule", pose),
    ),
    said,
  );

  const again = gently(paint);

  function load() {
    const data = model.get("data");
    entry = data.entries ? data.entries[state.entry] : data;
    votes = numbers(entry.votes);
    more =
      entry.kind === "em"
        ? {
            active: numbers(entry.activation),
            betaU: numbers(entry.beta_u),
            betaA: numbers(entry.beta_a),
          }
        : {};
    const [channels, height, width] = entry.image.shape;
    image(picture, numbers(entry.image), channels, height, width);
  }

  function offer() {
    // the controls: those of the page first, if it has no kernel to choose for it
    const data = model.get("data"),
      parts = [];
    if (data.entries) {
      const named = (name) => [...new Set(data.entries.map((one) => one[name]))];
      const go = (name, value) => {
        const wanted = {
          network: entry.network,
          picture: entry.picture,
          turn: entry.turn,
          [name]: value,
        };
        const fits = (one, names) =>
          names.every((each) => String(one[each]) === String(wanted[each]));
        let found = data.entries.findIndex((one) => fits(one, ["network", "picture", "turn"]));
        if (found < 0)
          found = data.entries.findIndex(
            (one) =>
              fits(one, name === "turn" ? ["picture", "turn"] : ["network", name]) ||
              fits(one, [name]),
          );
        if (found >= 0) {
          state.entry = found;
          fresh(false);
        }
      };
      parts.push(
        choice({
          label: "Network",
          options: named("network").map((one) => [one, one]),
          value: entry.network,
          change: (v) => go("network", v),
        }),
        choice({
          label: "Image",
          options: named("picture").map((one) => [one, one]),
          value: entry.picture,
          change: (v) => go("picture", v),
        }),
      );
      const turns = data.entries
        .filter((one) => one.network === entry.network && one.picture === entry.picture)
        .map((one) => one.turn)
        .sort((a, b) => a - b);
      if (turns.length > 1)
        parts.push(
          slider({
            label: "Rotation",
            low: 0,
            high: turns.length - 1,
            value: turns.indexOf(entry.turn),
            show: (k) => `${turns[k]}°`,
            input: (k) => go("turn", turns[k]),
          }),
        );
    }
    const set = (name) => (value) => {
      state[name] = value;
      again();
    };
    parts.push(
      choice({
        label: "Class",
        options: entry.names.map((name, k) => [k, k === entry.label ? `${name} (true)` : name]),
        value: state.chosen,
        change: (v) => set("chosen")(Number(v)),
      }),
      slider({
        label: "Iterations R",
        low: 1,
        high: 10,
        value: state.iterations,
        input: set("iterations"),
      }),
      slider({
        label: "Temperature",
        low: -1,
        high: 1,
        step: 0.05,
        value: Math.log10(state.temperature),
        show: (v) => brief(10 ** v),
        input: (v) => set("temperature")(10 ** v),
      }),
    );
    if (entry.kind !== "em")
      parts.push(
        choice({
          label: "Softmax over",
          options: [
            ["higher", "higher capsules"],
            ["lower", "lower capsules"],
          ],
          value: state.axis,
          change: set("axis"),
        }),
      );
    const focused =
      document.activeElement && controls.contains(document.activeElement)
        ? document.activeElement.getAttribute("aria-label")
        : null;
    controls.replaceChildren(...parts);
    if (focused) controls.querySelector(`[aria-label="${focused}"]`)?.focus();
  }

  function paint() {
    const began = performance.now(),
      [n, classes, dim] = entry.votes.shape;
    const found = (entry.kind === "em" ? em : dynamic)(votes, n, classes, dim, {
      ...state,
      ...more,
    });
    const { chosen } = state,
      now = found.lengths[found.lengths.length - 1],
      agreed = agreement(votes, n, classes, dim, chosen, found.capsules);
    const side = Math.round(Math.sqrt(n / entry.groups)),
      map = Float64Array.from({ length: n }, (_, i) => found.coefficients[i * classes + chosen]);
    let least = Infinity;
    for (const value of map) least = Math.min(least, value);
    const [low, high] = tiles(couplings, map, entry.groups, side, side, {
      low: least,
      across: entry.groups <= 4 ? 2 : entry.groups <= 9 ? 3 : 8,
    });
    couplingTitle.textContent =
      `Coefficients c of class ${entry.names[chosen]}: ` +
      `${entry.groups} channels of ${side} × ${side}`;
    couplingScale.replaceChildren(scale(CIVIDIS, low, high, "c"));

    const top = Math.max(...agreed.share) * 108,
      longest = Math.max(...agreed.length) * 1.1 || 1;
    const bars = chart({
      label: "Share of lower capsules and mean vote length by cosine",
      x: { low: -1, high: 1, title: "cosine of vote and capsule" },
      y: { low: 0, high: top, title: "lower capsules (%)" },
      right: { low: 0, high: longest, title: "mean |V|" },
    });
    agreed.share.forEach((value, k) =>
      bars.bar(-0.95 + 0.1 * k, 100 * value, 0.09, { fill: "#949494" }),
    );
    bars.line(
      [...agreed.length].map((value, k) => [-0.95 + 0.1 * k, agreed.share[k] ? value : NaN]),
      { stroke: INK[0] },
      true,
    );
    histogram.replaceChildren(
      bars,
      key(["#949494", "share of lower capsules"], [INK[0], "mean length of their votes"]),
    );

    const tall = chart({
      label: "Length of every class capsule",
      x: { low: -0.6, high: classes - 0.4, title: "class", names: entry.names },
      y: {
        low: 0,
        high: Math.max(...now, 1e-3) * 1.08,
        title: entry.kind === "em" ? "activation a" : "length |v|",
      },
      width: 340,
    });
    now.forEach((value, j) =>
      tall.bar(j, value, 0.8, {
        fill: j === entry.label ? INK[1] : INK[0],
        "fill-opacity": j === chosen ? 1 : 0.55,
      }),
    );
    lengths.replaceChildren(tall, key([INK[1], "true class"], [INK[0], "the others"]));
    showPose(found.capsules.subarray(chosen * dim, (chosen + 1) * dim), dim);

    const winner = now.indexOf(Math.max(...now));
    said.textContent =
      `After ${state.iterations} iteration${state.iterations > 1 ? "s" : ""} the network answers ` +
      `${entry.names[winner]} (${brief(now[winner])}); the votes for ${entry.names[chosen]} ` +
      `have polarisation ${agreed.polarisation.toFixed(3)}.`;
    tell(element, {
      lengths: now,
      polarisation: agreed.polarisation,
      share: [...agreed.share],
      chosen,
      iterations: state.iterations,
      kind: entry.kind,
      title: entry.network,
      milliseconds: performance.now() - began,
    });
  }

  function showPose(v, dim) {
    const before = entry.before
      ? numbers(entry.before).subarray(state.chosen * dim, (state.chosen + 1) * dim)
      : null;
    const most = Math.max(...[...v, ...(before || [])].map(Math.abs), 1e-6) * 1.1;
    const bars = chart({
      label: "Components of the chosen capsule",
      x: { low: -0.6, high: dim - 0.4, title: "component" },
      y: { low: -most, high: most, title: entry.kind === "em" ? "mean μ" : "capsule v" },
      width: 340,
    });
    v.forEach((value, e) => bars.bar(e, value, 0.75, { fill: INK[0] }));
    const parts = [bars];
    if (before) {
      before.forEach((value, e) =>
        bars.dot(e, value, { fill: "none", stroke: "currentColor", r: 3 }),
      );
      const a = Math.hypot(...v),
        b = Math.hypot(...before);
      const cosine = a * b ? v.reduce((sum, value, e) => sum + value * before[e], 0) / (a * b) : 0;
      parts.push(
        key(
          [INK[0], "now"],
          ["transparent; border: 1px solid; border-radius: 50%", "of the image unmoved"],
        ),
      );
      if (entry.moved) {
        const angle = (Math.acos(Math.min(Math.max(cosine, -1), 1)) * 180) / Math.PI;
        const words = `turned by ${brief(angle)}°, ${brief(b ? a / b : 0)} times as long`;
        parts.push(node("p", { class: "said" }, words));
      }
    }
    const curve = entry.equivariance || model.get("data").equivariance?.[entry.network];
    if (curve) {
      const lines = chart({
        label: "Equivariance index over rotation",
        height: 190,
        width: 340,
        x: {
          low: curve.turns[0],
          high: curve.turns[curve.turns.length - 1],
          title: "rotation (degrees)",
        },
        y: {
          low: Math.max(-1, Math.min(0, ...curve.index, ...curve.unmoved)),
          high: 1,
          title: "held-out R² within classes",
        },
      });
      lines.line(
        curve.turns.map((turn, k) => [turn, curve.index[k]]),
        { stroke: INK[0] },
      );
      lines.line(
        curve.turns.map((turn, k) => [turn, curve.unmoved[k]]),
        { stroke: INK[1], "stroke-dasharray": "5 3" },
      );
      lines.rule(entry.turn || 0, true, { stroke: "currentColor", "stroke-opacity": 0.5 });
      parts.push(
        node("h3", {}, "Equivariance index"),
        lines,
        key([INK[0], "one linear map per rotation"], [INK[1], "capsule as if unmoved"]),
      );
    }
    pose.replaceChildren(...parts);
  }

  function fresh(begin) {
    load();
    if (begin) {
      state.iterations = entry.iterations;
      state.axis = entry.normalize || "higher";
      state.chosen = entry.label;
    }
    offer();
    paint();
  }

  let last = null; // a new image keeps what the reader set; a new network begins with its own settings
  function arrive() {
    const data = model.get("data");
    if (!data.entries && !data.votes) return;
    const name = data.entries ? "page" : data.network,
      label = data.label;
    const begin = name !== last?.name || label !== last?.label;
    const kept = { ...state };
    fresh(begin);
    if (begin && last && name === last.name) {
      Object.assign(state, {
        iterations: kept.iterations,
        axis: kept.axis,
        temperature: kept.temperature,
      });
      fresh(false);
    }
    last = { name, label };
  }
  model.on("change:data", arrive);
  arrive();
}
