// A text as layers x positions.

const HEAD = 84; // above the cells: the input tokens
const SIDE = 38; // left of the cells: the layers

/** One pane with the text of a prompt; `show(number)` draws it. */
function makeTextPane() {
  const heading = make("div");
  const canvas = make("canvas", { tabIndex: 0, role: "img" });
  const marker = make("div", { className: "marker", hidden: true });
  const layers = make("div", { className: "layers" });
  const nowRow = make("div", { className: "now-row" });
  const scroller = make("div", { className: "scroller" }, layers, canvas, nowRow, marker);
  const element = make("section", {}, heading, scroller);
  const pane = { element, canvas, marker, scroller, prompt: 0, rowHeight: 22, columnWidth: 46 };
  let drawn = "";

  pane.corner = (pos, layer) => [
    SIDE + pos * pane.columnWidth,
    HEAD + (nLayers() - 1 - layer) * pane.rowHeight,
  ];
  pane.show = (number) => {
    pane.prompt = number;
    const now = [number, room.text, state.least, state.word, state.pins.map(cellName)].join();
    if (now !== drawn) {
      const isNew = !drawn.startsWith(`${number},`);
      drawn = now;
      const width = (room.text - SIDE - 4) / positionsOf(number);
      pane.rowHeight = nLayers() > 12 ? 17 : 22;
      pane.columnWidth = Math.floor(clamp(width, 46, 84));
      heading.replaceChildren(...aboutPrompt(number));
      drawText(pane);
      layers.replaceChildren(...range(nLayers()).map(layerName));
      nowRow.style.left = `${SIDE}px`;
      nowRow.style.width = `${positionsOf(number) * pane.columnWidth}px`;
      nowRow.style.height = `${pane.rowHeight + 2}px`;
      // The answer is what most come for.
      const [answer] = pane.corner(data.prompts[number].n_prompt, 0);
      if (isNew) scroller.scrollLeft = answer - 0.7 * room.text;
    }
    nowRow.style.top = `${pane.corner(0, state.layer)[1] - 1}px`;
    layers.querySelector(".now")?.classList.remove("now");
    layers.children[state.layer].classList.add("now");
  };
  const layerName = (layer) => {
    const name = make("span", {}, data.layers[layer]);
    name.style.top = `${pane.corner(0, layer)[1]}px`;
    name.style.lineHeight = `${pane.rowHeight}px`;
    return name;
  };
  /** The cell and layer under the mouse, or null. */
  pane.at = ({ offsetX, offsetY }) => {
    const pos = Math.floor((offsetX - SIDE) / pane.columnWidth);
    const layer = nLayers() - 1 - Math.floor((offsetY - HEAD) / pane.rowHeight);
    const inside = pos >= 0 && pos < positionsOf(pane.prompt) && layer >= 0 && layer < nLayers();
    return inside ? { cell: { prompt: pane.prompt, pos }, layer } : null;
  };
  pane.place = (cell, layer) => [...pane.corner(cell.pos, layer), pane.columnWidth, pane.rowHeight];
  return pane;
}

function aboutPrompt(number) {
  const { kind, question, answer, truth, right, layers } = data.prompts[number];
  const parts = [make("h2", {}, `Text: ${question}`)];
  const line = make("p", { className: "row" }, make("span", { className: "soft" }, kind));
  line.append(make("span", {}, "answer ", make("b", {}, answer || "(nothing)")));
  line.append(truthOf({ truth, right }), layersOf(layers));
  return [...parts, line];
}

/** The layers of an answer; what they mean appears under the mouse. */
function layersOf(layers) {
  const title =
    "Readable: from this layer on the lens reads the answer. Leaves image: from here on patching the image's patches moves it less than halfway. Handed over: from here on the last position alone decides it. Mediated: how much of it goes through the question (0 to 1).";
  return make("span", { className: "soft", title }, layers);
}

