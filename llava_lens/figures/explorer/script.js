"use strict";

// -----------------------------------------------------------------------------------------
// Small helpers
// -----------------------------------------------------------------------------------------

const byId = (id) => document.getElementById(id);

/** An element with properties and children; texts become text nodes, never markup. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** An SVG element with attributes and children. */
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const range = (n) => Array.from({ length: n }, (_, i) => i);
const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

/** A probability with two digits that mean something. */
function digits(p) {
  if (p === null) return "not kept";
  if (p === 0) return "<1e-7"; // in float16
  return p >= 0.0995 ? p.toFixed(2) : p >= 0.001 ? p.toPrecision(2) : p.toExponential(0);
}

// -----------------------------------------------------------------------------------------
// The data
// -----------------------------------------------------------------------------------------

const INTEGERS = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };

/** float16 to numbers, through a table of all of them (browsers before 2025 lack Float16Array). */
function fromFloat16(bits) {
  fromFloat16.table ??= Float32Array.from({ length: 65536 }, (_, half) => {
    const sign = half >> 15 ? -1 : 1;
    const exponent = (half >> 10) & 31;
    const fraction = (half & 1023) / 1024;
    if (exponent === 31) return NaN;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  });
  return Float32Array.from(bits, (half) => fromFloat16.table[half]);
}

/** What Python's `_pack` packed: base64 of gzip of a line of JSON and the arrays' bytes. */
async function unpack(base64) {
  const text = atob(base64);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const end = bytes.indexOf(10);
  const json = new TextDecoder().decode(bytes.subarray(0, end));
  return JSON.parse(json, (_, value) => {
    if (!value || !Array.isArray(value.array)) return value;
    const [type, from, to] = value.array;
    const part = bytes.slice(end + 1 + from, end + 1 + to).buffer;
    return type === "float16" ? fromFloat16(new Uint16Array(part)) : new INTEGERS[type](part);
  });
}

let data; // what `save_explorer` packed
let photo; // what is drawn of the photograph: { colour, grey, brightness [patch] }

const PATCHES = -1; // in place of a prompt's number
const nLayers = () => data.layers.length;
const readingsOf = (prompt) =>
  prompt === PATCHES ? data.patches : data.prompts[prompt].readings;
const allPatches = () => range(data.grid ** 2).map((pos) => ({ prompt: PATCHES, pos }));
const positionsOf = (prompt) =>
  prompt === PATCHES ? data.grid ** 2 : data.prompts[prompt].token_ids.length;
const label = (id) => data.tokens[id];
const bare = (id) => label(id).replace(/^[▁Ġ](?=.)/, "");
const spellings = new Map(); // by id
const groups = new Map(); // ids by spelling: tokens that differ in case or leading space only
const spelling = (id) => spellings.get(id);

/** Where the top-k of a cell begin at a layer. A cell is `{ prompt, pos }`. */
const start = (cell, layer) => (layer * positionsOf(cell.prompt) + cell.pos) * data.top_k;

/** The top-k of a cell at a layer, falling: `[{ id, p }]`. */
function topOf(cell, layer) {
  const { top_ids, top_probs } = readingsOf(cell.prompt);
  const from = start(cell, layer);
  return range(data.top_k).map((k) => ({ id: top_ids[from + k], p: top_probs[from + k] }));
}

const top1 = (cell, layer) => readingsOf(cell.prompt).top_ids[start(cell, layer)];

/** The token whose probability and rank are exact: the answer's next, else the last top-1. */
function targetOf(cell) {
  const prompt = data.prompts[cell.prompt];
  const answered = prompt ? cell.pos - prompt.n_prompt + 1 : -1;
  return answered >= 0 ? prompt.answer_ids[answered] : top1(cell, nLayers() - 1);
}

const sameIds = (a, b) => a.length === b.length && a.every((id) => b.includes(id));
const watchedBy = (ids) => data.words.find((word) => sameIds(word.token_ids, ids));

/**
 * The probability of a word (ids) in a cell at a layer, null where none of it was kept. Exact for
 * watched words in patches and for a cell's target, else the sum of what is in the top-k.
 */
