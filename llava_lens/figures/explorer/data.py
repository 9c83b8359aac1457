"""What an explorer's page holds: packed into the page, and read back from what it saves."""

import base64
import gzip
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from llava_lens.analysis.answers import answer_rows
from llava_lens.analysis.causal import PATCHED, effects_of
from llava_lens.analysis.grounding import sink_patches
from llava_lens.data.crop import open_crop
from llava_lens.files import check_file
from llava_lens.schema import N_NEAREST, NEAREST_EVERY, layer_label, layer_numbers, weights_label
from llava_lens.text import printable, require, two_decimals

FORMAT = "llava-lens explorer 2"  # of what a page saves as JSON
MOST_BYTES = 2**28  # of such a file; of LLaVA-1.5-7B one has 6 MB


def page_data(run: dict, record: dict) -> dict:
    """All that the page of an image shows, with its arrays as they are."""
    summaries = zip(summaries_of(record, run), record["prompts"], strict=True)
    rows, columns = run["grid"]
    patches, sinks = record["patches"], sink_patches(record)
    return {
        "format": FORMAT,
        "model": _shown(f"{run['model']} ({weights_label(run)})"),
        **shown_fields(run, "layers"),
        **shown_fields(record, "name"),
        "grid": [rows, columns],
        "patch_side": run["image_size"] / columns,  # pixels of the crop
        "crop": jpeg(open_crop(record), quality=90),
        "objects": [shown_fields(item, "category", "box") for item in record["objects"]],
        "words": [_packed_word(word) for word in record["words"]],
        "patches": _packed_readings(patches),
        "embedding": _packed_embedding(patches) if "embedding_ids" in patches else None,
        "sinks": None if sinks is None else np.flatnonzero(sinks).tolist(),
        "prompts": [one | _packed_prompt(prompt, run) for one, prompt in summaries],
        "tokens": _labels_used(run, record),
    }


def jpeg(image, quality: int) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return np.frombuffer(file.getvalue(), np.uint8)