/** Right, wrong or unknown, in words and not by colour alone. */
function truthOf({ truth, right }) {
  if (right === null) {
    const why = truth === null ? "truth unknown" : `not gradable, truth: ${truth}`;
    return make("span", { className: "soft" }, why);
  }
  if (right) return make("span", { className: "right" }, "✓ right");
  return make("span", { className: "wrong" }, `✗ wrong, truth: ${truth}`);
}

function drawText(pane) {
  const { prompt, columnWidth: width, rowHeight: height } = pane;
  const { token_ids, n_prompt, question } = data.prompts[prompt];
  const n = token_ids.length;
  const context = fit(pane.canvas, SIDE + n * width + 60, HEAD + nLayers() * height + 4);
  context.textBaseline = "middle";
  for (const pos of range(n)) {
    for (const layer of range(nLayers())) drawTextCell(context, pane, { prompt, pos }, layer);
    const answer = pos >= n_prompt;
    context.save();
    context.translate(SIDE + (pos + 0.4) * width, HEAD - 6);
    context.rotate(-0.7);
    context.fillStyle = "#1b1f24";
    context.font = `${answer ? "700" : "400"} 12px ${FONT}`;
    context.textAlign = "left";
    context.fillText(shorten(context, label(token_ids[pos]), 92), 0, 0);
    context.restore();
  }
  context.font = `11px ${FONT}`;
  context.textAlign = "right";
  for (const layer of range(nLayers()))
    context.fillText(data.layers[layer], SIDE - 6, pane.corner(0, layer)[1] + pane.rowHeight / 2);
  const [x] = pane.corner(n_prompt, 0);
  context.fillStyle = MARK;
  context.fillRect(x - 2, HEAD - 4, 4, nLayers() * height + 8);
  if (n > n_prompt) {
    context.font = `700 11px ${FONT}`;
    context.textAlign = "left";
    context.fillText("answer ▸", x - 2, HEAD - 76);
  }
  state.pins.forEach((cell, number) => {
    if (cell.prompt !== prompt) return;
    const [left, top] = pane.corner(cell.pos, nLayers() - 1);
    drawBadge(context, left, top, width, nLayers() * height, number);
  });
  pane.canvas.ariaLabel = `Top-1 token per layer and position of: ${question}`;
}

function drawTextCell(context, pane, cell, layer) {
  const [x, y] = pane.corner(cell.pos, layer);
  const { columnWidth: width, rowHeight: height } = pane;
  const top = topOf(cell, layer)[0];
  context.fillStyle = heat(top.p);
  context.fillRect(x, y, width, height);
  if (state.word.length && topOf(cell, layer).some(({ id }) => state.word.includes(id))) {
    context.strokeStyle = MARK;
    context.lineWidth = 2;
    context.strokeRect(x + 1.5, y + 1.5, width - 3, height - 3);
  }
  context.font = `11px ${FONT}`;
  context.textAlign = "center";
  context.fillStyle = top.p < 10 ** state.least ? "#9aa1a9" : "#000";
  const text = shorten(context, label(top.id), width * 1.25);
  context.fillText(text, x + width / 2, y + height / 2 + 0.5, width - 4);
}

/** In place of a second text: the token that begins the answer's word, with the image and with a grey one. */
function greyPane() {
  const { grey, n_prompt, answer_ids, word_at } = data.prompts[state.prompt];
  const cell = { prompt: state.prompt, pos: n_prompt - 1 + word_at };
  const id = answer_ids[word_at];
  const own = range(nLayers()).map((layer) =>
    state.rank ? rankOf(cell, layer, id) : valueOf(cell, layer, [id]),
  );
  const other = [...(state.rank ? grey.target_rank : grey.target_log2.map((log2) => 2 ** log2))];
  const series = [
    { name: "with the image", values: own, colour: LINES[0], dash: "" },
    { name: "with a plain grey image", values: other, colour: LINES[1], dash: "6 3" },
  ];
  return make(
    "section",
    {},
    make("h2", {}, `Seen or guessed: the answer's token ${label(id)}`),
    make(
      "p",
      { className: "soft" },
      "Read at the position before it. Of the grey image only this token was kept.",
    ),
    chart(series, 760, 190),
    keysOf(series),
  );
}