function probability(cell, layer, ids) {
  const at = layer * positionsOf(cell.prompt) + cell.pos;
  const word = cell.prompt === PATCHES && watchedBy(ids);
  if (word) return 2 ** word.log2_probs[at];
  const { top_ids, top_probs, target_log2 } = readingsOf(cell.prompt);
  if (ids.length === 1 && ids[0] === targetOf(cell)) return 2 ** target_log2[at];
  let sum = null;
  for (let k = at * data.top_k; k < (at + 1) * data.top_k; k++)
    if (ids.includes(top_ids[k])) sum += top_probs[k];
  return sum;
}

/** The rank of a token in a cell at a layer, null where it is unknown. */
function rankOf(cell, layer, id) {
  const at = layer * positionsOf(cell.prompt) + cell.pos;
  if (id === targetOf(cell)) return readingsOf(cell.prompt).target_rank[at];
  const k = topOf(cell, layer).findIndex((token) => token.id === id);
  return k < 0 ? null : k + 1;
}

/**
 * The tokens that are everywhere at a layer: among the top-k of at least half of all patches.
 * Per token its median probability over all patches.
 */
function everywhere(layer) {
  everywhere.known ??= new Map();
  if (!everywhere.known.has(layer)) {
    const kept = new Map();
    for (const cell of allPatches())
      for (const { id, p } of topOf(cell, layer))
        kept.has(id) ? kept.get(id).push(p) : kept.set(id, [p]);
    const half = Math.ceil(data.grid ** 2 / 2);
    const common = [...kept].filter(([, probs]) => probs.length >= half);
    const median = ([id, probs]) => [id, probs.sort((a, b) => b - a)[half - 1]];
    everywhere.known.set(layer, new Map(common.map(median)));
  }
  return everywhere.known.get(layer);
}

/** Whether a token with this probability in a patch is there just as in most others. */
const isCommon = (layer, { id, p }) => p <= 2 * (everywhere(layer).get(id) ?? 0);

// -----------------------------------------------------------------------------------------
// The state, which is in the address
// -----------------------------------------------------------------------------------------

const state = {
  layer: 0,
  prompt: 0,
  pane: "", // the second pane: a prompt's number, "grey", or nothing
  pins: [], // cells
  word: [], // token ids
  least: -2, // log10 of the smallest probability shown
  boxes: true,
  grey: true,
  fade: true, // words that are everywhere
  rank: false,
};

const sameCell = (a, b) => a.prompt === b.prompt && a.pos === b.pos;
const cellName = (cell) =>
  cell.prompt === PATCHES ? `p${cell.pos}` : `t${cell.prompt}.${cell.pos}`;

function address() {
  const parts = [
    `layer=${data.layers[state.layer]}`,
    `prompt=${state.prompt}`,
    state.pane !== "" && `pane=${state.pane}`,
    state.pins.length && `pins=${state.pins.map(cellName).join(",")}`,
    state.word.length && `word=${state.word.join(".")}`,
    `least=${state.least}`,
    !state.boxes && "boxes=0",
    !state.grey && "grey=0",
    !state.fade && "fade=0",
    state.rank && "rank=1",
  ];
  return `#${parts.filter(Boolean).join("&")}`;
}

/** Put the state into the address, when it has come to rest: browsers limit how often. */
function writeAddress() {
  clearTimeout(writeAddress.timer);
  writeAddress.timer = setTimeout(() => history.replaceState(null, "", address()), 200);
}

/** Take over what the address says, as far as it fits this page. */
function readAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  const integer = (name, otherwise, most) => {
    const value = Number(said.get(name) ?? NaN);
    return Number.isInteger(value) && value >= 0 && value <= most ? value : otherwise;
  };
  const layer = data.layers.indexOf(said.get("layer"));
  state.layer = layer < 0 ? nLayers() - 1 : layer;
  const lastPrompt = data.prompts.length - 1;
  state.prompt = integer("prompt", 0, lastPrompt);
  state.pane = said.get("pane") === "grey" ? "grey" : integer("pane", "", lastPrompt);
  state.pins = (said.get("pins") ?? "")
    .split(",")
    .map((name) => name.match(/^(?:p|t(\d+)\.)(\d+)$/))
    .filter((found) => found && (found[1] ?? 0) <= lastPrompt)
    .map(([, prompt, pos]) => ({ prompt: Number(prompt ?? PATCHES), pos: Number(pos) }))
    .filter((cell) => cell.pos < positionsOf(cell.prompt));
  state.word = (said.get("word") ?? "").split(".").filter(Boolean).map(Number);
  if (!state.word.every((id) => label(id) !== undefined)) state.word = [];
  const least = parseFloat(said.get("least"));
  if (least >= -6 && least < 0) state.least = least;
  state.boxes = said.get("boxes") !== "0";
  state.grey = said.get("grey") !== "0";
  state.fade = said.get("fade") !== "0";
  state.rank = said.get("rank") === "1";
}

