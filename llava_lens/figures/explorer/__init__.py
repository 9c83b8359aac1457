"""The explorer: a page per image and an index of them, for a browser without a network.

`page.html` and `style.css` serve both. The files of `script`, in the order of SCRIPTS, draw what
`data.py` packs. A notebook shows a page in a frame (`Inline`).
"""

import base64
import hashlib
import html
import io
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

from llava_lens.data.crop import open_crop
from llava_lens.figures.explorer.data import jpeg, pack, page_data, summaries_of
from llava_lens.files import inside, write_whole
from llava_lens.kinds import KINDS
from llava_lens.store import Results
from llava_lens.text import as_code, is_text, require

SCRIPTS = ["data", "state", "photo", "text", "charts", "cards", "words", "saved", "page", "index"]
FRAME_HEIGHT = 800  # pixels of a page within a notebook
# Where there are no frames (GitHub, a notebook that is not trusted) the text and the picture under
# the frame show. A browser decodes what is escaped here before the page sees it.
FRAME = Template(
    '<div style="position: relative; min-height: ${height}px">'
    "<p>The explorer of $name, as a still picture: the top-1 words in its patches at the last "
    "layer. GitHub, and a notebook that is not trusted, show no pages. Jupyter, Colab, Kaggle and "
    "VS Code show the page itself here, once the cell has run.</p>"
    '<img src="data:image/jpeg;base64,$still" alt="Top-1 words in the patches" width="480">'
    '<iframe srcdoc="$page" title="Logit lens explorer" style="position: absolute; inset: 0; '
    'width: 100%; height: ${height}px; border: 1px solid #d5dae0; background: #fff"></iframe></div>'
)


class Inline:
    """The explorer's page of one image, for a notebook: a cell that ends with it shows it.

    `run` is RUN, `record` a RECORD.
    """

    def __init__(self, run: dict, record: dict):
        self.run, self.record = run, record
        self.page = _page(page_data(run, record) | {"alone": True})

    def save(self, folder) -> Path:
        """Write the page into `folder`; returns its path. A digest of the image's file keeps apart
        those of two folders that have one name."""
        name, digest = self.record["name"][:50], self.record["image_digest"][:8]
        return _write(Path(folder) / f"{name}-{digest}.html", self.page)

    def _repr_html_(self) -> str:
        still = base64.b64encode(_still(self.run, self.record)).decode()
        name = as_code(self.record["name"])
        page = html.escape(self.page)
        return FRAME.substitute(height=FRAME_HEIGHT, name=name, still=still, page=page)

    def __repr__(self) -> str:
        return f"the explorer's page of {self.record['name']} (a notebook shows it)"


def show(run: dict, record: dict) -> None:
    """Show the page of an image in the output of the cell that runs."""
    from IPython.display import display

    display(Inline(run, record))


def _still(run: dict, record: dict) -> bytes:
    """A picture (JPEG) of the top-1 words in the patches at the last layer."""
    # Here, because matplotlib takes a second and the pages themselves don't need it.
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    from llava_lens.figures import one_image, style

    ids, probs = (record["patches"][name][-1, :, 0] for name in ("top_ids", "top_probs"))
    words, picture = one_image.patch_words(run, ids, probs, one_image.LEAST_NAMED), io.BytesIO()
    with plt.rc_context():
        style.use_style()
        figure, axis = plt.subplots(figsize=(5, 5))
        one_image.draw_patches(axis, run, record, probs, LogNorm(0.01, 1, clip=True), words)
        figure.savefig(picture, format="jpeg", dpi=100)
        plt.close(figure)  # else the cell would show it too
    return picture.getvalue()


def explorer_names(explorers, image: str, cases: list[str], names: list[str]) -> list[str]:
    """The images that get a page, `image` first: `cases` for "cases", all `names` for "all", or the
    names of a list. Raises ValueError for anything else and for an unknown name."""
    wanted = {"cases": cases, "all": names}.get(explorers) if is_text(explorers) else explorers
    require(
        isinstance(wanted, (list, tuple)) and set(wanted) <= set(names),
        f'explorers is {explorers!r}: it must be "cases", "all" or a list of names of images.',
    )
    return list(dict.fromkeys([image, *wanted]))


def save_pages(folder, results: Results, names: list[str], entries: list[dict]) -> str:
    """Write the pages of the images `names`, and the index of all `entries` (`index_entry`).

    Returns a sentence in Markdown with links to the first page and to the index.
    """
    pages = {name: Path(folder) / f"{name}.html" for name in names}
    for name, path in pages.items():
        save_explorer(path, results.run, results.record(name))
    size = sum(path.stat().st_size for path in pages.values())
    save_explorer_index(folder, entries, names)
    links = {names[0]: pages[names[0]], "all images": Path(folder) / "index.html"}
    there = ", ".join(f"[{as_code(name)}]({quote(str(path))})" for name, path in links.items())
    return f"{len(names)} pages of {size / 1e6:.1f} MB, and their index: {there}"


def save_explorer(path, run: dict, record: dict) -> Path:
    """Write the page of one image with all its prompts."""
    return _write(path, _page(page_data(run, record)))


def index_entry(record: dict, run: dict) -> dict:
    """What the index shows of an image: name, thumbnail and prompts, some 5 kB. Collect entries in
    a pass over the records, so that the index needs no record."""
    return {
        "name": record["name"],
        "thumbnail": jpeg(open_crop(record).resize((160, 160)), quality=80),
        "prompts": summaries_of(record, run),
    }


def save_explorer_index(folder, entries: list[dict], pages: list[str]) -> Path:
    """Write `index.html` into `folder`: a card per entry (`index_entry`), with links for the images
    named in `pages`, whose pages are `<name>.html` in the same folder."""
    index = [{**entry, "page": entry["name"] in pages} for entry in entries]
    return _write(Path(folder) / "index.html", _page({"index": index, "kinds": list(KINDS)}))


def _page(data: dict) -> str:
    """Join frame, style, script and `data` into one page.

    The page's policy allows this script only, by its hash, and no request: even a text that broke
    out of the data could do nothing.
    """

    def read(name: str) -> str:
        return files(__package__).joinpath(name).read_text("utf-8")

    script = "\n".join(read(f"script/{name}.js") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(read("page.html")).substitute(
        style=read("style.css"), script=script, script_hash=digest, data=pack(data)
    )


def _write(path, page: str) -> Path:
    path = Path(path).absolute()
    write_whole(inside(path.parents[1], path.parent.name) / path.name, page.encode())
    return path
