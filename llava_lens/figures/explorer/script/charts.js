// Charts over layers.

const FLOOR = 1e-4; // of charts of probabilities, and 1 over that of ranks

/**
 * A chart of `series` (`{ name, values [layer], colour, dash }`) over layers, logarithmic:
 * probabilities, or ranks. `markLayer` of it moves the mark to the layer shown.
 */
function chart(series, width = 300, height = 150, ranks = state.rank) {
  const [left, right, top, bottom] = [38, 8, 6, 18];
  const x = (layer) => left + ((width - left - right) * layer) / (nLayers() - 1);
  const y = (value) => {
    const p = ranks ? 1 / value : value;
    return (
      top + ((height - top - bottom) * Math.log10(clamp(p, FLOOR, 1))) / Math.log10(FLOOR)
    );
  };
  const text = { "font-size": 10.5, "font-family": "sans-serif", fill: "#5b6470" };
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  for (const p of [1, 0.1, 0.01, 0.001, FLOOR]) {
    const value = ranks ? Math.round(1 / p) : p;
    const name = p > FLOOR ? value : ranks ? `≥${value}` : "≤1e-4";
    svg.append(
      draw("path", { d: `M${left} ${y(value)}H${width - right}`, stroke: "#e3e7eb" }),
    );
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
  svg.markLayer = () =>
    layerMark.setAttribute("d", `M${x(state.layer)} ${top}V${height - bottom}`);
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

/** One series: lines between layers that follow each other, dots at single ones. */
function line({ name, values, colour, dash, thin }, x, y) {
  const group = draw("g", {}, draw("title", {}, name));
  const known = (layer) => values[layer] !== null && values[layer] !== undefined;
  let path = "";
  values.forEach((value, layer) => {
    if (!known(layer)) return;
    path += `${known(layer - 1) ? "L" : "M"}${x(layer).toFixed(1)} ${y(value).toFixed(1)}`;
    if (!known(layer - 1) && !known(layer + 1))
      group.append(
        draw("circle", { cx: x(layer), cy: y(value), r: thin ? 1.2 : 2.2, fill: colour }),
      );
  });
  const stroke = { d: path, fill: "none", stroke: colour, "stroke-width": thin ? 0.8 : 2 };
  group.append(
    draw("path", { ...stroke, "stroke-dasharray": dash, "stroke-linejoin": "round" }),
  );
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
  const ids = [...new Set(range(nLayers()).map((layer) => top1(cell, layer)))];
  const series = ids.map((id) => ({
    id,
    name: label(id),
    probs: range(nLayers()).map((layer) => probability(cell, layer, [id])),
  }));
  series.sort((a, b) => Math.max(...b.probs) - Math.max(...a.probs));
  series.forEach((one, at) => {
    one.values = state.rank
      ? range(nLayers()).map((layer) => rankOf(cell, layer, one.id))
      : one.probs;
    one.thin = at >= LINES.length;
    one.colour = one.thin ? "#9aa4af" : LINES[at];
    one.dash = DASHES[at] ?? "";
  });
  return series;
}