/** Change the state and show it. */
function update(changes) {
  Object.assign(state, changes);
  show();
  writeAddress();
}

function togglePin(cell) {
  const others = state.pins.filter((pin) => !sameCell(pin, cell));
  return others.length < state.pins.length ? others : [...others, { ...cell }];
}

// -----------------------------------------------------------------------------------------
// Colours: one logarithmic scale from the slider's probability to 1
// -----------------------------------------------------------------------------------------

const HEAT = [230, 97, 0];
const HEAT_BRIGHTNESS = 126; // as of a grey
const MOST_ALPHA = 0.75; // so that the photograph stays visible
const MARK = "#0b5cad";
const FONT = '"Noto Sans", "DejaVu Sans", system-ui, sans-serif';
// Okabe and Ito's colours, told apart by colour-blind people; lines differ in dashes as well.
const LINES = [
  "#d55e00",
  "#0072b2",
  "#009e73",
  "#cc79a7",
  "#000000",
  "#56b4e9",
  "#b8860b",
  "#7a5195",
];
const DASHES = ["", "6 3", "2 2", "8 2 2 2", "", "6 3", "2 2", "8 2 2 2"];

/** Where a probability is on the scale, 0 to 1; null is 0. */
function shade(p) {
  return p ? clamp(1 - Math.log10(p) / state.least, 0, 1) : 0;
}

const heat = (p) => `rgba(${HEAT}, ${(shade(p) * MOST_ALPHA).toFixed(3)})`;

