// The page of one image: showing it, mouse, keys and controls.

const panes = [];

function show() {
  byId("layer").value = state.layer;
  byId("layer-shown").textContent =
    `Layer ${data.layers[state.layer]} of ${data.layers.at(-1)}`;
  byId("least").value = state.least;
  byId("least-shown").textContent = `Shown from ${digits(10 ** state.least)}`;
  byId("prompt").value = state.prompt;
  byId("pane").value = state.pane;
  for (const name of ["boxes", "grey", "fade", "rank"]) byId(name).checked = state[name];
  byId("scale-of").textContent = state.word.length
    ? `P(${wordName()}) per patch, logarithmic. In texts: the top-1, outlined where the word is kept`
    : "Probability of the top-1 token, logarithmic";
  const ticks = range(4).map((at) =>
    make("span", {}, digits(10 ** (state.least * (1 - at / 3)))),
  );
  byId("ticks").replaceChildren(...ticks);
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
  canvas.addEventListener("mousedown", (event) => event.preventDefault());
  canvas.addEventListener("click", (event) => at(event) && pin(at(event)));
  canvas.addEventListener("blur", () => hover(null));
  canvas.addEventListener("keydown", (event) => {
    const step = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    };
    if (step[event.key]) hover(move(cursor, ...step[event.key]));
    else if ((event.key === "Enter" || event.key === " ") && cursor) {
      const target = cursor; // pinning clears the cursor
      pin(target);
      hover(target);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

function listenToPhoto() {
  const last = data.grid.map((n) => n - 1);
  const cellAt = (row, column) => {
    const pos = clamp(row, 0, last[0]) * data.grid[1] + clamp(column, 0, last[1]);
    return { cell: { prompt: PATCHES, pos }, layer: state.layer };
  };
  listen(byId("photo"), byId("photo-marker"), {
    at: ({ offsetX, offsetY }) => {
      const [, , width, height] = placeOf(0, room.photo);
      return cellAt(Math.floor(offsetY / height), Math.floor(offsetX / width));
    },
    place: ({ pos }) => placeOf(pos, room.photo),
    move: (cursor, dx, dy) => {
      const [row, column] = rowAndColumn(cursor?.cell.pos ?? 0);
      return cursor ? cellAt(row + dy, column + dx) : cellAt(row, column);
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
      return {
        cell: { prompt, pos },
        layer: clamp(layer - (cursor ? dy : 0), 0, nLayers() - 1),
      };
    },
  });
}

/** What every prompt is called in the two lists. */
function promptOptions() {
  return data.prompts.map(({ short, answer }, number) => {
    const text = `${number}: ${short} → ${answer}`;
    return make(
      "option",
      { value: number },
      text.length > 90 ? `${text.slice(0, 89)}…` : text,
    );
  });
}

function listenToControls() {
  const number = (value) => (value === "" || value === "grey" ? value : Number(value));
  byId("layer").addEventListener("input", ({ target }) =>
    update({ layer: Number(target.value) }),
  );
  byId("least").addEventListener("input", ({ target }) =>
    update({ least: Number(target.value) }),
  );
  byId("prompt").addEventListener("change", ({ target }) =>
    update({ prompt: number(target.value) }),
  );
  byId("pane").addEventListener("change", ({ target }) =>
    update({ pane: number(target.value) }),
  );
  for (const name of ["boxes", "grey", "fade", "rank"])
    byId(name).addEventListener("change", ({ target }) => update({ [name]: target.checked }));
  byId("search").addEventListener("input", showFound);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") byId("found").querySelector("button")?.click();
  });
  byId("save-picture").onclick = savePicture;
  byId("save-numbers").onclick = saveNumbers;
  document.addEventListener("keydown", (event) => {
    if (
      event.target.closest("input, select, canvas") ||
      event.ctrlKey ||
      event.altKey ||
      event.metaKey
    )
      return;
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    update({ layer: clamp(state.layer + step, 0, nLayers() - 1) });
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
  byId("top-k").textContent = data.top_k;
  byId("layer").max = nLayers() - 1;
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
