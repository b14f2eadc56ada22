// Runs side by side: the kernel reads them once, what is compared is chosen here.

const DASHES = [undefined, "6 3", "2 3"];

function draw(model, element) {
  // chosen: id -> place in the palette
  const state = { chosen: new Map(), metric: "error", scale: "linear", from: 1, filter: "" };
  let data, groups, shown, lines;

  const controls = node("div", { class: "row", role: "group", "aria-label": "What is drawn" });
  const list = node("div", { class: "list", role: "group", "aria-label": "Runs" }),
    curves = node("div"),
    table = node("section", { class: "panel wide" });
  const said = node("p", { class: "said", "aria-live": "polite" });
  element.append(
    controls,
    node("div", { class: "row" }, panel("Runs", list), panel("Curves", curves), table),
    said,
  );

  const again = gently(paint);
  const look = (id) => ({
    stroke: INK[state.chosen.get(id) % INK.length],
    "stroke-dasharray": DASHES[Math.floor(state.chosen.get(id) / INK.length) % DASHES.length],
  });
  const fits = (group) =>
    state.filter
      .toLowerCase()
      .split(/\s+/)
      .every((word) => group.words.includes(word));

  function choose(id, yes) {
    if (!yes) state.chosen.delete(id);
    else if (!state.chosen.has(id)) {
      const taken = new Set(state.chosen.values());
      let place = 0;
      while (taken.has(place)) place++;
      state.chosen.set(id, place);
    }
  }

  function offer() {
    const known = data.metrics.filter(([name]) =>
      groups.some((group) => group.runs.some((run) => run.curves[name])),
    );
    if (!known.some(([name]) => name === state.metric))
      state.metric = known.length ? known[0][0] : "error";
    const longest = Math.max(
      2,
      ...groups.flatMap((group) =>
        group.runs.flatMap((run) =>
          Object.values(run.curves).map((curve) => curve[curve.length - 1][0]),
        ),
      ),
    );
    state.from = Math.min(state.from, longest - 1);
    controls.replaceChildren(
      field({
        label: "Filter",
        value: state.filter,
        input: (text) => {
          state.filter = text;
          names();
          again();
        },
      }),
      choice({
        label: "Curve",
        options: known,
        value: state.metric,
        change: (name) => {
          state.metric = name;
          again();
        },
      }),
      choice({
        label: "Axis",
        options: [
          ["linear", "linear"],
          ["log", "logarithmic"],
        ],
        value: state.scale,
        change: (name) => {
          state.scale = name;
          again();
        },
      }),
      slider({
        label: "From epoch",
        low: 1,
        high: longest - 1,
        value: state.from,
        input: (epoch) => {
          state.from = epoch;
          again();
        },
      }),
      button("Choose what is listed", () => {
        shown.forEach((group) => group.drawable && choose(group.id, true));
        names();
        again();
      }),
      button("Choose none", () => {
        state.chosen.clear();
        names();
        again();
      }),
      button("Save CSV", () => download("runs.csv", "text/csv", csv(rows()))),
      button("Save SVG", () => {
        if (lines)
          download("runs.svg", "image/svg+xml", standalone(lines.chart, lines.title, lines.key));
      }),
    );
  }

  function names() {
    // the list, as far as the filter lets it be seen
    const focused = list.contains(document.activeElement)
      ? document.activeElement.dataset.id
      : null;
    shown = groups.filter(fits);
    const experiments = [...new Set(shown.map((group) => group.experiment))];
    list.replaceChildren(
      ...experiments.map((experiment) =>
        node(
          "fieldset",
          {},
          node("legend", {}, experiment),
          ...shown.filter((group) => group.experiment === experiment).flatMap(entry),
        ),
      ),
    );
    const absent = data.missing.filter((one) =>
      fits({ words: `${one.title} ${one.why}`.toLowerCase() }),
    );
    if (absent.length)
      list.append(
        node(
          "details",
          {},
          node("summary", {}, `missing: ${absent.length}`),
          node("ul", {}, ...absent.map((one) => node("li", {}, `${one.title}: ${one.why}`))),
        ),
      );
    if (!shown.length)
      list.prepend(node("p", {}, groups.length ? "Nothing of that name." : data.sentence));
    if (focused) list.querySelector(`[data-id="${focused}"]`)?.focus();
  }

  function entry(group) {
    const name = `${group.row}, ${group.profile}, ${group.data}`;
    const box = check(
      {
        label: `${group.experiment}/${name}, ${group.states}`,
        value: state.chosen.has(group.id),
        disabled: !group.drawable,
        change: (yes) => {
          choose(group.id, yes);
          names();
          again();
        },
      },
      node("i", {
        class: "swatch",
        style: state.chosen.has(group.id) ? `background:${look(group.id).stroke}` : "",
      }),
      node("span", {}, name),
    );
    box.querySelector("input").dataset.id = group.id;
    return [box, node("p", {}, `${group.title}. ${group.told.join("; ")}`)];
  }

  function mean(runs, name) {
    // over the epochs that all finished runs have
    const done = runs
      .filter((run) => run.done && run.curves[name])
      .map((run) => new Map(run.curves[name]));
    if (!done.length) return [];
    return [...done[0].keys()]
      .filter((epoch) => done.every((curve) => curve.has(epoch)))
      .map((epoch) => [
        epoch,
        done.reduce((sum, curve) => sum + curve.get(epoch), 0) / done.length,
      ]);
  }

  const picked = () => groups.filter((group) => state.chosen.has(group.id) && fits(group));

  function paint() {
    const began = performance.now(),
      { metric, from } = state,
      title = data.metrics.find(([name]) => name === metric)[1];
    const log = state.scale === "log",
      sees = ([epoch, value]) => epoch >= from && (!log || value > 0);
    const found = picked().map((group) => ({
      group,
      means: mean(group.runs, metric).filter(sees),
      each: group.runs
        .filter((run) => run.curves[metric])
        .map((run) => [run, run.curves[metric].filter(sees)]),
    }));
    const points = found.flatMap(({ each }) => each.flatMap(([, curve]) => curve));
    lines = null;
    if (points.length) {
      const values = points.map(([, value]) => value),
        low = Math.min(...values),
        high = Math.max(...values),
        pad = (high - low || Math.abs(high) || 1) * 0.06;
      const bounds = log
        ? { low: low / 1.1, high: high * 1.1 }
        : { low: low >= 0 && low < 0.35 * high ? 0 : low - pad, high: high + pad };
      const last = Math.max(...points.map(([epoch]) => epoch));
      const made = chart({
        label: `${title} over epochs, a line for each choice`,
        width: 560,
        height: 320,
        x: { low: from, high: Math.max(last, from + 1), title: "epoch" },
        y: { ...bounds, log, title },
      });
      made.classList.add("large");
      for (const { group, each, means } of found) {
        const style = look(group.id),
          alone = each.length === 1;
        for (const [run, curve] of each)
          made.line(curve, {
            ...style,
            "stroke-width": alone ? 2.5 : 1,
            "stroke-opacity": alone ? 1 : 0.55,
            ...(run.done ? {} : { "stroke-dasharray": "1 3" }),
          });
        if (!alone) made.line(means, { ...style, "stroke-width": 3 });
        const end = (means.length ? means : each[0]?.[1] || []).slice(-1)[0];
        if (end) made.dot(...end, { fill: style.stroke, r: 3.5 });
      }
      const entries = found
        .filter(({ each }) => each.length)
        .map(({ group, each }) => [
          look(group.id).stroke,
          `${group.name} (${each.length === 1 ? "1 seed" : `${each.length} seeds`}${group.stale ? ", stale" : ""})`,
          look(group.id)["stroke-dasharray"],
        ]);
      lines = {
        chart: made,
        title: `${title} over epochs; thin: seeds, bold: their mean`,
        key: entries,
      };
      curves.replaceChildren(made, key(...entries.map(([paint, words]) => [paint, words])));
    } else
      curves.replaceChildren(
        node(
          "p",
          {},
          !groups.length
            ? data.sentence
            : found.length
              ? `Nothing that is chosen has a ${title} here.`
              : "Choose runs on the left.",
        ),
      );
    figures(found);
    const best = found
      .filter(({ group }) => group.n)
      .sort((a, b) => a.group.error - b.group.error)[0];
    said.textContent = best
      ? `${found.length} chosen; least last error: ${best.group.name}, ${brief(best.group.error)} %.`
      : `${found.length} chosen.`;
    tell(element, {
      groups: groups.length,
      listed: shown.map((group) => group.name),
      chosen: found.map(({ group }) => group.name),
      metric,
      scale: state.scale,
      from,
      means: Object.fromEntries(found.map(({ group, means }) => [group.name, means])),
      lines: curves.querySelectorAll("path[stroke]").length,
      sentence: data.sentence,
      milliseconds: performance.now() - began,
    });
  }

  function figures(found) {
    const heads = [
      "run",
      "last error (%)",
      "95 % interval over seeds",
      "seeds",
      "epochs",
      "parameters",
      "seconds",
      "images",
      "on",
      "state",
    ];
    const cells = ({ group }) => [
      group.name,
      group.n ? brief(group.error) : "–",
      group.low === null ? "–" : `${brief(group.low)} to ${brief(group.high)}`,
      group.n,
      group.epochs,
      group.parameters ? group.parameters.toLocaleString("en") : "–",
      group.seconds === null ? "–" : brief(group.seconds),
      group.images ? group.images.toLocaleString("en") : "all",
      group.devices.join("; ") || "–",
      group.states,
    ];
    table.replaceChildren(
      ...(found.length
        ? [
            node("h3", {}, "Results"),
            node(
              "table",
              {},
              node(
                "thead",
                {},
                node(
                  "tr",
                  {},
                  ...heads.map((head) =>
                    node("th", { scope: "col", class: head === "run" ? "name" : undefined }, head),
                  ),
                ),
              ),
              node(
                "tbody",
                {},
                ...found.map((one) => {
                  const [name, ...rest] = cells(one);
                  return node(
                    "tr",
                    {},
                    node("th", { scope: "row", class: "name" }, name),
                    ...rest.map((text) => node("td", {}, String(text))),
                  );
                }),
              ),
            ),
          ]
        : []),
    );
  }

  function rows() {
    // one line for each run and epoch of what is chosen, whatever curve is drawn
    const names_ = data.metrics.map(([name]) => name),
      told = [
        [
          "experiment",
          "row",
          "profile",
          "data",
          "seed",
          "key",
          "state",
          "source",
          "device",
          "epoch",
          ...names_,
        ],
      ];
    for (const group of picked())
      for (const run of group.runs) {
        const known = names_.map((name) => new Map(run.curves[name] || [])),
          epochs = [...new Set(known.flatMap((curve) => [...curve.keys()]))].sort((a, b) => a - b);
        for (const epoch of epochs)
          told.push([
            group.experiment,
            group.row,
            group.profile,
            group.data,
            run.seed,
            run.key,
            run.state,
            run.source,
            run.device,
            epoch,
            ...known.map((curve) => curve.get(epoch)),
          ]);
      }
    return told;
  }

  function arrive() {
    data = model.get("data");
    if (!data.groups) return;
    groups = data.groups.map((group) => ({
      ...group,
      words:
        `${group.experiment}/${group.row} ${group.profile} ${group.data} ${group.title} ${group.states}`.toLowerCase(),
    }));
    const ids = new Set(groups.map((group) => group.id));
    for (const id of [...state.chosen.keys()]) if (!ids.has(id)) state.chosen.delete(id);
    if (!state.chosen.size)
      groups
        .filter((group) => group.drawable && group.experiment === groups[0].experiment)
        .slice(0, INK.length)
        .forEach((group) => choose(group.id, true));
    offer();
    names();
    paint();
  }
  model.on("change:data", arrive);
  arrive();
}