/** A canvas of so many CSS pixels, sharp on every screen, and its context. */
function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== across || canvas.height !== down) {
    Object.assign(canvas, { width: across, height: down });
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** A pattern of thin lines: nothing was kept here, which is not the same as 0. */
function hatching(context) {
  if (!hatching.tile) {
    hatching.tile = make("canvas", { width: 6, height: 6 });
    const tile = hatching.tile.getContext("2d");
    for (let i = 0; i < 6; i++) {
      tile.fillStyle = "rgba(0, 0, 0, 0.25)";
      tile.fillRect(i, 5 - i, 1, 1);
      tile.fillStyle = "rgba(255, 255, 255, 0.4)";
      tile.fillRect((i + 1) % 6, 5 - i, 1, 1);
    }
  }
  return context.createPattern(hatching.tile, "repeat");
}

const room = { text: 0, photo: 0 }; // widths, measured once: to ask for them makes layout run

function measureRoom() {
  const bar = `${byId("bar").offsetHeight + 12}px`;
  document.documentElement.style.setProperty("--bar", bar);
  room.text = byId("left").clientWidth - 26;
  const beside = room.text >= 660; // the search and the rest stand beside the photograph
  const most = Math.min(beside ? room.text - 204 : room.text, 760);
  room.photo = Math.floor(clamp(window.innerHeight - 150, Math.min(320, most), most));
}

// -----------------------------------------------------------------------------------------
// The photograph
// -----------------------------------------------------------------------------------------

const patchSide = () => room.photo / data.grid;

/** Decode the crop once, and keep it in colour, in grey, and as one brightness per patch. */
async function preparePhoto() {
  const size = data.image_size;
  const bitmap = await createImageBitmap(new Blob([data.crop], { type: "image/jpeg" }));
  const [colour, grey] = [make("canvas"), make("canvas")];
  for (const canvas of [colour, grey]) canvas.width = canvas.height = size;
  colour.getContext("2d").drawImage(bitmap, 0, 0);
  const pixels = colour.getContext("2d").getImageData(0, 0, size, size);
  const brightness = new Float32Array(data.grid ** 2);
  const side = size / data.grid;
  for (let i = 0; i < size * size; i++) {
    const [r, g, b] = pixels.data.subarray(4 * i, 4 * i + 3);
    const light = 0.299 * r + 0.587 * g + 0.114 * b;
    pixels.data.fill(light, 4 * i, 4 * i + 3);
    const row = Math.floor(i / size / side);
    brightness[row * data.grid + Math.floor((i % size) / side)] += light / side ** 2;
  }
  grey.getContext("2d").putImageData(pixels, 0, 0);
  photo = { colour, grey, brightness };
}

function drawPhoto() {
  const canvas = byId("photo");
  const size = room.photo;
  const context = fit(canvas, size, size);
  context.drawImage(state.grey ? photo.grey : photo.colour, 0, 0, size, size);
  const side = size / data.grid;
  const writeTexts = allPatches().map((cell) => drawPatch(context, cell, side));
  drawGrid(context, size);
  if (state.boxes) drawBoxes(context, size / data.image_size);
  for (const writeText of writeTexts) writeText?.(); // over the boxes' lines
  if (state.boxes) drawBoxNames(context, size / data.image_size, size);
  state.pins.forEach((cell, number) => {
    if (cell.prompt === PATCHES)
      drawBadge(context, ...patchCorner(cell.pos, side), side, side, number);
  });
  const what = state.word.length ? `P(${wordName()})` : "top-1 token";
  canvas.ariaLabel = `${data.name}: ${what} per patch at layer ${data.layers[state.layer]}`;
}

function drawGrid(context, size) {
  context.beginPath();
  for (const at of range(data.grid - 1).map((line) => ((line + 1) * size) / data.grid)) {
    context.moveTo(at, 0);
    context.lineTo(at, size);
    context.moveTo(0, at);
    context.lineTo(size, at);
  }
  context.strokeStyle = "rgba(255, 255, 255, 0.2)";
  context.lineWidth = 1;
  context.stroke();
}

const patchCorner = (pos, side) => [
  (pos % data.grid) * side,
  Math.floor(pos / data.grid) * side,
];

/** Colour a patch; returns what writes its word, or null. */
function drawPatch(context, cell, side) {
  const [x, y] = patchCorner(cell.pos, side);
  const top = topOf(cell, state.layer)[0];
  const searched = state.word.length > 0;
  const p = searched ? probability(cell, state.layer, state.word) : top.p;
  if (p === null) {
    context.fillStyle = hatching(context);
    context.fillRect(x, y, side, side);
  }
  if (p === null || p < 10 ** state.least) return null;
  const pale = !searched && state.fade && isCommon(state.layer, top);
  const alpha = pale ? 0 : shade(p) * MOST_ALPHA;
  context.fillStyle = `rgba(${HEAT}, ${alpha})`;
  context.fillRect(x, y, side, side);
  const text = searched ? digits(p).replace(/^0\./, ".") : bare(top.id);
  const dark = photo.brightness[cell.pos] * (1 - alpha) + HEAT_BRIGHTNESS * alpha > 110;
  return () => writeInPatch(context, [x, y, side], text, { pale, dark });
}

function writeInPatch(context, [x, y, side], text, { pale, dark }) {
  context.textAlign = "center";
  context.textBaseline = "middle";
  const points = clamp(Math.round(side * 0.36), 8, 15);
  const [shown, width] = fitText(context, text, pale ? "italic" : "600", points, side - 2);
  if (!pale) {
    context.fillStyle = dark ? "rgba(255, 255, 255, 0.35)" : "rgba(0, 0, 0, 0.4)";
    context.fillRect(x + (side - width) / 2, y + (side - points) / 2 - 1, width, points + 2);
  }
  context.globalAlpha = pale ? 0.55 : 1;
  context.fillStyle = dark ? "#000" : "#fff";
  context.fillText(shown, x + side / 2, y + side / 2);
  context.globalAlpha = 1;
}

/**
 * A text that fits into `width`, and its width: in one of three sizes, or cut. Few sizes, no
 * outlines and each text measured once, for measuring and new letters are what takes time.
 */
function fitText(context, text, style, points, width) {
  fitText.known ??= new Map();
  const key = `${style} ${points} ${text}`;
  const fontOf = (share) => `${style} ${Math.round(2 * points * share) / 2}px ${FONT}`;
  if (!fitText.known.has(key)) {
    context.font = fontOf(1);
    fitText.known.set(key, context.measureText(text).width);
  }
  const whole = fitText.known.get(key);
  const share = [1, 0.85, 0.7].find((size) => whole * size <= width);
  context.font = fontOf(share ?? 0.7);
  if (share) return [text, whole * share];
  const letters = [...text];
  const kept = Math.max(Math.floor((letters.length * width) / (0.7 * whole)) - 1, 1);
  return [`${letters.slice(0, kept).join("")}…`, width];
}

/** Cut a text so that it is at most `width` wide. */
function shorten(context, text, width) {
  const letters = [...text];
  while (letters.length > 2 && context.measureText(letters.join("")).width > width)
    letters.splice(-2, 2, "…");
  return letters.join("");
}

/** The annotated boxes that lie in the crop. */
const seenObjects = () => data.objects.filter(({ box }) => box[2] && box[3]);

function drawBoxes(context, scale) {
  for (const { box } of seenObjects())
    for (const [colour, width] of [
      ["#fff", 4],
      [MARK, 2],
    ]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(...box.map((length) => length * scale));
    }
}

function drawBoxNames(context, scale, size) {
  context.font = `600 12px ${FONT}`;
  context.textAlign = "left";
  context.textBaseline = "middle";
  for (const { category, box } of seenObjects()) {
    const width = context.measureText(category).width + 8;
    const x = clamp(box[0] * scale, 0, Math.max(size - width, 0));
    const y = Math.max(box[1] * scale - 16, 0);
    context.fillStyle = MARK;
    context.fillRect(x, y, width, 16);
    context.fillStyle = "#fff";
    context.fillText(category, x + 4, y + 8.5);
  }
}

function drawBadge(context, x, y, width, height, number) {
  for (const [colour, line] of [
    ["#000", 4],
    ["#ffd400", 2],
  ]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.strokeRect(x + 1, y + 1, width - 2, height - 2);
  }
  context.fillStyle = "#000";
  context.fillRect(x - 5, y - 7, 14, 14);
  context.fillStyle = "#ffd400";
  context.font = `700 11px ${FONT}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(number + 1, x + 2, y + 0.5);
}

// -----------------------------------------------------------------------------------------
// A text as layers x positions
// -----------------------------------------------------------------------------------------

const HEAD = 84; // above the cells: the input tokens
const SIDE = 38; // left of the cells: the layers

/** One pane with the text of a prompt; `show(number)` draws it. */
function makeTextPane() {
  const about = make("div");
  const canvas = make("canvas", { tabIndex: 0, role: "img" });
  const marker = make("div", { className: "marker", hidden: true });
  const layers = make("div", { className: "layers" });
  const nowRow = make("div", { className: "now-row" });
  const scroller = make("div", { className: "scroller" }, layers, canvas, nowRow, marker);
  const element = make("section", {}, about, scroller);
  const pane = {
    element,
    canvas,
    marker,
    scroller,
    prompt: 0,
    rowHeight: 22,
    columnWidth: 46,
  };
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
      about.replaceChildren(...aboutPrompt(number));
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
    const inside =
      pos >= 0 && pos < positionsOf(pane.prompt) && layer >= 0 && layer < nLayers();
    return inside ? { cell: { prompt: pane.prompt, pos }, layer } : null;
  };
  pane.place = (cell, layer) => [
    ...pane.corner(cell.pos, layer),
    pane.columnWidth,
    pane.rowHeight,
  ];
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
    "Readable: from this layer on the lens reads the answer. Leaves image: from here on patching the image's patches changes it little. Handed over: from here on the last position alone decides it. Mediated: how much of it goes through the question (0 to 1).";
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
    context.fillText(
      data.layers[layer],
      SIDE - 6,
      pane.corner(0, layer)[1] + pane.rowHeight / 2,
    );
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
    state.rank ? rankOf(cell, layer, id) : probability(cell, layer, [id]),
  );
  const other = [
    ...(state.rank ? grey.target_rank : grey.target_log2.map((log2) => 2 ** log2)),
  ];
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

// -----------------------------------------------------------------------------------------
// Charts over layers
// -----------------------------------------------------------------------------------------

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
  const here = draw("path", { stroke: MARK, "stroke-width": 5, opacity: 0.25 });
  svg.markLayer = () =>
    here.setAttribute("d", `M${x(state.layer)} ${top}V${height - bottom}`);
  svg.markLayer();
  svg.append(here);
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
  const look = { d: path, fill: "none", stroke: colour, "stroke-width": thin ? 0.8 : 2 };
  group.append(
    draw("path", { ...look, "stroke-dasharray": dash, "stroke-linejoin": "round" }),
  );
  return group;
}

/** The names of the series that have a colour, beside a piece of their line. */
function keysOf(series) {
  const keys = make("div", { className: "keys" });
  for (const { name, colour, dash } of series.filter((one) => !one.thin)) {
    const svg = draw("svg", { width: 22, height: 9, viewBox: "0 0 22 9" });
    svg.style.cssText = "display: inline; width: 22px; cursor: default";
    const look = { stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash };
    svg.append(draw("path", { d: "M1 4.5H21", ...look }));
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

// -----------------------------------------------------------------------------------------
// Cards: the cell under the mouse, and the pinned ones
// -----------------------------------------------------------------------------------------

function cellTitle(cell) {
  if (cell.prompt === PATCHES) {
    const [row, column] = [Math.floor(cell.pos / data.grid), cell.pos % data.grid];
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
  const together = new Map();
  for (const token of topOf(cell, layer)) {
    const name = spelling(token.id);
    together.set(name, [...(together.get(name) ?? []), token]);
  }
  const row = (name, p, className) => {
    const bar = make("span", { className: "bar" });
    bar.style.width = `${100 * shade(p)}%`;
    const parts = [make("span", { className: "label" }, name), make("span", {}, digits(p))];
    return make("li", { className, title: name }, bar, ...parts);
  };
  const sum = (tokens) => tokens.reduce((total, { p }) => total + p, 0);
  return [...together]
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
function preview(found) {
  seen = found;
  for (const one of document.querySelectorAll(".marker")) one.hidden = one !== found?.marker;
  if (found) {
    const [left, top, width, height] = found.place.map((length) => `${length}px`);
    Object.assign(found.marker.style, { left, top, width, height });
  }
  const hint = "Hover over a patch or a text cell to look into it; click to pin it.";
  byId("preview").replaceChildren(
    ...(found ? partsOf(found.cell, found.layer) : [make("p", { className: "soft" }, hint)]),
  );
}

function showPins() {
  const wanted = state.pins.map(pinCard);
  const there = [...byId("pins").children];
  if (wanted.length !== there.length || wanted.some((card, at) => card !== there[at]))
    byId("pins").replaceChildren(...wanted);
}

// -----------------------------------------------------------------------------------------
// Words: search, and those that are common at the layer
// -----------------------------------------------------------------------------------------

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

/** The largest probability of a word over all patches [layer], null where none kept it. */
function largestOf(ids) {
  largestOf.known ??= new Map();
  const key = ids.join();
  if (!largestOf.known.has(key)) {
    const largest = range(nLayers()).map((layer) => {
      const kept = allPatches().map((cell) => probability(cell, layer, ids));
      return kept.every((p) => p === null) ? null : Math.max(...kept);
    });
    largestOf.known.set(key, largest);
  }
  return largestOf.known.get(key);
}

/** The word that was searched for, or what can be: in words, and as curves over layers. */
function showWord() {
  const now = [state.word, state.pins.map(cellName)].join();
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
  const text = watchedBy(state.word)
    ? `P(${labels}), exact at every patch. `
    : `P(${labels}), what the top-${data.top_k} kept of it: hatched patches kept none, which is not 0. `;
  return [make("b", {}, wordName()), ": ", text, clear];
}

function wordCurves() {
  const largest = largestOf(state.word);
  const series = [
    { name: "largest of all patches", values: largest, colour: LINES[0], dash: "" },
  ];
  state.pins.slice(0, LINES.length - 1).forEach((cell, number) => {
    const values = range(nLayers()).map((layer) => probability(cell, layer, state.word));
    const [colour, dash] = [LINES[number + 1], DASHES[number + 1]];
    series.push({ name: `pin ${number + 1}`, values, colour, dash });
  });
  const picture = chart(series, 480, 140, false); // a sum of tokens has no rank
  return [make("h3", {}, `P(${wordName()}) over layers`), picture, keysOf(series)];
}

/** The top-1 words of the patches at the layer, by the number of patches. */
function showCommon() {
  const found = new Map();
  for (const cell of allPatches()) {
    const at = start(cell, state.layer);
    const [id, p] = [data.patches.top_ids[at], data.patches.top_probs[at]];
    const name = spelling(id);
    const one = found.get(name) ?? { id, patches: 0, most: 0 };
    found.set(name, { id: one.id, patches: one.patches + 1, most: Math.max(one.most, p) });
  }
  const sorted = [...found].sort(([, a], [, b]) => b.patches - a.patches || b.most - a.most);
  const buttons = sorted.slice(0, 25).map(([name, { id, patches, most }]) => {
    const about = `${patches} × ≤ ${digits(most)}`;
    const button = make(
      "button",
      {},
      make("span", {}, name),
      make("span", { className: "numbers" }, about),
    );
    button.title = `${name}: top-1 in ${patches} patches, at most ${digits(most)}. Click: show it everywhere.`;
    if (isCommon(state.layer, { id, p: most })) button.className = "everywhere";
    button.onclick = () => update({ word: groups.get(name) });
    return button;
  });
  byId("common").replaceChildren(...buttons);
}

// -----------------------------------------------------------------------------------------
// What can be saved
// -----------------------------------------------------------------------------------------

function save(blob, extension) {
  const url = URL.createObjectURL(blob);
  make("a", {
    href: url,
    download: `${data.name}_layer_${data.layers[state.layer]}.${extension}`,
  }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

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
  const svgs = [
    ...document.querySelectorAll("#pins .card > .halves > div > svg:first-child"),
  ];
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
  const what = state.word.length ? `P(${wordName()})` : "top-1 token";
  const scale = `colours logarithmic from ${digits(10 ** state.least)} (none) to 1`;
  write(`${data.name}, layer ${data.layers[state.layer]}: ${what} per patch, ${scale}`, 0, 0);
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
  picture.toBlob((blob) => save(blob, "png"));
}

/** The numbers that are shown: patches and text at their layers, the pins' top-k, the word. */
function saveNumbers() {
  const rows = [
    ["shown", "prompt", "position", "layer", "rank", "token_id", "token", "probability"],
  ];
  const add = (shown, cell, layer, rank, ids, token, p) => {
    const prompt = cell.prompt === PATCHES ? "" : cell.prompt;
    const name = data.layers[layer];
    rows.push([shown, prompt, cell.pos, name, rank, ids, token, p ?? "not kept"]);
  };
  const addTop = (shown, cell, layer, n) =>
    topOf(cell, layer)
      .slice(0, n)
      .forEach(({ id, p }, k) => add(shown, cell, layer, k + 1, id, label(id), p));
  for (const pos of range(data.grid ** 2)) {
    const cell = { prompt: PATCHES, pos };
    addTop("patch", cell, state.layer, 1);
    if (state.word.length) {
      const p = probability(cell, state.layer, state.word);
      add("word", cell, state.layer, "", state.word.join("+"), wordName(), p);
    }
  }
  const shown = [state.prompt, state.pane].filter((prompt) => data.prompts[prompt]);
  for (const prompt of new Set(shown))
    for (const pos of range(positionsOf(prompt)))
      for (const layer of range(nLayers())) addTop("text", { prompt, pos }, layer, 1);
  for (const cell of state.pins)
    for (const layer of range(nLayers())) addTop("pin", cell, layer, data.top_k);
  // A spreadsheet would take a token like =1+1 for a formula.
  const safe = (value) =>
    /^[=+\-@]/.test(value) && typeof value === "string" ? `'${value}` : value;
  const quoted = (value) => `"${String(safe(value)).replaceAll('"', '""')}"`;
  const csv = rows.map((row) => row.map(quoted).join(",")).join("\r\n");
  save(new Blob(["\ufeff", csv], { type: "text/csv" }), "csv");
}

// -----------------------------------------------------------------------------------------
// The page of one image
// -----------------------------------------------------------------------------------------

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
  const look = (found) => {
    cursor = found;
    preview(found && { ...found, place: place(found.cell, found.layer), marker });
  };
  const pin = ({ cell, layer }) => update({ pins: togglePin(cell), layer });
  canvas.addEventListener("mousemove", (event) => {
    const found = at(event);
    const same =
      found && cursor && sameCell(found.cell, cursor.cell) && found.layer === cursor.layer;
    if (!same) look(found);
  });
  canvas.addEventListener("mouseleave", () => look(null));
  // So that the arrow keys go on moving through the layers after a click.
  canvas.addEventListener("mousedown", (event) => event.preventDefault());
  canvas.addEventListener("click", (event) => at(event) && pin(at(event)));
  canvas.addEventListener("blur", () => look(null));
  canvas.addEventListener("keydown", (event) => {
    const step = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    };
    if (step[event.key]) look(move(cursor, ...step[event.key]));
    else if ((event.key === "Enter" || event.key === " ") && cursor) {
      const here = cursor;
      pin(here);
      look(here);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

function listenToPhoto() {
  const last = data.grid - 1;
  listen(byId("photo"), byId("photo-marker"), {
    at: ({ offsetX, offsetY }) => {
      const [column, row] = [offsetX, offsetY].map((at) =>
        clamp(Math.floor(at / patchSide()), 0, last),
      );
      return { cell: { prompt: PATCHES, pos: row * data.grid + column }, layer: state.layer };
    },
    place: ({ pos }) => [...patchCorner(pos, patchSide()), patchSide(), patchSide()],
    move: (cursor, dx, dy) => {
      const pos = cursor?.cell.pos ?? 0;
      const column = clamp((pos % data.grid) + (cursor ? dx : 0), 0, last);
      const row = clamp(Math.floor(pos / data.grid) + (cursor ? dy : 0), 0, last);
      return { cell: { prompt: PATCHES, pos: row * data.grid + column }, layer: state.layer };
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

// -----------------------------------------------------------------------------------------
// The index
// -----------------------------------------------------------------------------------------

const isOf = (answers, { right }) =>
  answers === "" || right === { wrong: false, right: true, unknown: null }[answers];

/** The images with the prompts that the two filters leave, in the chosen order. */
function chosenImages() {
  const [kind, answers, sort] = ["kind", "answers", "sort"].map((id) => byId(id).value);
  const images = data.index.map((image) => ({
    ...image,
    prompts: image.prompts.filter(
      (one) => (!kind || one.kind === kind) && isOf(answers, one),
    ),
  }));
  const number = (image, of) => Math.min(...image.prompts.map(of));
  const order = {
    name: () => 0, // they are sorted by name
    kind: (image) => number(image, (one) => data.kinds.indexOf(one.kind)),
    wrong: (image) => -image.prompts.filter(({ right }) => right === false).length,
    early: (image) => number(image, (one) => one.readable_layer),
    late: (image) => number(image, (one) => -one.readable_layer),
    handed: (image) => number(image, (one) => one.handed_over ?? 1e9),
  }[sort];
  return images.filter(({ prompts }) => prompts.length).sort((a, b) => order(a) - order(b));
}

function showCards() {
  const images = chosenImages();
  const prompts = images.reduce((sum, image) => sum + image.prompts.length, 0);
  byId("count").textContent = `${images.length} images, ${prompts} prompts`;
  byId("cards").replaceChildren(...images.map(imageCard));
}

function imageCard({ name, page, thumbnail, prompts }) {
  const link = (text, hash = "") => {
    if (!page) return make("span", {}, text);
    return make("a", { href: `${encodeURIComponent(name)}.html${hash}` }, text);
  };
  const rows = prompts.map((one) => {
    return make(
      "li",
      {},
      link(`${one.short} → ${one.answer || "(nothing)"}`, `#prompt=${one.prompt}`),
      make("br"),
      truthOf(one),
      make("span", { className: "soft" }, ` · ${one.kind} · `),
      layersOf(one.layers),
    );
  });
  const missing = "No page was made: add the name to `explorers` in Visualise_Analyse.";
  const about = page ? [] : [make("p", { className: "soft" }, missing)];
  const title = make("h2", {}, link(name));
  const image = make("img", { alt: "", src: thumbnail });
  const card = make(
    "article",
    {},
    image,
    make("div", {}, title, ...about, make("ul", {}, ...rows)),
  );
  if (page) image.onclick = () => title.firstChild.click();
  if (page) image.style.cursor = "pointer";
  return card;
}

function showIndex() {
  document.title = "All images: logit lens";
  for (const image of data.index)
    image.thumbnail = URL.createObjectURL(
      new Blob([image.thumbnail], { type: "image/jpeg" }),
    );
  const kinds = data.kinds.map((kind) => make("option", { value: kind }, kind));
  byId("kind").append(make("option", { value: "" }, "all"), ...kinds);
  for (const id of ["kind", "answers", "sort"])
    byId(id).addEventListener("change", showCards);
  byId("index").hidden = false;
  showCards();
}

// -----------------------------------------------------------------------------------------

async function open() {
  try {
    data = await unpack(byId("data").textContent.trim());
    await (data.index ? showIndex() : showImage());
    document.documentElement.dataset.ready = Math.round(performance.now());
  } catch (error) {
    byId("problem").hidden = false;
    byId("problem").textContent =
      `This page can't be shown (${error}): it needs a browser of 2023 or later, and a whole file.`;
    throw error;
  }
}

open();
