// Cards: the cell under the mouse, and the pinned ones.

function cellTitle(cell) {
  if (cell.prompt === PATCHES) {
    const [row, column] = rowAndColumn(cell.pos);
    return `Patch row ${row + 1}, column ${column + 1}`;
  }
  const { token_ids, n_prompt } = data.prompts[cell.prompt];
  const part = cell.pos < n_prompt ? "" : " (answer)";
  return `Prompt ${cell.prompt}, position ${cell.pos + 1}${part}: ${label(token_ids[cell.pos])}`;
}

/** What a card holds; `number` is that of a pin. */
function partsOf(cell, layer, number) {
  const title = make("h3");
  if (number !== undefined)
    title.append(make("span", { className: "badge" }, `${number + 1}`));
  title.append(make("span", { role: "status" }, cellTitle(cell)));
  if (number !== undefined) {
    const unpin = make(
      "button",
      { ariaLabel: `Unpin ${cellTitle(cell)}`, title: "Unpin" },
      "×",
    );
    unpin.onclick = () => update({ pins: togglePin(cell) });
    title.append(unpin);
  }
  const series = seriesOf(cell);
  const left = make("div", {}, chart(series), keysOf(series));
  return [title, make("div", { className: "halves" }, left, topList(cell, layer))];
}

function topList(cell, layer) {
  const name = make("div", { className: "soft" }, `layer ${data.layers[layer]}`);
  return make("div", {}, name, make("ol", {}, ...rowsOf(cell, layer)));
}

const cards = new WeakMap(); // of pinned cells: from layer to layer little of one changes

function pinCard(cell, number) {
  const key = `${number} ${state.rank}`;
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
  const bySpelling = new Map();
  for (const token of topOf(cell, layer)) {
    const name = spelling(token.id);
    bySpelling.set(name, [...(bySpelling.get(name) ?? []), token]);
  }
  const row = (name, p, className) => {
    const bar = make("span", { className: "bar" });
    bar.style.width = `${100 * shade(p)}%`;
    const parts = [make("span", { className: "label" }, name), make("span", {}, digits(p))];
    return make("li", { className, title: name }, bar, ...parts);
  };
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

let seen = null; // what the preview shows: `{ cell, layer, place, marker }`

/** Show a cell as a preview, and mark it at its place; null: none. */
function preview(hovered) {
  seen = hovered;
  for (const one of document.querySelectorAll(".marker")) one.hidden = one !== hovered?.marker;
  if (hovered) {
    const [left, top, width, height] = hovered.place.map((length) => `${length}px`);
    Object.assign(hovered.marker.style, { left, top, width, height });
  }
  const hint = "Hover over a patch or a text cell to look into it; click to pin it.";
  byId("preview").replaceChildren(
    ...(hovered ? partsOf(hovered.cell, hovered.layer) : [make("p", { className: "soft" }, hint)]),
  );
}

function showPins() {
  const wanted = state.pins.map(pinCard);
  const there = [...byId("pins").children];
  if (wanted.length !== there.length || wanted.some((card, at) => card !== there[at]))
    byId("pins").replaceChildren(...wanted);
}
