// The photograph with its patches.

/** Where a patch is in a photograph of `size` pixels: `[x, y, width, height]`. */
function placeOf(pos, size) {
  const [row, column] = rowAndColumn(pos);
  const [height, width] = data.grid.map((n) => size / n);
  return [column * width, row * height, width, height];
}

/** Decode the crop once, and keep it in colour, in grey, and as one brightness per patch. */
async function preparePhoto() {
  const size = data.image_size;
  const bitmap = await createImageBitmap(new Blob([data.crop], { type: "image/jpeg" }));
  const [colour, grey] = [make("canvas"), make("canvas")];
  for (const canvas of [colour, grey]) canvas.width = canvas.height = size;
  colour.getContext("2d").drawImage(bitmap, 0, 0);
  const pixels = colour.getContext("2d").getImageData(0, 0, size, size);
  const brightness = new Float32Array(nPatches());
  const [, , width, height] = placeOf(0, size);
  for (let i = 0; i < size * size; i++) {
    const [r, g, b] = pixels.data.subarray(4 * i, 4 * i + 3);
    const light = 0.299 * r + 0.587 * g + 0.114 * b;
    pixels.data.fill(light, 4 * i, 4 * i + 3);
    const [row, column] = [Math.floor(i / size / height), Math.floor((i % size) / width)];
    brightness[row * data.grid[1] + column] += light / (width * height);
  }
  grey.getContext("2d").putImageData(pixels, 0, 0);
  photo = { colour, grey, brightness };
}

function drawPhoto() {
  const canvas = byId("photo");
  const size = room.photo;
  const context = fit(canvas, size, size);
  context.drawImage(state.grey ? photo.grey : photo.colour, 0, 0, size, size);
  const writeTexts = allPatches().map((cell) => drawPatch(context, cell, size));
  drawGrid(context, size);
  if (state.boxes) drawBoxes(context, size / data.image_size);
  for (const writeText of writeTexts) writeText?.(); // over the boxes' lines
  if (state.boxes) drawBoxNames(context, size / data.image_size, size);
  state.pins.forEach((cell, number) => {
    if (cell.prompt === PATCHES) drawBadge(context, ...placeOf(cell.pos, size), number);
  });
  const what = state.word.length ? `P(${wordName()})` : "top-1 token";
  canvas.ariaLabel = `${data.name}: ${what} per patch at layer ${data.layers[state.layer]}`;
}

function drawGrid(context, size) {
  context.beginPath();
  const [rows, columns] = data.grid;
  const [, , width, height] = placeOf(0, size);
  for (const line of range(columns - 1)) {
    context.moveTo((line + 1) * width, 0);
    context.lineTo((line + 1) * width, rows * height);
  }
  for (const line of range(rows - 1)) {
    context.moveTo(0, (line + 1) * height);
    context.lineTo(columns * width, (line + 1) * height);
  }
  context.strokeStyle = "rgba(255, 255, 255, 0.2)";
  context.lineWidth = 1;
  context.stroke();
}

/** Colour a patch; returns what writes its word, or null. */
function drawPatch(context, cell, size) {
  const place = placeOf(cell.pos, size);
  const top = topOf(cell, state.layer)[0];
  const searched = state.word.length > 0;
  const p = searched ? probability(cell, state.layer, state.word) : top.p;
  if (p === null) {
    context.fillStyle = hatching(context);
    context.fillRect(...place);
  }
  if (p === null || p < 10 ** state.least) return null;
  const pale = !searched && state.fade && isCommon(state.layer, top);
  const alpha = pale ? 0 : shade(p) * MOST_ALPHA;
  context.fillStyle = `rgba(${HEAT}, ${alpha})`;
  context.fillRect(...place);
  const text = searched ? digits(p).replace(/^0\./, ".") : bare(top.id);
  const dark = photo.brightness[cell.pos] * (1 - alpha) + HEAT_BRIGHTNESS * alpha > 110;
  return () => writeInPatch(context, place, text, { pale, dark });
}

function writeInPatch(context, [x, y, width, height], text, { pale, dark }) {
  context.textAlign = "center";
  context.textBaseline = "middle";
  const points = clamp(Math.round(height * 0.36), 8, 15);
  const style = pale ? "italic" : "600";
  const [shown, taken] = fitText(context, text, style, points, width - 2);
  if (!pale) {
    context.fillStyle = dark ? "rgba(255, 255, 255, 0.35)" : "rgba(0, 0, 0, 0.4)";
    context.fillRect(x + (width - taken) / 2, y + (height - points) / 2 - 1, taken, points + 2);
  }
  context.globalAlpha = pale ? 0.55 : 1;
  context.fillStyle = dark ? "#000" : "#fff";
  context.fillText(shown, x + width / 2, y + height / 2);
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
