// What can be saved: a picture, the numbers shown, and all data of the page.

function save(blob, ending) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: `${data.name}${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const ofLayer = () => `_layer_${data.layers[state.layer]}`;

/** An SVG element as an image. */
async function pictureOf(svg) {
  const image = new Image();
  const text = new XMLSerializer().serializeToString(svg);
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  return image;
}

/** The photograph, the pins' charts beside it, and the texts below, each under its title. */
async function savePicture() {
  const ratio = window.devicePixelRatio || 1;
  const [photograph, space] = [byId("photo"), 30 * ratio];
  const texts = [[state.prompt, panes[0].canvas]];
  if (data.prompts[state.pane]) texts.push([state.pane, panes[1].canvas]);
  const svgs = [...document.querySelectorAll("#pins .card > .halves > div > svg:first-child")];
  const charts = await Promise.all(svgs.map(pictureOf));
  const [chartWidth, chartHeight] = [300 * ratio, 150 * ratio];
  const picture = make("canvas");
  const beside = photograph.width + (charts.length ? chartWidth + 160 * ratio : 0);
  const besideHeight = charts.length * (chartHeight + space);
  picture.width = Math.max(beside, ...texts.map(([, { width }]) => width), 900 * ratio);
  const below = space + Math.max(photograph.height, besideHeight);
  picture.height = texts.reduce((sum, [, { height }]) => sum + height + space, below);
  const context = picture.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, picture.width, picture.height);
  context.fillStyle = "#000";
  context.font = `${13 * ratio}px ${FONT}`;
  context.textBaseline = "middle";
  const write = (text, x, y) => context.fillText(text, x + 8 * ratio, y + space / 2);
  const scale = byEmbedding(PATCHES)
    ? `colours linear: cosines from ${cosineRange()
        .map((cosine) => cosine.toFixed(2))
        .join(" to ")}`
    : `colours logarithmic from ${digits(10 ** state.least)} (none) to 1`;
  const what = `${whatIsShown()} per patch, ${scale}`;
  write(`${data.name}, layer ${data.layers[state.layer]}: ${what}`, 0, 0);
  context.drawImage(photograph, 0, space);
  charts.forEach((chart, number) => {
    const [x, y] = [photograph.width + 12 * ratio, space + number * (chartHeight + space)];
    write(`${number + 1}: ${cellTitle(state.pins[number])}`, x, y);
    context.drawImage(chart, x, y + space, chartWidth, chartHeight);
    seriesOf(state.pins[number]).forEach(({ name, colour, thin }, at) => {
      if (thin) return;
      context.fillStyle = colour;
      write(name, x + chartWidth, y + space + (at * 16 - 2) * ratio);
    });
    context.fillStyle = "#000";
  });
  let y = below;
  for (const [prompt, canvas] of texts) {
    write(`${data.prompts[prompt].question} → ${data.prompts[prompt].answer}`, 0, y);
    context.drawImage(canvas, 0, y + space);
    y += canvas.height + space;
  }
  picture.toBlob((blob) => save(blob, `${ofLayer()}.png`));
}

/** The numbers that are shown: patches and text at their layers, the pins' top-k, the word. */
function saveNumbers() {
  const rows = ["shown,prompt,position,layer,rank,token_id,token,probability,cosine".split(",")];
  const add = (shown, cell, layer, rank, ids, token, p) => {
    const prompt = cell.prompt === PATCHES ? "" : cell.prompt;
    const name = data.layers[layer];
    const value = p ?? "not kept";
    const values = byEmbedding(cell.prompt) ? ["", value] : [value, ""];
    rows.push([shown, prompt, cell.pos, name, rank, ids, token, ...values]);
  };
  const addTop = (shown, cell, layer, n) =>
    topOf(cell, layer)
      .slice(0, n)
      .forEach(({ id, p }, k) => add(shown, cell, layer, k + 1, id, label(id), p));
  for (const cell of allPatches()) {
    addTop("patch", cell, state.layer, 1);
    if (state.word.length) {
      const p = valueOf(cell, state.layer, state.word);
      add("word", cell, state.layer, "", state.word.join("+"), wordName(), p);
    }
  }
  const shown = [state.prompt, state.pane].filter((prompt) => data.prompts[prompt]);
  for (const prompt of new Set(shown))
    for (const pos of range(positionsOf(prompt)))
      for (const layer of range(nLayers())) addTop("text", { prompt, pos }, layer, 1);
  for (const cell of state.pins)
    for (const layer of keptAt(cell.prompt)) addTop("pin", cell, layer, Infinity);
  // A spreadsheet would take a token like =1+1 for a formula.
  const safe = (value) =>
    /^[=+\-@]/.test(value) && typeof value === "string" ? `'${value}` : value;
  const quoted = (value) => `"${String(safe(value)).replaceAll('"', '""')}"`;
  const csv = rows.map((row) => row.map(quoted).join(",")).join("\r\n");
  save(new Blob(["\ufeff", csv], { type: "text/csv" }), `${ofLayer()}.csv`);
}

/** All that the page holds, as JSON: `load_page_data` of the explorer in Python reads it. */
function saveData() {
  // Five digits tell all numbers of float16 apart.
  const short = (number) => (Number.isInteger(number) ? number : Number(number.toPrecision(5)));
  const nested = (numbers, [length, ...inner], from = 0) => {
    const step = inner.reduce((product, one) => product * one, 1);
    return range(length).map((i) =>
      inner.length ? nested(numbers, inner, from + i * step) : short(numbers[from + i]),
    );
  };
  const text = JSON.stringify(data, (key, value) => {
    if (!value?.shape) return value;
    if (key !== "crop") return nested(value, value.shape);
    return btoa(Array.from(value, (byte) => String.fromCharCode(byte)).join(""));
  });
  save(new Blob([text], { type: "application/json" }), ".json");
}
