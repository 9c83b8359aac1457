"""The explorer: a page per image to look at in a browser."""

import base64
import gzip
import hashlib
import io
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import first_tokens
from llava_lens.analysis.grading import is_right
from llava_lens.data.crop import open_crop
from llava_lens.kinds import KINDS
from llava_lens.schema import layer_label
from llava_lens.text import is_text, printable, require


def explorer_names(explorers, image: str, cases: list[str], names: list[str]) -> list[str]:
    """The images that get a page, `image` first: `cases` for "cases", all `names` for "all", those
    named for a list. Raises ValueError for anything else and for a name that is not known."""
    wanted = {"cases": cases, "all": names}.get(explorers) if is_text(explorers) else explorers
    require(
        isinstance(wanted, (list, tuple)) and set(wanted) <= set(names),
        f'explorers is {explorers!r}: it must be "cases", "all" or a list of names of images.',
    )
    return list(dict.fromkeys([image, *wanted]))


def save_explorer(path, run: dict, record: dict) -> Path:
    """Write the explorer of one image with all its prompts: one HTML page that needs no network.

    Probabilities are kept in float16, those of targets and watched words as log2.
    """
    value = {
        **{name: run[name] for name in ("layers", "grid", "image_size", "top_k")},
        "name": _one_line(record["name"]),
        "crop": record["crop"],
        "objects": [
            {"category": _one_line(item["category"]), "box": item["box"]}
            for item in record["objects"]
        ],
        "words": [
            {
                "category": _one_line(word["category"]),
                **{name: word[name] for name in ("present", "token_ids", "log2_probs")},
            }
            for word in record["words"]
        ],
        "patches": _explorer_readings(record["patches"]),
        "prompts": [_explorer_prompt(prompt, run) for prompt in record["prompts"]],
        "tokens": _labels_used(run, record),
    }
    return _write_page(path, value)


def _explorer_prompt(prompt: dict, run: dict) -> dict:
    """What the page shows of a prompt."""
    return {
        **_question_of(prompt, run),
        "n_prompt": prompt["n_prompt"],
        "token_ids": prompt["token_ids"].tolist(),
        "answer_ids": prompt["answer_ids"].tolist(),
        "readings": _explorer_readings(prompt["readings"]),
        "grey": {
            "target_log2": _as_log2(prompt["grey"]["target_prob"]),
            "target_rank": _packed_ids(prompt["grey"]["target_rank"]),
        },
    }


def _question_of(prompt, run: dict) -> dict:
    """Kind, question, its first line, answer, truth and whether the answer is right (None: not
    known, or not gradable), of a prompt or a row of `tabulate`."""
    truth, given = prompt["truth"], (prompt["kind"], prompt["answer"], prompt["truth"])
    return {
        "kind": prompt["kind"],
        "question": _one_line(prompt["question"]),
        "short": _one_line(prompt["question"].strip().splitlines()[0]),
        "answer": _one_line(prompt["answer"]),
        "truth": None if truth is None else _one_line(truth),
        "right": None if truth is None else is_right(*given, run["categories"]),
    }


def _explorer_readings(readings: dict) -> dict:
    return {
        "top_ids": _packed_ids(readings["top_ids"]),
        "top_probs": readings["top_probs"].astype(np.float16),
        "target_log2": _as_log2(readings["target_prob"]),
        "target_rank": _packed_ids(readings["target_rank"]),
    }


def _packed_ids(ids: np.ndarray) -> np.ndarray:
    """Token ids or ranks in 16 bits, of a vocabulary beyond that in 32."""
    return ids.astype(np.promote_types(np.uint16, np.min_scalar_type(int(ids.max()))))


def _as_log2(probs: np.ndarray) -> np.ndarray:
    return np.log2(np.maximum(probs, 2.0**-126)).astype(np.float16)


def _labels_used(run: dict, record: dict) -> dict[int, str]:
    """The labels by token id, of the tokens that occur in the record."""
    readings = [record["patches"], *(prompt["readings"] for prompt in record["prompts"])]
    ids = [reading["top_ids"].ravel() for reading in readings]
    ids += [prompt[name] for prompt in record["prompts"] for name in ("token_ids", "answer_ids")]
    ids += [word["token_ids"] for word in record["words"]]
    return {int(i): printable(run["tokens"][i]) for i in np.unique(np.concatenate(ids))}


def _one_line(text: str) -> str:
    """A text with all its characters to be seen, and without line breaks."""
    return " ".join(map(printable, text.split()))


def save_explorer_index(folder, run: dict, records: Iterable[dict], answers: pd.DataFrame) -> Path:
    """Write `index.html` beside the explorers in `folder`: a card per record with its thumbnail,
    questions, answers and the layer from which they are readable (`answers` of `tabulate`)."""
    first = dict(list(first_tokens(answers).groupby("image")))
    rows = []
    for record in records:
        thumbnail = io.BytesIO()
        open_crop(record).resize((160, 160)).save(thumbnail, "JPEG", quality=80)
        rows.append(
            {
                "name": record["name"],
                "page": (Path(folder) / f"{record['name']}.html").is_file(),
                "thumbnail": np.frombuffer(thumbnail.getvalue(), np.uint8),
                "prompts": [
                    {
                        **_question_of(prompt, run),
                        "prompt": int(prompt["prompt"]),
                        "readable_layer": int(prompt["readable_layer"]),
                        "readable_label": layer_label(run, prompt["readable_layer"]),
                    }
                    for _, prompt in first[record["name"]].iterrows()
                ],
            }
        )
    return _write_page(Path(folder) / "index.html", {"index": rows, "kinds": list(KINDS)})


def _write_page(path, value: dict) -> Path:
    """Fill the template with `value`. Its policy allows the template's script only, by its hash,
    and no request: even a text that broke out could do nothing."""
    template = files(__package__).joinpath("explorer.html").read_text("utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = template.replace("SCRIPT_HASH", digest).replace("DATA_HERE", _pack(value))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _pack(value: dict) -> str:
    """`value` as base64 of gzip of a line of JSON and the bytes of its arrays, to which the JSON
    refers by type, first byte and end."""
    arrays = []

    def refer(array: np.ndarray) -> dict:
        start = sum(map(len, arrays))
        arrays.append(array.tobytes())
        return {"array": [array.dtype.name, start, start + len(arrays[-1])]}

    text = json.dumps(value, default=refer, allow_nan=False)
    packed = gzip.compress(b"".join([text.encode(), b"\n", *arrays]), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode()