def summaries_of(record: dict, run: dict) -> list[dict]:
    """Per prompt what page and index say of it, as in the table of answers: `right` is None where
    the truth is not known or the answer can't be graded."""
    rows = [row for row, _ in answer_rows(record, run) if row["token"] == row["word_at"]]
    return [
        {
            **shown_fields(row, "prompt", "kind", "right", "readable_layer", "question"),
            "short": _shown(row["question"].strip().splitlines()[0]),
            **shown_fields(row, "answer", "truth"),
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


def shown_fields(item: dict, *names: str) -> dict:
    return {name: _shown(item[name]) for name in names}


def _shown(value):
    """A text in one line, in which every character can be seen; else `value` itself."""
    return " ".join(map(printable, value.split())) if type(value) is str else value


def _packed_word(word: dict) -> dict:
    packed = shown_fields(word, "category", "present", "token_ids", "log2_probs")
    return packed | {name: _packed_cosines(word[name]) for name in ("cosines",) if name in word}


def _packed_prompt(prompt: dict, run: dict) -> dict:
    route = None
    if effects := effects_of(prompt):
        route = {name: effects[name].tolist() for name in PATCHED}
        layers = np.searchsorted(layer_numbers(run), run["route_layers"])  # on the layer axis
        route |= {"at": layers.tolist(), **shown_fields(prompt["route"], "other", "other_answer")}
    return {
        **shown_fields(prompt, "n_prompt", "word_at"),
        **{name: prompt[name].tolist() for name in ("token_ids", "answer_ids")},
        "readings": _packed_readings(prompt["readings"]),
        "grey": _packed_target(prompt["grey"]),
        "route": route,
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


def _packed_embedding(patches: dict) -> dict:
    """The second lens: the nearest input embeddings, `at` these places of the layer axis."""
    return {
        "at": [*range(0, len(patches["top_ids"]), NEAREST_EVERY)],
        "top_ids": _packed_ids(patches["embedding_ids"]),
        "cosines": _packed_cosines(patches["embedding_cosines"]),
    }


def _packed_cosines(cosines: np.ndarray) -> np.ndarray:
    """Cosines to 0.001: what a page shows. It makes the page smaller."""
    return np.round(cosines.astype(float), 3).astype(np.float16)


def _packed_ids(ids: np.ndarray) -> np.ndarray:
    """Token ids or ranks in 16 bits, of a vocabulary beyond that in 32."""
    return ids.astype(np.promote_types(np.uint16, np.min_scalar_type(int(ids.max()))))


def _labels_used(run: dict, record: dict) -> dict[int, str]:
    """Labels by token id, of the tokens that occur in the record."""
    patches = record["patches"]
    readings = [patches, *(prompt["readings"] for prompt in record["prompts"])]
    ids = [reading["top_ids"].ravel() for reading in readings]
    ids += [patches[name].ravel() for name in ("embedding_ids",) if name in patches]
    ids += [prompt[name] for prompt in record["prompts"] for name in ("token_ids", "answer_ids")]
    ids += [word["token_ids"] for word in record["words"]]
    return {int(i): printable(run["tokens"][i]) for i in np.unique(np.concatenate(ids))}


def pack(data: dict) -> str:
    """`data` as base64 of gzip: a line of JSON, then the bytes of its arrays.

    In the JSON an array is its dtype, its first byte, its end and its shape. Its bytes are in
    planes, first the low byte of all its numbers: that makes a page a tenth smaller.
    """
    parts = []

    def refer(array: np.ndarray) -> dict:
        start, planes = sum(map(len, parts)), array.reshape(-1, 1).view(np.uint8).T
        parts.append(planes.tobytes())
        return {"array": [array.dtype.name, start, start + len(parts[-1]), array.shape]}

    text = json.dumps(data, default=refer, allow_nan=False)
    packed = gzip.compress(b"".join([text.encode(), b"\n", *parts]), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode()


def load_page_data(path) -> dict:
    """What the explorer's *Save JSON* saved: plain values, and arrays where a record has them.

    `patches` and each prompt's `readings` have `top_ids` and `top_probs` `[layer, pos, top_k]`,
    `target_log2` and `target_rank` `[layer, pos]`; a prompt's `grey` has the last two `[layer]`;
    `embedding` (or None) has `top_ids` and `cosines` `[at, patch, 5]`, `at` the layers; a word has
    `log2_probs` `[layer, patch]`; `crop` is `[row, column, rgb]`. `tokens` has the labels by id.
    Raises OSError if the file can't be read, ValueError if a field is missing or misshapen.
    """
    try:
        check_file(path, MOST_BYTES)
        data = json.loads(Path(path).read_bytes())
        require(data["format"] == FORMAT, f"its format is {data['format']!r:.50}")
        data["tokens"] = {int(i): label for i, label in data["tokens"].items()}
        require({type(label) for label in data["tokens"].values()} == {str}, "a label is no text")
        with Image.open(io.BytesIO(base64.b64decode(data["crop"])), formats=["JPEG"]) as crop:
            data["crop"] = np.asarray(crop.convert("RGB"))
        for fields, names, shape in _arrays_of(data):
            for name in names:
                fields[name] = _as_read(name, fields[name], shape)
    except (FileNotFoundError, PermissionError):  # they name the file
        raise
    except Exception as error:  # a stranger's file can raise nearly anything
        known = f"{str(path)!r} is not what the explorer's Save JSON saves ({error!r:.200})"
        raise ValueError(f"{known}: save it again from the page.") from error
    return data


def _arrays_of(data: dict) -> list[tuple]:
    """Parts, names of their arrays, and the shape that fits the layers, the grid and the tokens."""
    n_layers, patches, prompts = len(data["layers"]), data["patches"], data["prompts"]
    of_patches, top_k = (n_layers, int(np.prod(data["grid"]))), len(patches["top_ids"][0][0])
    parts = [(one, ["log2_probs", *one.keys() & {"cosines"}], of_patches) for one in data["words"]]
    if (nearest := data["embedding"]) is not None:
        shape = len(nearest["at"]), of_patches[1], N_NEAREST
        parts += [(nearest, ("top_ids", "cosines"), shape)]
    targets = ("target_log2", "target_rank")
    texts = [(one["readings"], (n_layers, len(one["token_ids"]))) for one in prompts]
    for readings, shape in [(patches, of_patches), *texts]:
        parts += [(readings, ("top_ids", "top_probs"), (*shape, top_k)), (readings, targets, shape)]
    return parts + [(one["grey"], targets, (n_layers,)) for one in prompts]


def _as_read(name: str, nested: list, shape: tuple) -> np.ndarray:
    """An array of the JSON; its floats are those of float16 again, of which it has five digits."""
    array, kinds = np.array(nested), "i" if name in ("top_ids", "target_rank") else "if"
    said = f"{name} is {array.dtype} of shape {array.shape}, not numbers of shape {shape}"
    require(array.dtype.kind in kinds and array.shape == shape, said)
    return array.astype(np.float16).astype(np.float32) if array.dtype == float else array
