// Charts over layers.

const FLOOR = 1e-4; // of charts of probabilities, and 1 over that of ranks

// A scale: `at` is where a value is, 0 at the top and 1 at the bottom; `ticks` are `[value, name]`.
const falling = (p) => Math.log10(clamp(p, FLOOR, 1)) / Math.log10(FLOOR);
const POWERS = [1, 0.1, 0.01, 0.001];
const PROBABILITIES = { at: falling, ticks: [...POWERS.map((p) => [p, p]), [FLOOR, "≤1e-4"]] };
const RANKS = {
  at: (rank) => falling(1 / rank),
  ticks: [...POWERS.map((p) => [1 / p, Math.round(1 / p)]), [1 / FLOOR, "≥10000"]],
};
const EFFECTS = {
  at: (effect) => (1.15 - clamp(effect, -0.15, 1.15)) / 1.3,
  ticks: [0, 0.5, 1].map((effect) => [effect, effect]),
};

function cosineScale() {
  const [least, most] = cosineRange();
  const ticks = [0, 0.5, 1].map((share) => least + share * (most - least));
  return {
    at: (cosine) => 1 - shade(cosine, true),
    ticks: ticks.map((cosine) => [cosine, cosine.toFixed(2)]),
  };
}

const probabilitiesOrRanks = () => (state.rank ? RANKS : PROBABILITIES);

/**
 * A chart of `series` (`{ name, values, at, colour, dash }`) over layers; `at` has the layers of
 * the values, where these are not all. `markLayer` of it moves the mark to the layer shown.
 */
function chart(series, width = 300, height = 150, scale = probabilitiesOrRanks()) {
  const [left, right, top, bottom] = [38, 8, 6, 18];
  const x = (layer) => left + ((width - left - right) * layer) / (nLayers() - 1);
  const y = (value) => top + (height - top - bottom) * scale.at(value);
  const text = { "font-size": 10.5, "font-family": "sans-serif", fill: "#5b6470" };
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  const names = series.filter((one) => !one.thin).map(({ name }) => name);
  svg.setAttribute("aria-label", `Curves over layers: ${names.join(", ")}`);
  for (const [value, name] of scale.ticks) {
    svg.append(draw("path", { d: `M${left} ${y(value)}H${width - right}`, stroke: "#e3e7eb" }));
    const place = { ...text, x: left - 4, y: y(value) + 3.5, "text-anchor": "end" };
    svg.append(draw("text", place, `${name}`));
  }
  const step = Math.ceil((nLayers() * 26) / (width - left));
  for (const layer of range(nLayers()))
    if (layer % step === 0 && (layer === 0 || nLayers() - 1 - layer >= step)) tick(layer);
  tick(nLayers() - 1);
  function tick(layer) {
    const place = { ...text, x: x(layer), y: height - 4, "text-anchor": "middle" };
    svg.append(draw("text", place, data.layers[layer]));
  }
  const layerMark = draw("path", { stroke: MARK, "stroke-width": 5, opacity: 0.25 });
  svg.markLayer = () => layerMark.setAttribute("d", `M${x(state.layer)} ${top}V${height - bottom}`);
  svg.markLayer();
  svg.append(layerMark);
  for (const one of [...series].reverse()) svg.append(line(one, x, y));
  svg.addEventListener("click", ({ clientX }) => {
    const box = svg.getBoundingClientRect();
    const at = ((clientX - box.left) / box.width) * width;
    const layer = Math.round(((at - left) / (width - left - right)) * (nLayers() - 1));
    update({ layer: clamp(layer, 0, nLayers() - 1) });
  });
  return svg;
}

/** One series: lines between values that follow each other, dots at single ones. */
function line({ name, values, at = range(nLayers()), colour, dash, thin }, x, y) {
  const group = draw("g", {}, draw("title", {}, name));
  const known = (i) => values[i] !== null && values[i] !== undefined;
  let path = "";
  values.forEach((value, i) => {
    if (!known(i)) return;
    const [cx, cy] = [x(at[i]), y(value)];
    path += `${known(i - 1) ? "L" : "M"}${cx.toFixed(1)} ${cy.toFixed(1)}`;
    if (!known(i - 1) && !known(i + 1))
      group.append(draw("circle", { cx, cy, r: thin ? 1.2 : 2.2, fill: colour }));
  });
  const stroke = { d: path, fill: "none", stroke: colour, "stroke-width": thin ? 0.8 : 2 };
  group.append(draw("path", { ...stroke, "stroke-dasharray": dash, "stroke-linejoin": "round" }));
  return group;
}

/** The names of the series that have a colour, beside a piece of their line. */
function keysOf(series) {
  const keys = make("div", { className: "keys" });
  for (const { name, colour, dash } of series.filter((one) => !one.thin)) {
    const svg = draw("svg", { width: 22, height: 9, viewBox: "0 0 22 9" });
    svg.style.cssText = "display: inline; width: 22px; cursor: default";
    const stroke = { stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash };
    svg.append(draw("path", { d: "M1 4.5H21", ...stroke }));
    keys.append(make("span", {}, svg, ` ${name}`));
  }
  return keys;
}

/** The series of a cell: every token that is top-1 at some layer, the most probable in colour. */
function seriesOf(cell) {
  const at = keptAt(cell.prompt);
  const ids = [...new Set(at.map((layer) => top1(cell, layer)))];
  const series = ids.map((id) => ({
    id,
    at,
    name: label(id),
    probs: at.map((layer) => valueOf(cell, layer, [id])),
  }));
  series.sort((a, b) => Math.max(...b.probs) - Math.max(...a.probs));
  series.forEach((one, number) => {
    one.values =
      state.rank && !byEmbedding(cell.prompt)
        ? at.map((layer) => rankOf(cell, layer, one.id))
        : one.probs;
    one.thin = number >= LINES.length;
    one.colour = one.thin ? "#9aa4af" : LINES[number];
    one.dash = DASHES[number] ?? "";
  });
  return series;
}

const scaleOf = (cell) => (byEmbedding(cell.prompt) ? cosineScale() : probabilitiesOrRanks());

/** The route of the chosen prompt's answer: what patching another image's states does to it. */
function showRoute() {
  const { route, answer } = data.prompts[state.prompt];
  byId("route").hidden = !route;
  if (!route) return;
  if (showRoute.shown !== state.prompt) {
    showRoute.shown = state.prompt;
    const patched = { image: "image patches", question: "question", last: "last position" };
    const series = Object.entries(patched).map(([group, name], number) => {
      const [colour, dash] = [LINES[number], DASHES[number]];
      return { name, values: route[group], at: route.at, colour, dash };
    });
    const about = `Effect of patching one layer's states from ${route.other}: 0 is the own answer, 1 is “${route.other_answer}”.`;
    byId("route").replaceChildren(
      make("h3", {}, `Route of “${answer}”`),
      chart(series, 480, 110, EFFECTS),
      keysOf(series),
      make("div", { className: "soft" }, about),
    );
  }
  byId("route").querySelector("svg").markLayer();
}
