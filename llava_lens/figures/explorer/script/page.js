// The page of one image: showing it, mouse, keys and controls.

const panes = [];

/** The last layer up to this one at which the patches can be shown. */
const shownAt = (layer) => keptAt(PATCHES).findLast((kept) => kept <= layer);

/** Go to the layer that can be shown after this one, or before it; at the ends stay. */
function step(by) {
  const at = keptAt(PATCHES);
  update({ layer: at[clamp(at.indexOf(state.layer) + by, 0, at.length - 1)] });
}

function show() {
  state.layer = shownAt(state.layer);
  const at = keptAt(PATCHES);
  Object.assign(byId("layer"), { max: at.length - 1, value: at.indexOf(state.layer) });
  byId("layer").ariaValueText = data.layers[state.layer];
  byId("layer-shown").textContent = `Layer ${data.layers[state.layer]} of ${data.layers.at(-1)}`;
  byId("least").value = state.least;
  byId("least-shown").textContent = `Shown from ${digits(10 ** state.least)}`;
  byId("least").disabled = byEmbedding(PATCHES); // its cosines are all shown
  byId("lens").value = state.lens;
  byId("prompt").value = state.prompt;
  byId("pane").value = state.pane;
  for (const name of SWITCHES) byId(name).checked = state[name];
  showLegend();
  drawPhoto();
  // Not put there anew each time, which would lose how far a text is scrolled.
  const second = data.prompts[state.pane] ? panes[1].element : null;
  if (state.pane === "grey") byId("second").replaceChildren(greyPane());
  else if (byId("second").firstChild !== second)
    byId("second").replaceChildren(...[second].filter(Boolean));
  panes[0].show(state.prompt);
  if (second) panes[1].show(state.pane);
  // A patch stays in view from layer to layer; a text may be another one now.
  preview(seen?.cell.prompt === PATCHES ? { ...seen, layer: state.layer } : null);
  showWord();
  showCommon();
  showPins();
  showRoute();
}

/** What the colours and marks mean. */
function showLegend() {
  const embedded = byEmbedding(PATCHES);
  const ofWord = `${whatIsShown()} per patch`;
  const inTexts = "In texts: the top-1, outlined where the word is kept";
  const shown = state.word.length ? ofWord : "Probability of the top-1 token";
  const cosine = state.word.length ? ofWord : "Cosine with the nearest input embedding";
  byId("scale-of").textContent = embedded
    ? `${cosine}, linear. A cosine is no probability. Read at ${keptAt(PATCHES).length} of ${nLayers()} layers. Texts keep the logit lens`
    : `${shown}, logarithmic${state.word.length ? `. ${inTexts}` : ""}`;
  const [least, most] = embedded ? cosineRange() : [];
  const at = (share) =>
    embedded
      ? (least + share * (most - least)).toFixed(2)
      : digits(10 ** (state.least * (1 - share)));
  byId("ticks").replaceChildren(...range(4).map((tick) => make("span", {}, at(tick / 3))));
  byId("top-k").textContent = topK(PATCHES);
  byId("times").textContent = embedded ? "1.2 times its median cosine" : "twice its median";
  byId("wordless").hidden = embedded;
  const n = data.sinks?.length;
  const sinks = `${n} sink${n === 1 ? "" : "s"}: patches whose states are far longer than the others' at most layers. Such patches often draw attention, whatever they show.`;
  byId("sinks").textContent = n === undefined ? "" : n ? `◥ ${sinks}` : "No sinks here.";
}

/** Step through the layers, from the first where the last is shown, or stop. */
function play() {
  const isStart = !play.timer;
  clearInterval(play.timer);
  const isLast = () => state.layer === shownAt(nLayers() - 1);
  const next = () => {
    step(1);
    if (isLast()) play();
  };
  play.timer = isStart ? setInterval(next, 500) : 0;
  byId("play").textContent = isStart ? "❚❚ Pause" : "▶ Play";
  if (isStart && isLast()) update({ layer: 0 });
}

/** Mouse and keys on a canvas of cells. `at(event)` finds what is under the mouse, `place` where
 * a cell is, `move` the cell that an arrow key leads to. */
