// The index of all images; and what opens either page.

const isOf = (answers, { right }) =>
  answers === "" || right === { wrong: false, right: true, unknown: null }[answers];

/** The images with the prompts that the two filters leave, in the chosen order. */
function chosenImages() {
  const [kind, answers, sort] = ["kind", "answers", "sort"].map((id) => byId(id).value);
  const images = data.index.map((image) => ({
    ...image,
    prompts: image.prompts.filter((one) => (!kind || one.kind === kind) && isOf(answers, one)),
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
  const note = page ? [] : [make("p", { className: "soft" }, missing)];
  const title = make("h2", {}, link(name));
  const image = make("img", { alt: "", src: thumbnail });
  const card = make("article", {}, image, make("div", {}, title, ...note, make("ul", {}, ...rows)));
  if (page) image.onclick = () => title.firstChild.click();
  if (page) image.style.cursor = "pointer";
  return card;
}

function showIndex() {
  document.title = "All images: logit lens";
  for (const image of data.index)
    image.thumbnail = URL.createObjectURL(new Blob([image.thumbnail], { type: "image/jpeg" }));
  const kinds = data.kinds.map((kind) => make("option", { value: kind }, kind));
  byId("kind").append(make("option", { value: "" }, "all"), ...kinds);
  for (const id of ["kind", "answers", "sort"]) byId(id).addEventListener("change", showCards);
  byId("index").hidden = false;
  showCards();
}

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
