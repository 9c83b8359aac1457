"""A value of the results against the schema."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from llava_lens.kinds import KINDS
from llava_lens.schema import (
    ABSENT_SAMPLINGS,
    FORMAT_VERSION,
    LEAST_SIDE,
    MOST_CELLS,
    MOST_NAME_BYTES,
    MOST_TEXT,
    OF_OBJECTS,
    OTHER_RELEASE,
    PART,
    RECORD,
    ROUNDING,
    RUN,
    SEGMENTS,
    Field,
)
from llava_lens.text import is_text, require


def _is_storable(value) -> bool:
    """Whether `value` is a text, perhaps blank, of a length to be shown, that can be written."""
    return is_text(f"x{value}") and type(value) is str and len(value) <= MOST_TEXT


def _check(value, field: Field, sizes: dict[str, float], where: str) -> None:
    """Raise ValueError unless `value` is what `field` says.

    `sizes` has the sizes that names in the field stand for; one that is not known yet is taken
    from `value` and holds from there on, within the same dict.
    """
    if isinstance(field.kind, dict):
        require(type(value) is dict, f"{where} is no dict")
        if field.may_be_empty and not value:
            return
        unknown = value.keys() - field.kind.keys()
        require(not unknown, f"{where} has other fields than the format: {sorted(unknown)}"[:200])
        sizes = sizes | ({"pos": sizes[field.shape[0]]} if field.shape else {})
        for name, inner in field.kind.items():
            if inner.optional and name not in value:
                continue
            require(name in value, f"{where} has no {name}")
            _check(value[name], inner, sizes, f"{where}, {name}")
    elif isinstance(field.kind, list):
        require(type(value) is list, f"{where} is no list")
        for number, item in enumerate(value):
            _check(item, Field(field.kind[0], ""), sizes, f"{where} {number}")
    elif field.kind is dict:
        require(type(value) is dict, f"{where} is no dict")
        texts = [text for item in value.items() for text in item]
        require(all(map(_is_storable, texts)), f"{where} is not texts by text")
    elif field.kind in ("f", "i", "u"):
        _check_array(value, field, sizes, where)
    else:
        values = value if field.shape else [value]
        require(type(values) is list, f"{where} is no list")
        for axis in field.shape:
            expected = sizes.setdefault(axis, len(values))
            require(len(values) == expected, f"{where} has {len(values)} items, not {expected}")
        kinds = field.kind if isinstance(field.kind, tuple) else (field.kind,)
        names = " or ".join(getattr(kind, "__name__", kind) for kind in kinds)
        least, most = field.least, sizes.get(field.most, field.most)
        bounds = "" if least is None else f" from {least:g} to {most:g}"
        for one in values:
            size = len(one) if type(one) is str else one
            fits = is_text(one) if field.kind == "text" else type(one) in kinds
            fits = fits and (type(one) is not str or _is_storable(one))
            fits = fits and (least is None or least <= size <= most)
            require(fits, f"{where} is no {names}{bounds}")


def _check_array(value, field: Field, sizes: dict[str, float], where: str) -> None:
    require(type(value) is np.ndarray and value.dtype.kind == field.kind, f"{where} is no array")
    known = zip(field.shape, value.shape, strict=False)
    shape = tuple(sizes.setdefault(axis, length) for axis, length in known)
    require(value.shape == shape and value.ndim == len(field.shape), f"{where} is no array {shape}")
    if where.endswith("jsd_prev"):
        require(np.isnan(value[0]).all(), f"{where}: the first layer has none before it")
        value = value[1:]
    least, most = field.least, sizes.get(field.most, field.most)
    within = ((value >= least) & (value <= most)).all()
    require(within, f"{where} has numbers that are not from {least:g} to {most:g}")


def check_run(run) -> None:
    """Raise an error unless `run` can be what `lens_read.describe_run` returned."""
    version = str(run["format_version"])[:20]
    require(version == str(FORMAT_VERSION), f"its format version is {version}, {OTHER_RELEASE}")
    sizes = {"d_vocab": len(run["tokens"])}
    _check(run, Field(RUN, ""), sizes, "run")
    layers, labels = run["layers"], ["emb", *map(str, range(1, run["n_layers"] + 1))]
    in_order = layers == [label for label in labels if label in layers]
    require(in_order and len(layers) > 1, "layers are not emb, 1, 2, ... or some in that order")
    require(layers[-1] == labels[-1], "layers end before the last")
    require(run["segments"] == SEGMENTS, f"segments are not {SEGMENTS}")
    require(run["tokens"], "there are no tokens")
    require(run["grid"] <= run["image_size"], "grid is larger than image_size")
    windows, n_layers = run["knockout_windows"], run["n_layers"]
    pairs = all([type(block) for block in window] == [int, int] for window in windows)
    pairs = pairs and all(1 <= first <= last <= n_layers for first, last in windows)
    require(pairs, f"knockout_windows are not pairs of blocks from 1 to {n_layers}")
    require(windows[-1:] in ([], [[1, n_layers]]), "the last of knockout_windows is not all blocks")
    patched = run["route_layers"]
    ascending = patched == sorted({*patched})
    ends = not patched or [patched[0], patched[-1]] == [0, n_layers]
    require(ascending and ends, f"route_layers are not ascending from 0 to {n_layers}")


def _sizes_of(run: dict) -> dict[str, float]:
    """What the names of axes and bounds in the tables stand for."""
    d_vocab = len(run["tokens"])
    return {
        "layer": len(run["layers"]),
        "segment": len(SEGMENTS),
        "patch": run["grid"] ** 2,
        "top_k": run["top_k"],
        "window": len(run["knockout_windows"]),
        "route_layer": len(run["route_layers"]),
        "d_vocab": d_vocab,
        "last_id": d_vocab - 1,
        "most_bits": np.log2(d_vocab) + ROUNDING,
        "xywh": 4,
        "side": run["image_size"] + ROUNDING,
    }


def check_record(record, run: dict, name: str) -> None:
    """Raise an error unless `record` can be that of the image `name`, read in `run`."""
    _check(record, Field(RECORD, ""), _sizes_of(run), "record")
    require(record["name"] == name, "name is not that of the file")
    require(record["prompts"], "there are no prompts")
    n_pos = sum(len(prompt["token_ids"]) for prompt in record["prompts"])
    require(n_pos * len(run["layers"]) <= MOST_CELLS, "prompts have too many positions to be shown")
    for number, prompt in enumerate(record["prompts"]):
        require(prompt["kind"] in KINDS, f"prompt {number} has no known kind")
        n_prompt, n_answer = prompt["n_prompt"], len(prompt["answer_ids"])
        agree = len(prompt["token_ids"]) == n_prompt + n_answer - 1
        lengths = n_prompt >= 1 and n_answer >= 1 and agree
        require(lengths, f"the lengths of prompt {number} don't agree")
        sampling = prompt["absent_sampling"]
        known = sampling in ["", *ABSENT_SAMPLINGS]
        require(known, f"prompt {number} has no known absent_sampling")
        cuts, route = prompt["knockout"], prompt.get("route")
        require(
            not cuts or run["knockout_windows"], f"prompt {number} has a knockout, the run none"
        )
        both = len(cuts.keys() & {*OF_OBJECTS}) != 1
        require(both, f"knockout of prompt {number} has one of {' and '.join(OF_OBJECTS)}")
        require(not route or run["route_layers"], f"prompt {number} has a route, the run none")
        differ = not route or route["own_id"] != route["other_id"]
        require(differ, f"route of prompt {number} has one token for both answers")
        spells = not prompt["word_ids"] or int(prompt["answer_ids"][0]) in prompt["word_ids"]
        require(spells, f"word_ids of prompt {number} don't have the answer's first token")
    seen = {item["category"] for item in record["objects"] if min(item["box"][2:]) >= LEAST_SIDE}
    for number, item in enumerate(record["objects"]):
        x, y, width, height = item["box"]
        in_crop = max(x + width, y + height) <= run["image_size"] + ROUNDING
        require(in_crop, f"the box of object {number} leaves the crop")
    for number, word in enumerate(record["words"]):
        require(word["token_ids"], f"word {number} has no tokens")
        require(not word["present"] or word["category"] in seen, f"word {number} is no object's")
        samplings = [""] if word["present"] else ABSENT_SAMPLINGS
        known = word["absent_sampling"] in samplings
        require(known, f"word {number} has no known absent_sampling")
    _check_crop(record["crop"], run["image_size"])


def _check_crop(jpeg: np.ndarray, image_size: int) -> None:
    require(jpeg.nbytes <= 2**22 and jpeg.dtype == np.uint8, "crop is too large or no bytes")
    with Image.open(io.BytesIO(jpeg.tobytes()), formats=["JPEG"]) as crop:
        is_plain = crop.size == (image_size, image_size) and crop.mode == "RGB"
        # A small JPEG with scans upon scans, or a progressive one, can take hours. The two bytes
        # begin a scan wherever a decoder could find one, and are nowhere else in what is saved.
        one_scan = jpeg.tobytes().count(b"\xff\xda") == 1
        is_plain = is_plain and one_scan and "progressive" not in crop.info
        require(is_plain, f"crop is no plain image in RGB of {image_size} x {image_size}")
        crop.load()


def check_part(part, run: dict) -> None:
    """Raise an error unless `part` can be what a process saved in `run`."""
    names = part["images"]
    # No image adds more than 1 to a sum.
    most_sum = (1 + ROUNDING) * max(len(names), 1)
    _check(part, Field(PART, ""), _sizes_of(run) | {"most_sum": most_sum}, "part")
    for name in names:
        is_file_name = name == Path(name).name not in ("", "..") and not set("\\\0") & {*name}
        is_file_name = is_file_name and len(name.encode()) <= MOST_NAME_BYTES
        require(is_file_name, "an image's name is no name of a file")
    require(len(set(names)) == len(names), "an image is counted twice")
    # Each image adds, per segment with positions and layer, a distribution, whose sum is 1.
    near = np.isclose(part["sums"].sum(axis=-1), part["n_images"][:, None], 1e-3, 1e-6)
    require(near.all(), "sums are not those of n_images distributions")
