// What every explorer draws with. A script after this one defines `draw(model, element)`;
// Python adds what its host needs:
// an `export` for notebooks, a model with the data in it for pages without a kernel.

const SVG = "http://www.w3.org/2000/svg";

function node(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:")
    ? document.createElementNS(SVG, tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false)
      made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// Arrays come as {shape, type, bytes, scale}: bytes are a view on memory from a kernel, base64 text in a page.
function numbers(packed) {
  let bytes = packed.bytes;
  if (typeof bytes === "string") bytes = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
  else
    bytes = new Uint8Array(
      bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength),
    );
  const kinds = { float32: Float32Array, int8: Int8Array, uint8: Uint8Array };
  const raw = new kinds[packed.type](bytes.buffer);
  if (packed.type === "float32") return raw;
  const scale = packed.scale ?? 1;
  return Float32Array.from(raw, (value) => value * scale);
}

// Controls. Notebooks take arrow keys for themselves: what is typed into a control stays there.
function keep(event) {
  event.stopPropagation();
}

function slider({ label, low, high, step = 1, value, show = (v) => `${v}`, input }) {
  const shown = node("output", {}, show(value));
  const range = node("input", {
    type: "range",
    min: low,
    max: high,
    step,
    value,
    "aria-label": label,
    "aria-valuetext": show(value),
    onkeydown: keep,
    oninput: () => {
      set(Number(range.value));
      input(Number(range.value));
    },
  });
  const set = (v) => {
    range.value = v;
    shown.textContent = show(v);
    range.setAttribute("aria-valuetext", show(v));
  };
  const made = node("label", { class: "control" }, node("span", {}, label), range, shown);
  made.set = set;
  return made;
}

function choice({ label, options, value, change }) {
  // options: [[value, text], ...]
  const list = node(
    "select",
    { "aria-label": label, onkeydown: keep, onchange: () => change(list.value) },
    ...options.map(([key, text]) =>
      node("option", { value: key, selected: String(key) === String(value) }, text),
    ),
  );
  return node("label", { class: "control" }, node("span", {}, label), list);
}

function button(text, click) {
  return node("button", { type: "button", onclick: click, onkeydown: keep }, text);
}

function panel(title, ...children) {
  return node("section", { class: "panel" }, node("h3", {}, title), ...children);
}

// Colours: cividis for quantities, blue to red through grey for signed ones; colour-blind readers can
// tell both apart.
const CIVIDIS = [
  [0, 34, 78],
  [18, 53, 112],
  [59, 73, 108],
  [87, 93, 109],
  [112, 113, 115],
  [138, 134, 120],
  [165, 156, 116],
  [195, 179, 105],
  [225, 204, 85],
  [254, 232, 56],
];
const SIGNED = [
  [5, 48, 97],
  [33, 102, 172],
  [67, 147, 195],
  [146, 197, 222],
  [224, 224, 224],
  [244, 165, 130],
  [214, 96, 77],
  [178, 24, 43],
  [103, 0, 31],
];
const INK = [
  "#0173b2",
  "#de8f05",
  "#029e73",
  "#d55e00",
  "#cc78bc",
  "#ca9161",
  "#949494",
  "#56b4e9",
];

function colour(palette, share) {
  const place = Math.min(Math.max(Number.isFinite(share) ? share : 0, 0), 1) * (palette.length - 1);
  const low = Math.min(Math.floor(place), palette.length - 2),
    rest = place - low;
  return palette[low].map((value, k) => Math.round(value + rest * (palette[low + 1][k] - value)));
}

// A grid of tiles, each rows x columns numbers; `values` holds tile after tile.
function tiles(
  canvas,
  values,
  count,
  rows,
  columns,
  { low = 0, high, palette = CIVIDIS, across, gap = 1 } = {},
) {
  across = across ?? Math.ceil(Math.sqrt(((count * rows) / columns) * 2));
  const down = Math.ceil(count / across),
    width = across * (columns + gap) - gap,
    height = down * (rows + gap) - gap;
  if (high === undefined) {
    high = low;
    for (const value of values) if (value > high) high = value;
  }
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const pen = canvas.getContext("2d"),
    picture = pen.createImageData(width, height),
    span = high - low || 1;
  for (let tile = 0; tile < count; tile++) {
    const top = Math.floor(tile / across) * (rows + gap),
      left = (tile % across) * (columns + gap);
    for (let y = 0; y < rows; y++)
      for (let x = 0; x < columns; x++) {
        const [r, g, b] = colour(palette, (values[(tile * rows + y) * columns + x] - low) / span);
        picture.data.set([r, g, b, 255], 4 * ((top + y) * width + left + x));
      }
  }
  pen.putImageData(picture, 0, 0);
  return [low, high];
}

