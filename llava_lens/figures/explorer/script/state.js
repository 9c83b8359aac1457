// The state, which is in the address; colours: one logarithmic scale from the slider's probability
// to 1, and a linear one of cosines.

const framed = location.protocol === "about:"; // in a notebook a page has no address of its own

const state = {
  layer: 0,
  lens: "logit", // of the patches, or "embedding"
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

const SWITCHES = ["boxes", "grey", "fade", "rank"]; // checkboxes

const sameCell = (a, b) => a.prompt === b.prompt && a.pos === b.pos;
const cellName = (cell) =>
  cell.prompt === PATCHES ? `p${cell.pos}` : `t${cell.prompt}.${cell.pos}`;

function address() {
  const parts = [
    `layer=${data.layers[state.layer]}`,
    `prompt=${state.prompt}`,
    byEmbedding(PATCHES) && "lens=embedding",
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
  if (framed) return;
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
  state.lens = data.embedding && said.get("lens") === "embedding" ? "embedding" : "logit";
  const lastPrompt = data.prompts.length - 1;
  state.prompt = integer("prompt", 0, lastPrompt);
  state.pane = said.get("pane") === "grey" ? "grey" : integer("pane", "", lastPrompt);
  state.pins = (said.get("pins") ?? "")
    .split(",")
    .map((name) => name.match(/^(?:p|t(\d+)\.)(\d+)$/))
    .filter((parts) => parts && (parts[1] ?? 0) <= lastPrompt)
    .map(([, prompt, pos]) => ({ prompt: Number(prompt ?? PATCHES), pos: Number(pos) }))
    .filter((cell) => cell.pos < positionsOf(cell.prompt));
  state.word = (said.get("word") ?? "").split(".").filter(Boolean).map(Number);
  if (!state.word.every((id) => label(id) !== undefined)) state.word = [];
  const least = parseFloat(said.get("least"));
  if (least >= -6 && least < 0) state.least = least;
  for (const name of ["boxes", "grey", "fade"]) state[name] = said.get(name) !== "0";
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

const HEAT = [230, 97, 0];
const HEAT_BRIGHTNESS = 126; // as of a grey
const MOST_ALPHA = 0.75; // so that the photograph stays visible
const MARK = "#0b5cad";
const SINK = "#7a1fa2";
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

/** The smallest and the largest of the cosines that were kept. */
function cosineRange() {
  cosineRange.known ??= data.embedding.cosines.reduce(
    ([least, most], value) => [Math.min(least, value), Math.max(most, value)],
    [1, -1],
  );
  return cosineRange.known;
}

/** Where a probability or a cosine is on its scale, 0 to 1; null is 0. */
function shade(value, embedded = false) {
  if (value === null) return 0;
  if (!embedded) return value ? clamp(1 - Math.log10(value) / state.least, 0, 1) : 0;
  const [least, most] = cosineRange();
  return clamp((value - least) / (most - least), 0, 1);
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
  // The search and the rest stand beside the photograph and take what is left; where there is no
  // room, below it.
  const beside = clamp(window.innerHeight - 150, 0.6 * room.text, room.text - 206);
  room.photo = Math.floor(room.text >= 680 ? beside : room.text);
}
