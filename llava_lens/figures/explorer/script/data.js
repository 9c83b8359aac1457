"use strict";

// Small helpers, and the data that Python packed.

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

/** A value as text: a probability, or a cosine. */
function shownAs(value, embedded) {
  return embedded && value !== null ? value.toFixed(3) : digits(value);
}

const ARRAYS = {
  uint8: Uint8Array,
  uint16: Uint16Array,
  uint32: Uint32Array,
  float16: Uint16Array,
};

/** float16 to numbers, through a table of all of them (browsers before 2025 lack Float16Array). */
function fromFloat16(bits) {
  fromFloat16.table ??= Float32Array.from({ length: 65536 }, (_, half) => {
    const sign = half >> 15 ? -1 : 1;
    const exponent = (half >> 10) & 31;
    const fraction = (half & 1023) / 1024;
    if (exponent === 31) return NaN;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  });
  const numbers = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) numbers[i] = fromFloat16.table[bits[i]];
  return numbers;
}

/** Numbers whose bytes are in planes: first the low byte of each of them. */
function fromPlanes(planes, type) {
  const n = planes.length / ARRAYS[type].BYTES_PER_ELEMENT;
  const numbers = new ARRAYS[type](n);
  for (let from = 0, shift = 0; from < planes.length; from += n, shift += 8)
    for (let i = 0; i < n; i++) numbers[i] |= planes[from + i] << shift;
  return type === "float16" ? fromFloat16(numbers) : numbers;
}

/** What Python's `pack` packed: base64 of gzip of a line of JSON and the arrays' bytes. */
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
    const [type, from, to, shape] = value.array;
    const numbers = fromPlanes(bytes.subarray(end + 1 + from, end + 1 + to), type);
    return Object.assign(numbers, { shape });
  });
}

let data; // what `save_explorer` packed
let photo; // what is drawn of the photograph: { colour, grey, brightness [patch] }

const PATCHES = -1; // in place of a prompt's number
const nLayers = () => data.layers.length;
const readingsOf = (prompt) => (prompt === PATCHES ? data.patches : data.prompts[prompt].readings);
const nPatches = () => data.grid[0] * data.grid[1];
const allPatches = () => range(nPatches()).map((pos) => ({ prompt: PATCHES, pos }));
const positionsOf = (prompt) =>
  prompt === PATCHES ? nPatches() : data.prompts[prompt].token_ids.length;

// With the embedding lens patches show the nearest input embeddings, with their cosines. Texts keep
// the logit lens.
const byEmbedding = (prompt) => prompt === PATCHES && state.lens === "embedding";
const keptOf = (prompt) => (byEmbedding(prompt) ? data.embedding : readingsOf(prompt));
const topK = (prompt) => keptOf(prompt).top_ids.shape[2];
const label = (id) => data.tokens[id];
const bare = (id) => label(id).replace(/^[▁Ġ](?=.)/, "");
const spellings = new Map(); // by id
const groups = new Map(); // ids by spelling: tokens that differ in case or leading space only
const spelling = (id) => spellings.get(id);

/** The layers at which the top-k of a cell were kept: with the embedding lens not all. */
const keptAt = (prompt) => (byEmbedding(prompt) ? data.embedding.at : range(nLayers()));

/** Where the top-k of a cell begin at one of these layers. A cell is `{ prompt, pos }`. */
function start({ prompt, pos }, layer) {
  const row = byEmbedding(prompt) ? data.embedding.at.indexOf(layer) : layer;
  return (row * positionsOf(prompt) + pos) * topK(prompt);
}

/** The top-k of a cell at a layer, falling: `[{ id, p }]`, `p` a probability or a cosine. */
function topOf(cell, layer) {
  const { top_ids, top_probs, cosines } = keptOf(cell.prompt);
  const [from, values] = [start(cell, layer), cosines ?? top_probs];
  return range(topK(cell.prompt)).map((k) => ({ id: top_ids[from + k], p: values[from + k] }));
}

const top1 = (cell, layer) => keptOf(cell.prompt).top_ids[start(cell, layer)];

/** The token whose probability and rank are exact: the answer's next, else the last top-1. */
function targetOf(cell) {
  if (byEmbedding(cell.prompt)) return undefined;
  const prompt = data.prompts[cell.prompt];
  const answered = prompt ? cell.pos - prompt.n_prompt + 1 : -1;
  return answered >= 0 ? prompt.answer_ids[answered] : top1(cell, nLayers() - 1);
}

const sameIds = (a, b) => a.length === b.length && a.every((id) => b.includes(id));
const watchedBy = (ids) => data.words.find((word) => sameIds(word.token_ids, ids));

/**
 * The probability of a word (ids) in a cell at a layer, null where none of it was kept. Exact for
 * watched words in patches and for a cell's target, else the sum of what is in the top-k. With the
 * embedding lens the largest cosine of its tokens.
 */
function valueOf(cell, layer, ids) {
  const at = layer * positionsOf(cell.prompt) + cell.pos;
  const word = cell.prompt === PATCHES && watchedBy(ids);
  if (byEmbedding(cell.prompt)) {
    if (word?.cosines) return word.cosines[at];
    const found = topOf(cell, layer).find(({ id }) => ids.includes(id)); // they fall
    return found ? found.p : null;
  }
  if (word) return 2 ** word.log2_probs[at];
  const { top_ids, top_probs, target_log2 } = readingsOf(cell.prompt);
  if (ids.length === 1 && ids[0] === targetOf(cell)) return 2 ** target_log2[at];
  const from = start(cell, layer);
  let sum = null;
  for (let k = from; k < from + topK(cell.prompt); k++)
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
 * Per token its median probability (or cosine) over all patches.
 */
function everywhere(layer) {
  everywhere.known ??= new Map();
  const key = `${state.lens} ${layer}`;
  if (!everywhere.known.has(key)) {
    const kept = new Map();
    for (const cell of allPatches())
      for (const { id, p } of topOf(cell, layer))
        kept.has(id) ? kept.get(id).push(p) : kept.set(id, [p]);
    const half = Math.ceil(nPatches() / 2);
    const common = [...kept].filter(([, probs]) => probs.length >= half);
    const median = ([id, probs]) => [id, probs.sort((a, b) => b - a)[half - 1]];
    everywhere.known.set(key, new Map(common.map(median)));
  }
  return everywhere.known.get(key);
}

/** Whether a token with this probability or cosine in a patch is there just as in most others. */
const isCommon = (layer, { id, p }) =>
  p <= (byEmbedding(PATCHES) ? 1.2 : 2) * (everywhere(layer).get(id) ?? -Infinity);