function image(canvas, values, channels, height, width) {
  // channels first, 0 to 1
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d"),
    picture = pen.createImageData(width, height),
    plane = height * width;
  for (let k = 0; k < plane; k++) {
    const shade = (c) =>
      Math.round(255 * Math.min(Math.max(values[(channels === 1 ? 0 : c) * plane + k], 0), 1));
    picture.data.set([shade(0), shade(1), shade(2), 255], 4 * k);
  }
  pen.putImageData(picture, 0, 0);
}

function pixels(label, size = 192) {
  return node("canvas", {
    class: "pixels",
    role: "img",
    "aria-label": label,
    style: `width:${size}px`,
  });
}

// A bar that says which colour stands for which number.
function scale(palette, low, high, unit) {
  const stops = palette
    .map((c, k) => `rgb(${c}) ${Math.round((100 * k) / (palette.length - 1))}%`)
    .join(",");
  return node(
    "div",
    { class: "scale" },
    node("span", {}, brief(low)),
    node("i", { style: `background:linear-gradient(90deg,${stops})` }),
    node("span", {}, `${brief(high)} ${unit}`),
  );
}

function brief(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(size >= 100 ? 4 : 3)));
}

// Charts: a frame with two axes, into which marks are put. x and y map numbers to places.
function ticks(low, high, log, most = 5) {
  if (log) {
    const found = [],
      step = Math.max(1, Math.ceil(Math.log10(high / low) / most));
    for (
      let power = Math.ceil(Math.log10(low) - 1e-9);
      power <= Math.log10(high) + 1e-9;
      power += step
    )
      found.push(10 ** power);
    return found.length > 1 ? found : [low, high];
  }
  const rough = (high - low) / most,
    unit = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((k) => k * unit).find((k) => k >= rough * 0.999) || unit;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++)
    found.push(Number((k * step).toPrecision(12)));
  return found;
}

function chart({ label, width = 380, height = 230, x, y, right }) {
  // axes: {low, high, title, log, names}
  const edge = { left: 52, right: right ? 50 : 12, top: 10, bottom: 40 };
  const root = node("svg:svg", {
    viewBox: `0 0 ${width} ${height}`,
    class: "chart",
    role: "img",
    "aria-label": label,
  });
  const places = (axis, from, to) => (value) => {
    const f = axis.log ? (v) => Math.log10(Math.max(v, 1e-300)) : (v) => v;
    const share = (f(value) - f(axis.low)) / (f(axis.high) - f(axis.low) || 1);
    return from + Math.min(Math.max(share, -0.02), 1.02) * (to - from);
  };
  const at = {
    x: places(x, edge.left, width - edge.right),
    y: places(y, height - edge.bottom, edge.top),
  };
  if (right) at.right = places(right, height - edge.bottom, edge.top);
  const text = (content, attributes) => node("svg:text", attributes, content);
  const put = (axis, vertical, side) => {
    const values = axis.names ? axis.names.map((_, k) => k) : ticks(axis.low, axis.high, axis.log);
    for (const [k, value] of values.entries()) {
      const place = (vertical ? (side ? at.right : at.y) : at.x)(value),
        words = axis.names ? axis.names[k] : axis.log ? power(value) : brief(value);
      if (vertical) {
        if (!side)
          root.append(
            node("svg:line", {
              x1: edge.left,
              x2: width - edge.right,
              y1: place,
              y2: place,
              class: "grid",
            }),
          );
        root.append(
          text(words, {
            x: side ? width - edge.right + 5 : edge.left - 5,
            y: place + 4,
            "text-anchor": side ? "start" : "end",
          }),
        );
      } else
        root.append(
          text(words, { x: place, y: height - edge.bottom + 15, "text-anchor": "middle" }),
        );
    }
    const middle = edge.top + (height - edge.top - edge.bottom) / 2;
    if (vertical)
      root.append(
        text(axis.title, {
          transform: side
            ? `translate(${width - 10} ${middle}) rotate(90)`
            : `translate(12 ${middle}) rotate(-90)`,
          "text-anchor": "middle",
        }),
      );
    else
      root.append(
        text(axis.title, {
          x: (edge.left + width - edge.right) / 2,
          y: height - 6,
          "text-anchor": "middle",
        }),
      );
  };
  put(y, true, false);
  put(x, false, false);
  if (right) put(right, true, true);
  root.append(
    node("svg:path", {
      d: `M${edge.left} ${edge.top}V${height - edge.bottom}H${width - edge.right}`,
      class: "axis",
    }),
  );
  root.bar = (centre, value, wide, attributes) => {
    const zero = at.y(Math.max(y.low, Math.min(0, y.high))),
      top = at.y(value),
      left = at.x(centre - wide / 2);
    root.append(
      node("svg:rect", {
        x: left,
        y: Math.min(zero, top),
        width: Math.max(at.x(centre + wide / 2) - left, 0.5),
        height: Math.abs(zero - top),
        ...attributes,
      }),
    );
  };
  root.line = (points, attributes, side) => {
    const known = points.filter(([, v]) => Number.isFinite(v));
    const path = known
      .map(
        ([u, v], k) =>
          `${k ? "L" : "M"}${at.x(u).toFixed(1)} ${(side ? at.right : at.y)(v).toFixed(1)}`,
      )
      .join("");
    root.append(node("svg:path", { d: path, fill: "none", "stroke-width": 2, ...attributes }));
  };
  root.dot = (u, v, attributes, side) =>
    root.append(
      node("svg:circle", { cx: at.x(u), cy: (side ? at.right : at.y)(v), r: 4, ...attributes }),
    );
  root.rule = (value, vertical, attributes) =>
    root.append(
      node(
        "svg:line",
        vertical
          ? {
              x1: at.x(value),
              x2: at.x(value),
              y1: edge.top,
              y2: height - edge.bottom,
              ...attributes,
            }
          : {
              x1: edge.left,
              x2: width - edge.right,
              y1: at.y(value),
              y2: at.y(value),
              ...attributes,
            },
      ),
    );
  root.label = (u, v, words, attributes) =>
    root.append(text(words, { x: at.x(u), y: at.y(v), ...attributes }));
  return root;
}

