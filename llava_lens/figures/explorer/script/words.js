// Words: search, and those that are common at the layer.

/** What stands before a word in brackets. */
const nameOfValue = () => (byEmbedding(PATCHES) ? "cosine" : "P");

function wordName() {
  const watched = watchedBy(state.word);
  if (watched) return watched.category;
  const names = new Set(state.word.map(spelling));
  return names.size === 1 && state.word.length > 1
    ? [...names][0]
    : state.word.map(label).join(" + ");
}

/** Up to 12 things that a query can mean: `{ name, about, ids }`, exact ones first. */
function searchFor(query) {
  const wanted = query.trim().toLowerCase();
  if (!wanted) return [];
  const order = (name) => (name === wanted ? 0 : name.startsWith(wanted) ? 1 : 2);
  const watched = data.words
    .filter(({ category }) => category.toLowerCase().includes(wanted))
    .map(({ category, token_ids, present }) => {
      const there = present ? "exact" : "exact; not annotated";
      return { name: category, about: there, ids: token_ids, order: order(category) - 0.5 };
    });
  const found = [];
  for (const [name, ids] of groups) {
    if (!name.includes(wanted)) continue;
    if (ids.length > 1)
      found.push({ name, about: `${ids.length} spellings`, ids, order: order(name) });
    for (const id of ids)
      found.push({ name: label(id), about: `id ${id}`, ids: [id], order: order(name) + 0.1 });
  }
  const all = [...watched, ...found].sort(
    (a, b) => a.order - b.order || a.name.length - b.name.length,
  );
  return all.slice(0, 12);
}

function showFound() {
  const found = searchFor(byId("search").value).map(({ name, about, ids }) => {
    const button = make(
      "button",
      {},
      make("span", {}, name),
      make("span", { className: "soft" }, about),
    );
    button.onclick = () => {
      byId("search").value = "";
      showFound();
      update({ word: ids });
    };
    return make("li", {}, button);
  });
  byId("found").replaceChildren(...found);
}

/** The largest value of a word over all patches [`keptAt`], null where none kept it. */
function largestOf(ids) {
  largestOf.known ??= new Map();
  const key = [state.lens, ...ids].join();
  if (!largestOf.known.has(key)) {
    const largest = keptAt(PATCHES).map((layer) => {
      const kept = allPatches().map((cell) => valueOf(cell, layer, ids));
      return kept.every((p) => p === null) ? null : Math.max(...kept);
    });
    largestOf.known.set(key, largest);
  }
  return largestOf.known.get(key);
}

/** The word that was searched for, or what can be: in words, and as curves over layers. */
function showWord() {
  const now = [state.lens, state.word, state.pins.map(cellName)].join();
  byId("word-chart").hidden = !state.word.length;
  if (now !== showWord.shown) {
    showWord.shown = now;
    byId("word-shown").replaceChildren(...aboutWord());
    if (state.word.length) byId("word-chart").replaceChildren(...wordCurves());
  }
  byId("word-chart").querySelector("svg")?.markLayer();
}

function aboutWord() {
  if (!state.word.length) {
    const watched = data.words.map(({ category }) => category).join(", ");
    return watched ? [`Exact at every patch: ${watched}.`] : [];
  }
  const clear = make("button", {}, "Show top-1 again");
  clear.onclick = () => update({ word: [] });
  const labels = state.word.map(label).join(" + ");
  const word = watchedBy(state.word);
  const exact = byEmbedding(PATCHES) ? word?.cosines : word;
  const text = exact
    ? `${nameOfValue()}(${labels}), exact at every patch. `
    : `${nameOfValue()}(${labels}), what the top-${topK(PATCHES)} kept of it: hatched patches kept none, which is not 0. `;
  return [make("b", {}, wordName()), ": ", text, clear];
}

function wordCurves() {
  const [values, at] = [largestOf(state.word), keptAt(PATCHES)];
  const series = [{ name: "largest of all patches", values, at, colour: LINES[0], dash: "" }];
  state.pins.slice(0, LINES.length - 1).forEach((cell, number) => {
    if (byEmbedding(PATCHES) !== byEmbedding(cell.prompt)) return; // a text has no cosines
    const values = at.map((layer) => valueOf(cell, layer, state.word));
    const [colour, dash] = [LINES[number + 1], DASHES[number + 1]];
    series.push({ name: `pin ${number + 1}`, values, at, colour, dash });
  });
  const scale = byEmbedding(PATCHES) ? cosineScale() : PROBABILITIES; // a sum has no rank
  const picture = chart(series, 480, 140, scale);
  const title = `${nameOfValue()}(${wordName()}) over layers`;
  return [make("h3", {}, title), picture, keysOf(series)];
}

/** The top-1 words of the patches at the layer, by the number of patches. */
function showCommon() {
  const byName = new Map();
  for (const cell of allPatches()) {
    const [{ id, p }] = topOf(cell, state.layer);
    const name = spelling(id);
    const one = byName.get(name) ?? { id, patches: 0, most: -1 };
    byName.set(name, { id: one.id, patches: one.patches + 1, most: Math.max(one.most, p) });
  }
  const sorted = [...byName].sort(([, a], [, b]) => b.patches - a.patches || b.most - a.most);
  const buttons = sorted.slice(0, 25).map(([name, { id, patches, most }]) => {
    const shown = shownAs(most, byEmbedding(PATCHES));
    const count = `${patches} × ≤ ${shown}`;
    const button = make(
      "button",
      {},
      make("span", {}, name),
      make("span", { className: "numbers" }, count),
    );
    button.title = `${name}: top-1 in ${patches} patches, at most ${shown}. Click: show it everywhere.`;
    if (isCommon(state.layer, { id, p: most })) button.className = "everywhere";
    button.onclick = () => update({ word: groups.get(name) });
    return button;
  });
  byId("common").replaceChildren(...buttons);
}
