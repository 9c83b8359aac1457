// The photograph with its patches.

const patchSide = () => room.photo / data.grid[1];

/** Decode the crop once, and keep what the patches cover of it in colour, in grey, and as one
 * brightness per patch. */
async function preparePhoto() {
  const [rows, columns] = data.grid;
  const [width, height] = [columns, rows].map((n) => Math.round(n * data.patch_side));
  const bitmap = await createImageBitmap(new Blob([data.crop], { type: "image/jpeg" }));
  const [colour, grey] = [make("canvas", { width, height }), make("canvas", { width, height })];
  colour.getContext("2d").drawImage(bitmap, 0, 0);
  const pixels = colour.getContext("2d").getImageData(0, 0, width, height);
  const brightness = new Float32Array(nPatches());
  for (let i = 0; i < width * height; i++) {
    const [r, g, b] = pixels.data.subarray(4 * i, 4 * i + 3);
    const light = 0.299 * r + 0.587 * g + 0.114 * b;
    pixels.data.fill(light, 4 * i, 4 * i + 3);
    const [row, column] = [i / width, i % width].map((at) => Math.floor(at / data.patch_side));
    brightness[row * columns + column] += light / data.patch_side ** 2;
  }
  grey.getContext("2d").putImageData(pixels, 0, 0);
  photo = { colour, grey, brightness };
}

function drawPhoto() {
  const canvas = byId("photo");
  const side = patchSide();
  const [height, width] = data.grid.map((n) => n * side);
  const context = fit(canvas, width, height);
  context.drawImage(state.grey ? photo.grey : photo.colour, 0, 0, width, height);
  const writeTexts = allPatches().map((cell) => drawPatch(context, cell, side));
  drawGrid(context, width, height);
  const scale = side / data.patch_side; // of the boxes
  if (state.boxes)
    for (const { box } of seenObjects())
      drawFrame(
        context,
        "#fff",
        MARK,
        box.map((length) => length * scale),
      );
  for (const writeText of writeTexts) writeText?.(); // over the boxes' lines
  if (state.boxes) drawBoxNames(context, scale, width);
  for (const pos of data.sinks ?? []) drawSink(context, ...patchCorner(pos, side), side);
  state.pins.forEach((cell, number) => {
    if (cell.prompt === PATCHES)
      drawBadge(context, ...patchCorner(cell.pos, side), side, side, number);
  });
  canvas.ariaLabel = `${data.name}: ${whatIsShown()} per patch at layer ${data.layers[state.layer]}`;
}

/** What the colours of the patches are about. */
function whatIsShown() {
  if (state.word.length) return `${nameOfValue()}(${wordName()})`;
  return byEmbedding(PATCHES) ? "nearest input embedding" : "top-1 token";
}

/** A corner of a patch whose state is a sink. */
function drawSink(context, x, y, side) {
  const size = clamp(side / 3, 6, 14);
  const corner = new Path2D(`M${x + side} ${y}h${-size}l${size} ${size}z`);
  context.fillStyle = SINK;
  context.strokeStyle = "#fff";
  context.lineWidth = 1;
  context.fill(corner);
  context.stroke(corner);
}

function drawGrid(context, width, height) {
  const [rows, columns] = data.grid;
  const down = range(columns - 1).map((line) => `M${((line + 1) * width) / columns} 0V${height}`);
  const across = range(rows - 1).map((line) => `M0 ${((line + 1) * height) / rows}H${width}`);
  context.strokeStyle = "rgba(255, 255, 255, 0.2)";
  context.lineWidth = 1;
  context.stroke(new Path2D([...down, ...across].join("")));
}

const patchCorner = (pos, side) => [
  (pos % data.grid[1]) * side,
  Math.floor(pos / data.grid[1]) * side,
];

/** Colour a patch; returns what writes its word, or null. */
function drawPatch(context, cell, side) {
  const [x, y] = patchCorner(cell.pos, side);
  const top = topOf(cell, state.layer)[0];
  const searched = state.word.length > 0;
  const embedded = byEmbedding(PATCHES);
  const p = searched ? valueOf(cell, state.layer, state.word) : top.p;
  if (p === null) {
    context.fillStyle = hatching(context);
    context.fillRect(x, y, side, side);
  }
  if (p === null || (!embedded && p < 10 ** state.least)) return null;
  const pale = !searched && state.fade && isCommon(state.layer, top);
  const alpha = pale ? 0 : shade(p, embedded) * MOST_ALPHA;
  context.fillStyle = `rgba(${HEAT}, ${alpha})`;
  context.fillRect(x, y, side, side);
  const text = searched ? shownAs(p, embedded).replace(/^0\./, ".") : bare(top.id);
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

/** A frame of two colours, which is seen on any picture. */
function drawFrame(context, outer, inner, place) {
  context.strokeStyle = outer;
  context.lineWidth = 4;
  context.strokeRect(...place);
  context.strokeStyle = inner;
  context.lineWidth = 2;
  context.strokeRect(...place);
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
  drawFrame(context, "#000", "#ffd400", [x + 1, y + 1, width - 2, height - 2]);
  const [left, top] = [Math.max(x - 5, 0), Math.max(y - 7, 0)]; // within the picture
  context.fillStyle = "#000";
  context.fillRect(left, top, 14, 14);
  context.fillStyle = "#ffd400";
  context.font = `700 11px ${FONT}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(number + 1, left + 7, top + 7.5);
}
