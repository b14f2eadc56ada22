// What a capConv makes of an image, layer by layer: two branches, the coefficients that weigh them, and
// the sum. All layers come at once.

const LINES = { master: INK[0], aide: INK[1] };

// Of one layer: mean |m1| and |m2| over capsules and positions, and how much of what is added comes from the aide.
function mixture({ master, aide, m1, m2 }) {
  if (!aide) return { m1: NaN, m2: NaN, share: 0 };
  let first = 0,
    second = 0,
    own = 0,
    other = 0;
  for (let k = 0; k < m1.length; k++) {
    const a = Math.abs(m1[k]),
      b = Math.abs(m2[k]);
    first += a;
    second += b;
    own += a * master[k];
    other += b * aide[k];
  }
  return {
    m1: first / m1.length,
    m2: second / m2.length,
    share: own + other > 0 ? other / (own + other) : 0,
  };
}

function bounds(values) {
  let low = Infinity,
    high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return [low, high];
}

function counted(values, low, high, bins) {
  const share = new Float64Array(bins);
  for (const value of values)
    share[Math.min(Math.floor(((value - low) / (high - low)) * bins), bins - 1)] +=
      1 / values.length;
  return share;
}

function draw(model, element) {
  const state = { layer: 0 };
  let data, layers, mixtures;

  const controls = node("div", { class: "row", role: "group", "aria-label": "Layers" });
  const pictures = node("div", { class: "row" }),
    about = node("p", { class: "said" }),
    said = node("p", { class: "said", "aria-live": "polite" });
  const picture = pixels("The image", 104),
    answer = node("p", { class: "said" }),
    charts = node("div", { class: "row" });
  const maps = {};
  for (const [name, title] of Object.entries({
    input: "Input u",
    master: "Master V⁽¹⁾",
    m1: "Coefficients m₁",
    aide: "Aide V⁽²⁾",
    m2: "Coefficients m₂",
    output: "Output v",
  })) {
    const canvas = pixels(`${title}, one tile for each capsule channel`, 156),
      below = node("div");
    maps[name] = { canvas, below, whole: panel(title, canvas, below) };
  }
  answer.style.maxWidth = "104px";
  pictures.append(panel("Image", picture, answer), ...Object.values(maps).map((one) => one.whole));
  element.append(controls, about, pictures, charts, said);

  const again = gently(paint);

  function load() {
    layers = data.layers.map((one) => {
      const found = { title: one.title, groups: one.groups };
      for (const name of Object.keys(maps))
        if (one[name]) found[name] = { values: numbers(one[name]), size: one[name].shape };
      return found;
    });
    layers.forEach((one, k) => {
      one.input = one.input ?? layers[k - 1].output;
    }); // what left one layer enters the next
    mixtures = layers.map((one) =>
      mixture(
        Object.fromEntries(["master", "aide", "m1", "m2"].map((name) => [name, one[name]?.values])),
      ),
    );
    image(picture, numbers(data.image), ...data.image.shape);
    answer.textContent = `Class ${data.names[data.label]}; the network answers ${data.names[data.answer]}`;
  }

  function offer() {
    const named = (k) => `${k + 1} of ${layers.length}: ${layers[k].title}`;
    controls.replaceChildren(
      layers.length > 1
        ? slider({
            label: "Layer",
            low: 0,
            high: layers.length - 1,
            value: state.layer,
            show: named,
            input: (k) => {
              state.layer = k;
              again();
            },
          })
        : node("span", {}, named(0)),
    );
  }

  function paint() {
    const began = performance.now(),
      layer = layers[state.layer],
      mixed = mixtures[state.layer];
    const lengths = ["master", "aide"].flatMap((name) =>
      layer[name] ? [bounds(layer[name].values)[1]] : [],
    );
    const most = layer.aide
      ? Math.max(
          ...bounds(layer.m1.values).map(Math.abs),
          ...bounds(layer.m2.values).map(Math.abs),
          2,
        )
      : 2; // 1, where they begin, is half way
    for (const [name, { canvas, below, whole }] of Object.entries(maps)) {
      whole.hidden = !layer[name];
      if (!layer[name]) continue;
      const {
          values,
          size: [count, rows, columns],
        } = layer[name],
        across = Math.ceil(Math.sqrt(count));
      const signed = name === "m1" || name === "m2",
        branch = name === "master" || name === "aide"; // the two of a kind share a scale
      const palette = signed ? SIGNED : CIVIDIS,
        options = signed
          ? { low: -most, high: most }
          : branch
            ? { high: Math.max(...lengths) }
            : {};
      below.replaceChildren(
        scale(
          palette,
          ...tiles(canvas, values, count, rows, columns, { across, palette, ...options }),
          "",
        ),
      );
    }
    about.textContent = sizes(layer);
    const still =
      layer.aide &&
      [layer.m1, layer.m2].every(({ values }) =>
        bounds(values).every((value) => Math.abs(value - 1) < 1e-6),
      );
    charts.replaceChildren(
      ...(layer.aide ? [spread(layer)] : []),
      ...(layers.length > 1 && layers.some((one) => one.aide) ? course() : []),
    );
    const untouched =
      "All coefficients are 1, as in every capConv before its first step: both branches count alike. ";
    said.textContent = !layer.aide
      ? "This layer has no aide: what the master says goes through as it is."
      : (still
          ? untouched
          : `On average |m₁| is ${brief(mixed.m1)} and |m₂| ${brief(mixed.m2)}. `) +
        `${(100 * mixed.share).toFixed(1)} % of the lengths that are added here come from the aide.`;
    tell(element, {
      title: data.network,
      layer: state.layer,
      name: layer.title,
      m1: mixtures.map((one) => one.m1),
      m2: mixtures.map((one) => one.m2),
      share: mixtures.map((one) => one.share),
      label: data.label,
      answer: data.answer,
      still: Boolean(still),
      milliseconds: performance.now() - began,
    });
  }

  function sizes(layer) {
    const words = ({ size: [count, rows, columns] }) =>
      `${count} capsule channels of ${rows} × ${columns}`;
    const [, height, width] = layer.output.size;
    return (
      `${layer.title}: from ${words(layer.input)} to ${height} × ${width}. A tile is a capsule channel; ` +
      "branches and maps show lengths of capsules, bright is long."
    );
  }

  function spread(layer) {
    const bins = 40,
      both = [layer.m1.values, layer.m2.values],
      ends = both.map(bounds);
    let low = Math.min(ends[0][0], ends[1][0]),
      high = Math.max(ends[0][1], ends[1][1]);
    if (high - low < 1e-3) {
      low -= 0.5;
      high += 0.5;
    }
    const shares = both.map((values) => counted(values, low, high, bins)),
      top = Math.max(...shares[0], ...shares[1]) * 108,
      wide = (high - low) / bins;
    const chosen = chart({
      label: "Histogram of both coefficients over capsules and positions",
      x: { low, high, title: "coefficient" },
      y: { low: 0, high: top, title: "capsules (%)" },
    });
    shares.forEach((share, which) =>
      share.forEach((value, k) => {
        if (value > 0)
          chosen.bar(low + (k + 0.3 + 0.4 * which) * wide, 100 * value, 0.4 * wide, {
            fill: which ? LINES.aide : LINES.master,
          });
      }),
    );
    return limited(
      "m₁ and m₂ in this layer",
      chosen,
      key([LINES.master, "m₁, of the master"], [LINES.aide, "m₂, of the aide"]),
    );
  }

  function course() {
    const x = { low: 0.5, high: layers.length + 0.5, title: "layer" },
      heights = mixtures.flatMap((one) => [one.m1, one.m2]).filter(Number.isFinite);
    const means = chart({
      label: "Mean size of both coefficients over the layers",
      x,
      y: { low: 0, high: Math.max(...heights, 1e-3) * 1.1, title: "mean |m|" },
    });
    const shares = chart({
      label: "Share of the aide over the layers",
      x,
      y: { low: 0, high: 100, title: "from the aide (%)" },
    });
    for (const one of [means, shares])
      one.rule(state.layer + 1, true, { stroke: "currentColor", "stroke-opacity": 0.4 });
    for (const [name, paint] of [
      ["m1", LINES.master],
      ["m2", LINES.aide],
    ]) {
      means.line(
        mixtures.map((one, k) => [k + 1, one[name]]),
        { stroke: paint, "stroke-dasharray": name === "m2" ? "5 3" : undefined },
      );
      mixtures.forEach((one, k) => {
        if (Number.isFinite(one[name]))
          means.dot(k + 1, one[name], { fill: paint, r: k === state.layer ? 5 : 2.5 });
      });
    }
    shares.line(
      mixtures.map((one, k) => [k + 1, 100 * one.share]),
      { stroke: INK[2] },
    );
    mixtures.forEach((one, k) =>
      shares.dot(k + 1, 100 * one.share, { fill: INK[2], r: k === state.layer ? 5 : 2.5 }),
    );
    shares.rule(50, false, {
      stroke: "currentColor",
      "stroke-opacity": 0.4,
      "stroke-dasharray": "2 3",
    });
    return [
      limited("Coefficients over layers", means, key([LINES.master, "|m₁|"], [LINES.aide, "|m₂|"])),
      limited("What the aide adds, over layers", shares),
    ];
  }

  function limited(title, ...children) {
    const made = panel(title, ...children);
    made.style.maxWidth = "380px";
    return made;
  }

  function arrive() {
    data = model.get("data");
    if (!data.layers || !data.layers.length) return;
    state.layer = Math.min(state.layer, data.layers.length - 1);
    load();
    offer();
    paint();
  }
  model.on("change:data", arrive);
  arrive();
}