function listen(canvas, marker, { at, place, move }) {
  let cursor = null;
  const hover = (target) => {
    cursor = target;
    preview(target && { ...target, place: place(target.cell, target.layer), marker });
  };
  const pin = ({ cell, layer }) => update({ pins: togglePin(cell), layer });
  canvas.addEventListener("mousemove", (event) => {
    const target = at(event);
    const same =
      target && cursor && sameCell(target.cell, cursor.cell) && target.layer === cursor.layer;
    if (!same) hover(target);
  });
  canvas.addEventListener("mouseleave", () => hover(null));
  // So that the arrow keys go on moving through the layers after a click.
  canvas.addEventListener("mousedown", (event) => {
    event.preventDefault();
    window.focus(); // in a notebook the keys would go to the notebook
  });
  canvas.addEventListener("click", (event) => at(event) && pin(at(event)));
  canvas.addEventListener("blur", () => hover(null));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (step[event.key]) hover(move(cursor, ...step[event.key]));
    else if (event.key === "Enter" && cursor) {
      const target = cursor; // pinning clears the cursor
      pin(target);
      hover(target);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

function listenToPhoto() {
  const [rows, columns] = data.grid;
  const cellAt = (column, row) => {
    const pos = clamp(row, 0, rows - 1) * columns + clamp(column, 0, columns - 1);
    return { cell: { prompt: PATCHES, pos }, layer: state.layer };
  };
  listen(byId("photo"), byId("photo-marker"), {
    at: ({ offsetX, offsetY }) =>
      cellAt(...[offsetX, offsetY].map((at) => Math.floor(at / patchSide()))),
    place: ({ pos }) => [...patchCorner(pos, patchSide()), patchSide(), patchSide()],
    move: (cursor, dx, dy) => {
      if (!cursor) return cellAt(0, 0);
      const { pos } = cursor.cell;
      return cellAt((pos % columns) + dx, Math.floor(pos / columns) + dy);
    },
  });
}

function listenToText(pane) {
  listen(pane.canvas, pane.marker, {
    at: pane.at,
    place: pane.place,
    move: (cursor, dx, dy) => {
      const { prompt } = pane;
      const first = {
        cell: { prompt, pos: data.prompts[prompt].n_prompt - 1 },
        layer: state.layer,
      };
      const { cell, layer } = cursor ?? first;
      const pos = clamp(cell.pos + (cursor ? dx : 0), 0, positionsOf(prompt) - 1);
      const [left] = pane.corner(pos, 0);
      const { scroller } = pane;
      scroller.scrollLeft = clamp(
        scroller.scrollLeft,
        left + pane.columnWidth - scroller.clientWidth,
        left - SIDE,
      );
      return { cell: { prompt, pos }, layer: clamp(layer - (cursor ? dy : 0), 0, nLayers() - 1) };
    },
  });
}

/** What every prompt is called in the two lists. */
function promptOptions() {
  return data.prompts.map(({ short, answer }, number) => {
    const text = `${number}: ${short} → ${answer}`;
    return make("option", { value: number }, text.length > 90 ? `${text.slice(0, 89)}…` : text);
  });
}

function listenToControls() {
  byId("layer").addEventListener("input", ({ target: { value } }) =>
    update({ layer: keptAt(PATCHES)[value] }),
  );
  const events = {
    least: "input",
    prompt: "change",
    pane: "change",
    lens: "change",
  };
  for (const [name, event] of Object.entries(events))
    byId(name).addEventListener(event, ({ target: { value } }) =>
      update({ [name]: value === "" || isNaN(value) ? value : Number(value) }),
    );
  for (const name of SWITCHES)
    byId(name).addEventListener("change", ({ target }) => update({ [name]: target.checked }));
  byId("search").addEventListener("input", showFound);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") byId("found").querySelector("button")?.click();
  });
  byId("save-picture").onclick = savePicture;
  byId("save-numbers").onclick = saveNumbers;
  byId("save-data").onclick = saveData;
  byId("play").onclick = play;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === " " && !event.target.closest("a, button, select, input:not([type=range])")) {
      event.preventDefault(); // which would scroll
      if (!event.repeat) play();
    }
    if (event.target.closest("input, select, canvas")) return;
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  window.addEventListener("resize", () => {
    measureRoom();
    preview(null);
    show();
  });
  window.addEventListener("hashchange", () => {
    readAddress();
    show();
  });
}

async function showImage() {
  document.title = `${data.name}: logit lens`;
  for (const id of Object.keys(data.tokens).map(Number)) {
    const name = bare(id).toLowerCase();
    spellings.set(id, name);
    groups.has(name) ? groups.get(name).push(id) : groups.set(name, [id]);
  }
  await preparePhoto();
  byId("name").textContent = byId("name").title = data.name;
  byId("model").textContent = data.model;
  byId("all-images").hidden = data.alone === true; // there is no index beside it
  byId("address").hidden = framed;
  byId("lens-label").hidden = !data.embedding;
  byId("prompt").append(...promptOptions());
  const grey = make("option", { value: "grey" }, "the same with a grey image");
  byId("pane").append(make("option", { value: "" }, "nothing"), grey, ...promptOptions());
  byId("bar").hidden = byId("explorer").hidden = false;
  measureRoom();
  panes.push(makeTextPane(), makeTextPane());
  byId("texts").append(panes[0].element);
  readAddress();
  show();
  listenToControls();
  listenToPhoto();
  panes.forEach(listenToText);
}