function power(value) {
  const exponent = Math.round(Math.log10(value));
  if (Math.abs(Math.log10(value) - exponent) > 1e-6 || Math.abs(exponent) < 3) return brief(value);
  return (
    "10" +
    String(exponent)
      .replace("-", "⁻")
      .replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])
  );
}

function key(...entries) {
  // [colour, words]
  return node(
    "div",
    { class: "key" },
    ...entries.map(([paint, words]) =>
      node("span", {}, node("i", { style: `background:${paint}` }), words),
    ),
  );
}

// Redraw at most once per frame, whatever a slider says meanwhile.
function gently(work) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}

// The labels of the kernel's sliders are not theirs to a screen reader.
function nameSliders() {
  for (const handle of document.querySelectorAll(".widget-slider .noUi-handle:not([aria-label])")) {
    const label = handle.closest(".widget-slider").querySelector(".widget-label");
    if (label) handle.setAttribute("aria-label", label.textContent);
  }
}

// An element is drawn into once; what it says of itself can be read by tests and by scripts of the
// reader's own.
function tell(element, facts) {
  nameSliders();
  element.dataset.facts = JSON.stringify(facts, (_, value) =>
    typeof value === "number" ? Number(value.toPrecision(7)) : value,
  );
}

// More controls: text, yes or no.
function field({ label, value = "", input }) {
  const box = node("input", {
    type: "search",
    value,
    "aria-label": label,
    onkeydown: keep,
    oninput: () => input(box.value),
  });
  return node("label", { class: "control" }, node("span", {}, label), box);
}

function check({ label, value, change, disabled = false }, ...words) {
  const box = node("input", {
    type: "checkbox",
    checked: value,
    disabled,
    "aria-label": label,
    onkeydown: keep,
    onchange: () => change(box.checked),
  });
  return node("label", { class: "check" }, box, ...(words.length ? words : [label]));
}

// What a reader takes along.
function download(name, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const link = node("a", { href: address, download: name, style: "display:none" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function csv(rows) {
  // lists of cells
  const cell = (value) => {
    const text = value === undefined || value === null ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
}

function standalone(drawn, title, entries = []) {
  // a chart as a file: black on white, with its key: [colour, words, dashes]
  const [, , width, height] = drawn.getAttribute("viewBox").split(" ").map(Number),
    line = 15,
    whole = height + 22 + line * entries.length;
  const root = drawn.cloneNode(true),
    across = Math.max(
      width,
      40 + 6.2 * Math.max(title.length, ...entries.map(([, words]) => words.length)),
    );
  for (const [name, value] of Object.entries({
    xmlns: SVG,
    viewBox: `0 -22 ${across} ${whole + 4}`,
    width: across,
    height: whole + 4,
    color: "black",
  }))
    root.setAttribute(name, value);
  root.prepend(
    node(
      "svg:style",
      {},
      "text{font:11px sans-serif;fill:black}.grid{stroke:black;stroke-opacity:.12}" +
        ".axis{stroke:black;stroke-opacity:.6;fill:none}",
    ),
    node("svg:rect", { x: 0, y: -22, width: across, height: whole + 4, fill: "white" }),
    node("svg:text", { x: 10, y: -7 }, title),
  );
  entries.forEach(([paint, words, dashes], k) =>
    root.append(
      node("svg:path", {
        d: `M10 ${height + line * k + 6}h20`,
        stroke: paint,
        "stroke-width": 2.5,
        "stroke-dasharray": dashes,
      }),
      node("svg:text", { x: 36, y: height + line * k + 10 }, words),
    ),
  );
  return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(root)}\n`;
}
