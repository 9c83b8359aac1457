// Cards: the cell under the mouse, and the pinned ones.

function cellTitle(cell) {
  if (cell.prompt === PATCHES) {
    const columns = data.grid[1];
    const [row, column] = [Math.floor(cell.pos / columns), cell.pos % columns];
    const sink = data.sinks?.includes(cell.pos) ? " (sink)" : "";
    return `Patch row ${row + 1}, column ${column + 1}${sink}`;
  }
  const { token_ids, n_prompt } = data.prompts[cell.prompt];
  const part = cell.pos < n_prompt ? "" : " (answer)";
  return `Prompt ${cell.prompt}, position ${cell.pos + 1}${part}: ${label(token_ids[cell.pos])}`;
}

/** What a card holds; `number` is that of a pin. */
function partsOf(cell, layer, number) {
  const title = make("h3");
  if (number !== undefined) title.append(make("span", { className: "badge" }, `${number + 1}`));
  title.append(make("span", { role: "status" }, cellTitle(cell)));
  if (number !== undefined) {
    const unpin = make("button", { ariaLabel: `Unpin ${cellTitle(cell)}`, title: "Unpin" }, "×");
    unpin.onclick = () => update({ pins: togglePin(cell) });
    title.append(unpin);
  }
  const series = seriesOf(cell);
  const left = make("div", {}, chart(series, 300, 150, scaleOf(cell)), keysOf(series));
  return [title, make("div", { className: "halves" }, left, topList(cell, layer))];
}

function topList(cell, layer) {
  const what = byEmbedding(cell.prompt) ? "cosine" : "probability";
  const name = make("div", { className: "soft" }, `layer ${data.layers[layer]}, ${what}`);
  return make("div", {}, name, make("ol", {}, ...rowsOf(cell, layer)));
}

const cards = new WeakMap(); // of pinned cells: from layer to layer little of one changes

function pinCard(cell, number) {
  const key = `${number} ${state.rank} ${byEmbedding(cell.prompt)}`;
  let card = cards.get(cell);
  if (card?.dataset.key === key) {
    card.lastChild.lastChild.replaceWith(topList(cell, state.layer));
  } else {
    card = make("div", { className: "card" }, ...partsOf(cell, state.layer, number));
    card.dataset.key = key;
    cards.set(cell, card);
  }
  card.querySelector("svg").markLayer();
  return card;
}

/** The top-k as rows; tokens that are spelt alike stand under the sum of them. */
function rowsOf(cell, layer) {
  const [bySpelling, embedded] = [new Map(), byEmbedding(cell.prompt)];
  for (const token of topOf(cell, layer)) {
    const name = spelling(token.id);
    bySpelling.set(name, [...(bySpelling.get(name) ?? []), token]);
  }
  const row = (name, p, className) => {
    const bar = make("span", { className: "bar" });
    bar.style.width = `${100 * shade(p, embedded)}%`;
    const value = make("span", {}, shownAs(p, embedded));
    const parts = [make("span", { className: "label" }, name), value];
    return make("li", { className, title: name }, bar, ...parts);
  };
  if (embedded) return topOf(cell, layer).map(({ id, p }) => row(label(id), p, "numbers"));
  const sum = (tokens) => tokens.reduce((total, { p }) => total + p, 0);
  return [...bySpelling]
    .sort(([, a], [, b]) => sum(b) - sum(a))
    .flatMap(([name, tokens]) => {
      const rows = tokens.map(({ id, p }) => row(label(id), p, "numbers"));
      if (tokens.length === 1) return rows;
      for (const one of rows) one.className = "numbers spelling";
      return [row(`${name}, ${tokens.length} spellings`, sum(tokens), "numbers"), ...rows];
    });
}

let seen = null; // what the mouse or the keys are at: `{ cell, layer, place, marker }`

/** The position at which the chosen prompt's answer is read. */
function answerCell() {
  const { n_prompt, word_at } = data.prompts[state.prompt];
  return { prompt: state.prompt, pos: n_prompt - 1 + word_at };
}

/** Show a cell as a preview, and mark it at its place; null: where the answer is read. */
function preview(hovered) {
  seen = hovered;
  for (const one of document.querySelectorAll(".marker")) one.hidden = one !== hovered?.marker;
  if (hovered) {
    const [left, top, width, height] = hovered.place.map((length) => `${length}px`);
    Object.assign(hovered.marker.style, { left, top, width, height });
  }
  const hint = "Where the answer is read. Hover over a patch or a text cell to look into it.";
  const { cell, layer } = hovered ?? { cell: answerCell(), layer: state.layer };
  const now = [!hovered, cellName(cell), state.rank, state.lens].join();
  if (now === preview.shown) {
    // From layer to layer little changes.
    byId("preview").querySelector(".halves").lastChild.replaceWith(topList(cell, layer));
    byId("preview").querySelector("svg").markLayer();
    return;
  }
  preview.shown = now;
  const note = hovered ? [] : [make("div", { className: "soft" }, hint)];
  byId("preview").replaceChildren(...partsOf(cell, layer), ...note);
}

function showPins() {
  const wanted = state.pins.map(pinCard);
  const there = [...byId("pins").children];
  if (wanted.length !== there.length || wanted.some((card, at) => card !== there[at]))
    byId("pins").replaceChildren(...wanted);
}
