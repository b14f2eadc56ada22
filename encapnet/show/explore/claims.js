// Claims: the runs that a verdict rests on, the images that tell two rows apart, and what more seeds would do.

// One bit for each test image, 1 where it was misclassified.
function mistakes(text, count) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)),
    found = new Uint8Array(count);
  for (let k = 0; k < count; k++) found[k] = (bytes[k >> 3] >> (7 - (k & 7))) & 1;
  return found;
}

function draw(model, element) {
  const state = { group: "all", claim: "", first: "", second: "", most: 12 };
  let data, claim, runs;
  const asked = new Set();
  const pictures = {},
    ahead = {}; // by data set; by profile and data set

  const controls = node("div", { class: "row", role: "group", "aria-label": "Which claim" });
  const card = node("div"),
    errors = node("div"),
    together = node("div"),
    first = node("div"),
    second = node("div"),
    more = node("div");
  const said = node("p", { class: "said", "aria-live": "polite" });
  const verdict = panel("What was found", card),
    images = panel("Test images, by who gets them right", together, first, second);
  verdict.style.maxWidth = "430px";
  images.style.maxWidth = "540px";
  element.append(
    controls,
    node(
      "div",
      { class: "row" },
      verdict,
      panel("Test error of each run", errors),
      images,
      panel("What more seeds would do", more),
    ),
    said,
  );

  const again = gently(paint);
  const of = (row) => runs.find((one) => one.row === row);

  function offer() {
    const groups = [...new Set(data.claims.map((one) => one.group))];
    const listed = data.claims.filter((one) => state.group === "all" || one.group === state.group);
    if (!listed.some((one) => one.id === state.claim))
      state.claim = (
        listed.find((one) => one.rows.length > 1 && one.verdict.startsWith("direction")) ||
        listed.find((one) => one.rows.length > 1) ||
        listed[0]
      ).id;
    claim = data.claims.find((one) => one.id === state.claim);
    runs = claim.rows
      .map((row) => ({ ...row, ...data.rows[`${claim.profile} ${claim.dataset} ${row.row}`] }))
      .filter((one) => one.seeds);
    const names = runs.map((one) => [one.row, one.label]);
    if (!of(state.first)) state.first = names.length ? names[0][0] : "";
    if (!of(state.second) || state.second === state.first)
      state.second = names.length > 1 ? names.find(([row]) => row !== state.first)[0] : "";
    controls.replaceChildren(
      choice({
        label: "Table or figure",
        options: [["all", "all"], ...groups.map((name) => [name, name])],
        value: state.group,
        change: (name) => {
          state.group = name;
          offer();
          again();
        },
      }),
      choice({
        label: "Claim",
        options: listed.map((one) => [one.id, `${one.sign} ${one.statement}`]),
        value: state.claim,
        change: (id) => {
          state.claim = id;
          offer();
          again();
        },
      }),
      ...(names.length > 1
        ? [
            choice({
              label: "Row",
              options: names,
              value: state.first,
              change: (row) => {
                state.first = row;
                offer();
                again();
              },
            }),
            choice({
              label: "beside",
              options: names.filter(([row]) => row !== state.first),
              value: state.second,
              change: (row) => {
                state.second = row;
                offer();
                again();
              },
            }),
          ]
        : []),
      slider({
        label: "Images shown",
        low: 6,
        high: 36,
        step: 6,
        value: state.most,
        input: (count) => {
          state.most = count;
          again();
        },
      }),
    );
  }

  function line(term, words) {
    return words ? [node("dt", {}, term), node("dd", {}, words)] : [];
  }

  function showCard() {
    const where = claim.profile ? `${claim.profile}, ${claim.dataset}` : "";
    card.replaceChildren(
      node(
        "p",
        {},
        node("strong", {}, `${claim.sign} ${claim.verdict}`),
        claim.why ? `: ${claim.why}` : "",
      ),
      node(
        "dl",
        {},
        ...line("The paper says", `${claim.statement} (${claim.source})`),
        ...line("Its numbers", claim.paper),
        ...line("Ours", claim.ours),
        ...line("From", where),
        ...claim.findings.flatMap((one, k) => [
          ...line(claim.findings.length > 1 ? `Difference ${k + 1}` : "Difference", one.gap),
          ...line("Resolution", one.power),
          ...line("Gate", one.gate),
        ]),
        ...line("Note", claim.note),
        ...line(
          "Elsewhere",
          claim.further
            .map(([profile, dataset, word]) => `${profile}, ${dataset}: ${word}`)
            .join("; "),
        ),
      ),
    );
  }

  function showErrors() {
    if (!runs.length)
      return errors.replaceChildren(
        node(
          "p",
          {},
          claim.rows.length
            ? "None of its rows has been trained: the command below does it."
            : "No training decides this claim: it is measured, or worked out.",
        ),
      );
    const values = runs.flatMap((one) => one.seeds.map((run) => run.error)),
      low = Math.min(...values),
      high = Math.max(...values),
      pad = (high - low || 1) * 0.08;
    const made = chart({
      label: "Test error of each run, a line for each row",
      height: 70 + 34 * runs.length,
      x: { low: Math.max(0, low - pad), high: high + pad, title: "test error (%)" },
      y: {
        low: runs.length - 0.5,
        high: -0.5,
        title: "",
        names: runs.map((one) => (one.label.length > 7 ? `${one.label.slice(0, 6)}…` : one.label)),
      },
    });
    runs.forEach((one, k) => {
      const paint = INK[[state.first, state.second].indexOf(one.row)] || "currentColor",
        mean = one.seeds.reduce((sum, run) => sum + run.error, 0) / one.seeds.length;
      made.line(
        [
          [Math.min(...one.seeds.map((run) => run.error)), k],
          [Math.max(...one.seeds.map((run) => run.error)), k],
        ],
        { stroke: paint, "stroke-opacity": 0.4 },
      );
      for (const run of one.seeds) made.dot(run.error, k, { fill: paint, r: 3.5 });
      made.label(mean, k - 0.28, brief(mean), { "text-anchor": "middle" });
    });
    errors.replaceChildren(
      made,
      key(
        ...[
          [INK[0], state.first],
          [INK[1], state.second],
        ]
          .filter(([, row]) => row)
          .map(([paint, row]) => [paint, of(row).label]),
      ),
      node("p", {}, "Dots are seeds; the number is their mean."),
    );
  }

  // How many of a row's seeds get each image wrong, as a share.
  function shares(row) {
    const one = of(row),
      known = one ? one.seeds.filter((run) => run.mistakes) : [];
    if (!known.length || known.length < one.seeds.length) return null;
    const total = new Float64Array(one.images);
    for (const run of known)
      mistakes(run.mistakes, one.images).forEach((bit, k) => {
        total[k] += bit / known.length;
      });
    return total;
  }

  function compared() {
    const [left, right] = [shares(state.first), shares(state.second)];
    if (
      !left ||
      !right ||
      left.length !== right.length ||
      of(state.first).source !== of(state.second).source
    )
      return null;
    const count = left.length,
      table = { both: 0, first: 0, second: 0, neither: 0 };
    left.forEach((one, k) => {
      const other = right[k];
      table.both += (1 - one) * (1 - other);
      table.first += (1 - one) * other;
      table.second += one * (1 - other);
      table.neither += one * other;
    });
    const order = [...left.keys()],
      by = (from, to) =>
        order
          .filter((k) => to[k] > from[k])
          .sort((a, b) => to[b] - from[b] - (to[a] - from[a]) || a - b);
    return { count, table, left, right, first: by(left, right), second: by(right, left) };
  }

  function strip(place, title, chosen, dataset, { left, right }) {
    const known = pictures[dataset],
      cells = chosen.slice(0, state.most).map((k) => {
        const labels = [state.first, state.second].map((row) => of(row).label);
        const told =
          `${percent(left[k])} of the runs of ${labels[0]} ` +
          `and ${percent(right[k])} of ${labels[1]} get it wrong`;
        const at = known ? known.at.get(k) : undefined;
        if (at === undefined)
          return node("figure", {}, node("b", {}, `${k}`), node("figcaption", {}, "image"));
        const canvas = node("canvas", {
          class: "pixels",
          role: "img",
          "aria-label": `test image ${k}, ${known.classes[known.labels[at]]}: ${told}`,
          title: `${k}: ${told}`,
          style: "width:44px;height:44px",
        });
        const [, channels, height, width] = known.shape,
          size = channels * height * width;
        image(
          canvas,
          Float32Array.from(
            known.values.subarray(at * size, (at + 1) * size),
            (value) => value / 255,
          ),
          channels,
          height,
          width,
        );
        return node("figure", {}, canvas, node("figcaption", {}, known.classes[known.labels[at]]));
      });
    place.replaceChildren(
      node("h3", {}, `${title}: ${chosen.length.toLocaleString("en")}`),
      node("div", { class: "strip" }, ...cells),
      ...(known?.why && cells.length ? [node("p", {}, known.why)] : []),
    );
  }

  const percent = (share) => `${Math.round(100 * share)} %`;

  function showImages() {
    const found = claim.rows.length && state.second ? compared() : null;
    images.hidden = !found;
    if (!found) return null;
    const [one, other] = [of(state.first).label, of(state.second).label],
      share = (value) => `${((100 * value) / found.count).toFixed(1)} %`;
    const row = (head, ...cells) =>
      node(
        "tr",
        {},
        node("th", { scope: "row", class: "name" }, head),
        ...cells.map((text) => node("td", {}, text)),
      );
    together.replaceChildren(
      node(
        "table",
        { "aria-label": `Test images by ${one} and ${other}` },
        node(
          "thead",
          {},
          node(
            "tr",
            {},
            node("td", {}),
            node("th", { scope: "col" }, `${other} right`),
            node("th", { scope: "col" }, `${other} wrong`),
          ),
        ),
        node(
          "tbody",
          {},
          row(`${one} right`, share(found.table.both), share(found.table.first)),
          row(`${one} wrong`, share(found.table.second), share(found.table.neither)),
        ),
      ),
      node(
        "p",
        {},
        `Of ${found.count.toLocaleString("en")} test images, over all pairs of seeds. ` +
          "Below, the images on which they differ most.",
      ),
    );
    const wanted = [...found.first.slice(0, 36), ...found.second.slice(0, 36)],
      absent = wanted.filter((k) => !pictures[claim.dataset]?.at.has(k));
    strip(first, `${one} more often right`, found.first, claim.dataset, found);
    strip(second, `${other} more often right`, found.second, claim.dataset, found);
    if (absent.length && !pictures[claim.dataset]?.why) {
      ask({
        dataset: claim.dataset,
        source: of(state.first).source,
        images: found.count,
        indexes: absent,
      });
    }
    return found;
  }

  function ask(what) {
    // once; the answer draws again
    const words = JSON.stringify(what);
    if (asked.has(words)) return;
    asked.add(words);
    model.set("asked", what);
    model.save_changes();
  }

  function showMore() {
    const known = claim.profile ? ahead[`${claim.profile} ${claim.dataset}`] : {};
    if (!known) {
      more.replaceChildren(node("p", {}, "Working it out …"));
      return ask({ profile: claim.profile, dataset: claim.dataset });
    }
    const rows = (known[claim.id] || []).map((one) =>
      node(
        "tr",
        {},
        node("th", { scope: "row", class: "name" }, `${one.seeds} seeds of each row`),
        node("td", {}, `${one.runs}`),
        node("td", {}, `${Math.round(100 * one.chance)} %`),
      ),
    );
    more.replaceChildren(
      ...(rows.length
        ? [
            node(
              "table",
              { "aria-label": "What more seeds would do" },
              node(
                "thead",
                {},
                node(
                  "tr",
                  {},
                  ...["look at", "runs to train", "chance of a verdict"].map((head, k) =>
                    node("th", { scope: "col", class: k ? undefined : "name" }, head),
                  ),
                ),
              ),
              node("tbody", {}, ...rows),
            ),
          ]
        : [node("p", {}, claim.decided)]),
      node("p", {}, "To know more: ", node("code", {}, claim.command)),
    );
  }

  function paint() {
    const began = performance.now();
    showCard();
    showErrors();
    const found = showImages();
    showMore();
    said.textContent =
      `${claim.statement}: ${claim.verdict}.` +
      (found
        ? ` ${(found.first.length + found.second.length).toLocaleString("en")} of ` +
          `${found.count.toLocaleString("en")} test images are not answered alike.`
        : "");
    tell(element, {
      claims: data.claims.length,
      claim: claim.id,
      verdict: claim.verdict,
      profile: claim.profile,
      dataset: claim.dataset,
      rows: runs.map((one) => one.row),
      first: state.first,
      second: state.second,
      most: state.most,
      table: found && found.table,
      images: found && found.count,
      order: found && [found.first.slice(0, 6), found.second.slice(0, 6)],
      pictures: element.querySelectorAll(".strip canvas").length,
      looks: more.querySelectorAll("tbody tr").length,
      working: more.textContent.startsWith("Working"),
      sentence: data.sentence,
      milliseconds: performance.now() - began,
    });
  }

  function receive(packed) {
    // looks ahead, or pictures of a data set: those of before stay
    if (!packed || !packed.dataset) return;
    if (packed.looks) {
      ahead[`${packed.profile} ${packed.dataset}`] = packed.looks;
      return;
    }
    const before = pictures[packed.dataset];
    if (packed.why) {
      pictures[packed.dataset] = { at: new Map(), why: packed.why };
      return;
    }
    const fresh = numbers(packed.pixels),
      values = new Float32Array((before ? before.values.length : 0) + fresh.length);
    if (before) values.set(before.values);
    values.set(fresh, before ? before.values.length : 0);
    const at = new Map(before ? before.at : []),
      had = before ? before.labels.length : 0;
    packed.indexes.forEach((k, place) => at.set(k, had + place));
    pictures[packed.dataset] = {
      at,
      values,
      shape: packed.pixels.shape,
      labels: [...(before ? before.labels : []), ...packed.labels],
      classes: packed.classes,
    };
  }

  function arrive() {
    data = model.get("data");
    if (!data.claims) return;
    [...(data.pictures || []), ...(data.ahead || [])].forEach(receive);
    offer();
    paint();
  }
  model.on("change:data", arrive);
  model.on("change:answered", () => {
    receive(model.get("answered"));
    if (data) again();
  });
  arrive();
}
