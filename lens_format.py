"""The format of the results on disk: a reference page, and the checks that follow it.

The tables `RUN`, `RECORD`, `PROMPT`, `READINGS`, `OBJECT`, `WORD` and `PART` say what each field
is. It knows nothing of files, models, tables or figures.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = [
    "FORMAT_VERSION", "SEGMENTS", "KINDS", "WAYS", "COLOURS", "UNIT", "DEMO_NOTE", "LEAST_SIDE",
    "MOST_LABEL", "MOST_NAME_BYTES", "ASKED", "RUN", "READINGS", "RECORD", "OBJECT", "WORD",
    "PROMPT", "CONTROL", "KNOCKOUT", "OF_OBJECTS", "PART", "require", "is_text", "check_run",
    "check_record", "check_part",
]  # fmt: skip

# ---- The format of the results -----------------------------------------------------------------

FORMAT_VERSION = 3
SEGMENTS = ["image", "prompt", "answer"]
KINDS = ["object", "presence", "colour", "relation", "description", "own"]
# Of absent categories: POPE's three (Li et al., arXiv 2305.10355).
WAYS = ["random", "popular", "adversarial"]
# The basic colour terms of English. Source: Berlin and Kay, "Basic Color Terms" (1969).
COLOURS = [
    "black", "white", "gray", "red", "green", "yellow", "blue", "brown", "orange", "pink", "purple",
]  # fmt: skip
UNIT = "bits"  # of JSD and entropy, everywhere
DEMO_NOTE = (
    "This is the small demo model: it knows six shapes and seven colours, and what is read from it "
    "says nothing about LLaVA-1.5-7B. For photographs, set `model` to llava-hf/llava-1.5-7b-hf "
    "(a GPU of 16 GB)."
)
OTHER_RELEASE = (
    f"this release reads {FORMAT_VERSION}: read the images again with Make_Analyse.ipynb, or take "
    "the release that made these results"
)
ROUNDING = 1e-4  # of sums in float32
LEAST_SIDE = 0.01  # pixels of a box: below it is rounding


class Field(NamedTuple):
    """One field of the results: what `check_run`, `check_record` and `check_part` ask of it.

    `kind` is a Python type (or several), "text" (one that is not blank), the kind of numbers of a
    numpy array (`f`, `i` or `u`), `dict` for texts by text, the table of a dict, or a list of that
    table for a list of such dicts. `shape` names the sizes of an array's axes; a plain value with
    a shape is a list. Numbers are from `least` to `most`; a size may be named there too. A text has
    at most `most` characters. One that is `optional` may be missing.
    """

    kind: type | tuple[type, ...] | str | dict | list
    meaning: str
    shape: tuple[str, ...] = ()
    least: float | None = None
    most: float | str | None = None
    optional: bool = False


MOST_LAYERS, MOST_GRID, MOST_PIXELS, MOST_LABEL, MOST_TEXT = 200, 64, 2048, 100, 2**16
MOST_NAME_BYTES = 200  # file systems allow names of 255, a record adds a suffix
MOST_CELLS = 2**20  # layers x text positions of a record; of LLaVA-1.5-7B a prompt has some 3,000
ASKED = {  # a prompt before it is read
    "kind": Field(str, "one of KINDS"),
    "question": Field("text", "as asked, without the template around it"),
    "truth": Field((str, type(None)), "the right answer, where it is known"),
    "truth_from": Field(str, "annotation, pixels (of the object's polygon), user, or empty"),
    "categories": Field("text", "the categories that the question is about", ("category",)),
    "way": Field(str, "how an absent category was drawn, one of WAYS; empty elsewhere"),
}
RUN = {  # run.pkl: what the records have in common
    "format_version": Field(int, f"{FORMAT_VERSION}"),
    "model": Field(str, "hub id or folder"),
    "revision": Field(str, "commit on the hub, or a fingerprint of the weights"),
    "dtype": Field(str, "of the weights"),
    "packages": Field(dict, "versions by name"),
    "n_layers": Field(int, "blocks of the language tower", (), 1, MOST_LAYERS),
    "layers": Field(str, "labels: emb, or l for the state after block l", ("layer",)),
    "segments": Field(str, "labels of the segment axis", ("segment",)),
    "tokens": Field(str, "labels of the unembedding's rows", ("d_vocab",), 0, MOST_LABEL),
    "grid": Field(int, "patches along a side of the crop", (), 1, MOST_GRID),
    "image_size": Field(int, "pixels along a side of the crop", (), 1, MOST_PIXELS),
    "chat": Field(str, "template around a question"),
    "questions": Field(dict, "template of the question by kind"),
    "own_prompts": Field([ASKED], "the user's own; empty: made from annotations"),
    "categories": Field("text", "names of all categories of the data set", ("category",)),
    "per_kind": Field(int, "prompts per kind and image, where made from annotations"),
    "seed": Field(int, "of the choice among candidates"),
    "top_k": Field(int, "tokens kept per layer and position", (), 1, "d_vocab"),
    "max_new_tokens": Field(int, "of an answer"),
    # First and last block, from 1; the last window has all blocks. Empty: attention was not cut.
    "knockout_windows": Field(list, "windows of blocks", ("window",)),
    "last_layer_jsd": Field(float, "of lens and model on the first image, bits", (), 0, 1),
}
LAYER, LAYER_POS = ("layer",), ("layer", "pos")
READINGS = {  # at each layer and position; a reading is about the token that follows the position
    "top_ids": Field("u", "ids of the top-k tokens", (*LAYER_POS, "top_k"), 0, "last_id"),
    "top_probs": Field("f", "their probabilities, falling", (*LAYER_POS, "top_k"), 0, 1 + ROUNDING),
    "jsd_prev": Field("f", "JSD to the layer before, bits; NaN at the first", LAYER_POS, 0, 1),
    "jsd_final": Field("f", "JSD to the last layer, bits", LAYER_POS, 0, 1),
    "entropy": Field("f", "in bits", LAYER_POS, -ROUNDING, "most_bits"),
    # The target is the answer's token that follows, elsewhere the last layer's top-1.
    "target_prob": Field("f", "probability of the target", LAYER_POS, 0, 1 + ROUNDING),
    "target_rank": Field("u", "rank of the target, 1 = top", LAYER_POS, 1, "d_vocab"),
}
OBJECT = {
    "category": Field(str, "its name"),
    "box": Field(float, "x, y, width, height in pixels of the crop, clipped", ("xywh",), 0, "side"),
    "crowd": Field(bool, "COCO's iscrowd"),
    "color": Field((str, type(None)), "where it is known"),
    "color_from": Field(str, "annotation, pixels (of its polygon), or empty"),
    "visible": Field(float, "share of the object within the crop", (), 0, 1.001),
    "share": Field(float, "share of the crop that it takes", (), 0, 1.001),
}
WORD = {
    "category": Field("text", "its name"),
    "present": Field(bool, "whether the image has it"),
    "way": Field(str, "how an absent one was drawn, one of WAYS; empty: present"),
    "token_ids": Field(int, "its word, whole: their probabilities add", ("token",), 0, "last_id"),
    "log2_probs": Field("f", "log2 of the sum, in float16", ("layer", "patch"), -127, 0.01),
}
CONTROL = {  # of the first token of the answer that the image got, at the prompt's last position
    "target_prob": Field("f", "its probability", LAYER, 0, 1 + ROUNDING),
    "target_rank": Field("u", "its rank, 1 = top", LAYER, 1, "d_vocab"),
    "word_prob": Field("f", "as PROMPT's", LAYER, 0, 1 + ROUNDING),
    "word_rank": Field("u", "as PROMPT's", LAYER, 1, "d_vocab"),
}
KNOCKOUT = {  # P of the first answer token where, in a window of blocks, attention is cut ...
    way: Field("f", f"... from {way_from} to {way_to}", ("window",), 0, 1 + ROUNDING, optional=True)
    for way, way_from, way_to in [
        ("object", "all text after the image", "the patches of the objects asked about"),
        ("background", "all text after the image", "as many patches outside their boxes: control"),
        ("image_last", "the last position", "all patches"),
        ("question_last", "the last position", "the other text after the image"),
        ("image", "all text after the image", "all patches"),
    ]
}
OF_OBJECTS = ["object", "background"]  # only where the objects are known
PROMPT = {
    **ASKED,
    "token_ids": Field("i", "input tokens after the image", ("pos",), 0, "last_id"),
    "n_prompt": Field(int, "how many of them are the prompt's; the others are the answer's"),
    "answer_ids": Field("i", "the answer's tokens with the end token", ("answer",), 0, "last_id"),
    "answer": Field(str, "the answer as text"),
    # Tokens that spell the answer's first word; none if its first token is a piece of a word.
    "word_ids": Field(int, "spellings of the first word", ("spelling",), 0, "last_id"),
    "word_prob": Field("f", "their sum, where the answer begins", LAYER, 0, 1 + ROUNDING),
    "word_rank": Field("u", "its rank among the words, 1 = top", LAYER, 1, "d_vocab"),
    "readings": Field(READINGS, "at the positions of token_ids", ("pos",)),
    "grey": Field(CONTROL, "the same prompt with a plain grey image"),
    "other": Field(CONTROL, "the same with the image before, where there is one", optional=True),
    "knockout": Field(KNOCKOUT, "empty if switched off, or for a prompt too long for it"),
}
RECORD = {  # images/<name>.pkl: one image with its prompts
    "name": Field(str, "the image's, and the file's"),
    "image_digest": Field(str, "of the image's file (`lens_data.digests_of`)"),
    "annotations_digest": Field(str, "of the image's annotations, before the crop"),
    "objects": Field([OBJECT], "annotated objects"),
    "words": Field([WORD], "categories watched in the patches"),
    "prompts": Field([PROMPT], "one or more"),
    "patches": Field(READINGS, "positions are patches, row by row", ("patch",)),
    "crop": Field("u", "the image as the model saw it: a JPEG's bytes", ("byte",), 0, 255),
}
PART = {  # parts/<process>.pkl: what one process has read; an image counts once it is here
    "images": Field("text", "names", ("image",)),
    "skipped": Field(dict, "the reason by name"),
    "n_images": Field("i", "images with positions in the segment", ("segment",), 0, "image"),
    # The mean over the positions of a segment, summed over the images.
    "sums": Field("f", "mean probability", ("segment", "layer", "d_vocab"), 0, "most_sum"),
}


def require(holds, what: str) -> None:
    """Raise ValueError(what) unless `holds`."""
    if not holds:
        raise ValueError(what)


def is_text(value) -> bool:
    """Whether `value` is a plain text that is not blank and can be written to any file."""
    try:
        return type(value) is str and value.strip() != "" and value.encode("utf-8") is not None
    except UnicodeEncodeError:  # half a character, from a file name that is not UTF-8 for instance
        return False


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


def _sizes_of(run: dict) -> dict[str, float]:
    """What the names of axes and bounds in the tables stand for."""
    d_vocab = len(run["tokens"])
    return {
        "layer": len(run["layers"]),
        "segment": len(SEGMENTS),
        "patch": run["grid"] ** 2,
        "top_k": run["top_k"],
        "window": len(run["knockout_windows"]),
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
        require(prompt["way"] in ["", *WAYS], f"prompt {number} has no known way")
        ways = prompt["knockout"].keys()
        all_ways = KNOCKOUT.keys(), KNOCKOUT.keys() - {*OF_OBJECTS}
        known = not ways or run["knockout_windows"] and ways in all_ways
        require(known, f"knockout of prompt {number} has other ways than {', '.join(KNOCKOUT)}")
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
        ways = [""] if word["present"] else WAYS
        require(word["way"] in ways, f"word {number} has no known way")
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
