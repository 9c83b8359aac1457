"""The explorer: a page per image and an index of them, for a browser without a network.

`page.html` and `style.css` serve both. The files of `script`, in the order of SCRIPTS, draw what is
packed here.
"""

import base64
import gzip
import hashlib
import io
import json
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np

from llava_lens.analysis.answers import answer_rows
from llava_lens.data.crop import open_crop
from llava_lens.files import inside, write_whole
from llava_lens.kinds import KINDS
from llava_lens.schema import layer_label
from llava_lens.store import Results
from llava_lens.text import as_code, is_text, printable, require, two_decimals

SCRIPTS = ["data", "state", "photo", "text", "charts", "cards", "words", "saved", "page", "index"]


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
    index = save_explorer_index(folder, entries, names)
    links = {names[0]: pages[names[0]], "all images": index}
    there = ", ".join(f"[{as_code(name)}]({quote(str(path))})" for name, path in links.items())
    return f"{len(names)} pages of {size / 1e6:.1f} MB, and their index: {there}"


def save_explorer(path, run: dict, record: dict) -> Path:
    """Write the page of one image with all its prompts."""
    of_word = ("category", "present", "token_ids", "log2_probs")
    summaries = zip(_summaries(record, run), record["prompts"], strict=True)
    page = {
        **_fields(run, "layers", "grid", "image_size", "top_k"),
        **_fields(record, "name"),
        "crop": _jpeg(open_crop(record), quality=90),
        "objects": [_fields(item, "category", "box") for item in record["objects"]],
        "words": [_fields(word, *of_word) for word in record["words"]],
        "patches": _packed_readings(record["patches"]),
        "prompts": [summary | _packed_prompt(prompt) for summary, prompt in summaries],
        "tokens": _labels_used(run, record),
    }
    return _write_page(path, page)


def index_entry(record: dict, run: dict) -> dict:
    """What the index shows of an image: name, thumbnail and prompts, some 5 kB. Collect entries in
    a pass over the records, so that the index needs no record."""
    return {
        "name": record["name"],
        "thumbnail": _jpeg(open_crop(record).resize((160, 160)), quality=80),
        "prompts": _summaries(record, run),
    }


def _jpeg(image, quality: int) -> np.ndarray:
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=quality)
    return np.frombuffer(jpeg.getvalue(), np.uint8)


def save_explorer_index(folder, entries: list[dict], pages: list[str]) -> Path:
    """Write `index.html` into `folder`: a card per entry (`index_entry`), with links for the images
    named in `pages`, whose pages are `<name>.html` in the same folder."""
    index = [{**entry, "page": entry["name"] in pages} for entry in entries]
    return _write_page(Path(folder) / "index.html", {"index": index, "kinds": list(KINDS)})


def _summaries(record: dict, run: dict) -> list[dict]:
    """Per prompt what both pages say of it, as in the table of answers: `right` is None where the
    truth is not known or the answer can't be graded."""
    rows = [row for row, _ in answer_rows(record, run) if row["token"] == row["word_at"]]
    return [
        {
            **_fields(row, "prompt", "kind", "right", "readable_layer", "question"),
            "short": _shown(row["question"].strip().splitlines()[0]),
            **_fields(row, "answer", "truth"),
            "handed_over": None if np.isnan(row["handed_over"]) else row["handed_over"],
            "layers": _layers_of(row, run),
        }
        for row in rows
    ]


def _layers_of(row: dict, run: dict) -> str:
    """The layers of an answer in words; those of its route, where that is known."""
    layers = f"layers: readable {layer_label(run, row['readable_layer'])}"
    if np.isnan(row["handed_over"]):
        return layers
    leaves, handed = (layer_label(run, row[name]) for name in ("leaves_image", "handed_over"))
    mediated = two_decimals(row["mediated"])
    return f"{layers}, leaves image {leaves}, handed over {handed}; mediated {mediated}"


def _fields(item: dict, *names: str) -> dict:
    return {name: _shown(item[name]) for name in names}


def _shown(value):
    """A text in one line, in which every character can be seen; else `value` itself."""
    return " ".join(map(printable, value.split())) if type(value) is str else value


def _packed_prompt(prompt: dict) -> dict:
    return {
        **_fields(prompt, "n_prompt", "word_at"),
        **{name: prompt[name].tolist() for name in ("token_ids", "answer_ids")},
        "readings": _packed_readings(prompt["readings"]),
        "grey": _packed_target(prompt["grey"]),
    }


def _packed_readings(readings: dict) -> dict:
    return {
        "top_ids": _packed_ids(readings["top_ids"]),
        "top_probs": readings["top_probs"].astype(np.float16),
        **_packed_target(readings),
    }


def _packed_target(readings: dict) -> dict:
    log2 = np.log2(np.maximum(readings["target_prob"], 2.0**-126)).astype(np.float16)
    return {"target_log2": log2, "target_rank": _packed_ids(readings["target_rank"])}


def _packed_ids(ids: np.ndarray) -> np.ndarray:
    """Token ids or ranks in 16 bits, of a vocabulary beyond that in 32."""
    return ids.astype(np.promote_types(np.uint16, np.min_scalar_type(int(ids.max()))))


def _labels_used(run: dict, record: dict) -> dict[int, str]:
    """Labels by token id, of the tokens that occur in the record."""
    readings = [record["patches"], *(prompt["readings"] for prompt in record["prompts"])]
    ids = [reading["top_ids"].ravel() for reading in readings]
    ids += [prompt[name] for prompt in record["prompts"] for name in ("token_ids", "answer_ids")]
    ids += [word["token_ids"] for word in record["words"]]
    return {int(i): printable(run["tokens"][i]) for i in np.unique(np.concatenate(ids))}


def _write_page(path, data: dict) -> Path:
    """Join frame, style, script and `data` into one file.

    The page's policy allows this script only, by its hash, and no request: even a text that broke
    out of the data could do nothing.
    """

    def read(name: str) -> str:
        return files(__package__).joinpath(name).read_text("utf-8")

    script = "\n".join(read(f"script/{name}.js") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = Template(read("page.html")).substitute(
        style=read("style.css"), script=script, script_hash=digest, data=_pack(data)
    )
    path = Path(path)
    write_whole(inside(path.parents[1], path.parent.name) / path.name, page.encode())
    return path


def _pack(data: dict) -> str:
    """`data` as base64 of gzip: a line of JSON, then the bytes of its arrays. In the JSON an array
    is its dtype, its first byte and its end."""
    arrays = []

    def refer(array: np.ndarray) -> dict:
        start = sum(map(len, arrays))
        arrays.append(array.tobytes())
        return {"array": [array.dtype.name, start, start + len(arrays[-1])]}

    text = json.dumps(data, default=refer, allow_nan=False)
    packed = gzip.compress(b"".join([text.encode(), b"\n", *arrays]), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode()
