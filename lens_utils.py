"""What both notebooks share: the machine they run on, and the results that pass between them.

Holds the set-up on Kaggle, the format of the results on disk (the tables `RUN`, `RECORD`, `PROMPT`,
`READINGS`, `OBJECT`, `WORD` and `PART` are its reference page), saving and loading, and `Results`,
one folder of results. It knows nothing of models, annotations, tables or figures.
"""

import difflib
import gzip
import io
import json
import os
import pickle
import pickletools
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = [
    "KAGGLE_INPUT",
    "on_kaggle",
    "probe_gpus",
    "prepare_kaggle",
    "data_sets",
    "FORMAT_VERSION",
    "SEGMENTS",
    "KINDS",
    "UNIT",
    "DEMO_NOTE",
    "RUN",
    "READINGS",
    "RECORD",
    "OBJECT",
    "WORD",
    "PROMPT",
    "KNOCKOUT",
    "OF_OBJECTS",
    "PART",
    "require",
    "is_text",
    "check_run",
    "check_record",
    "check_part",
    "save",
    "load",
    "Results",
    "patch_coverage",
    "open_crop",
    "printable",
]

# ------------------------------------------------------------------------------------------------
# The machine: what Kaggle lacks
# ------------------------------------------------------------------------------------------------

KAGGLE_INPUT = Path("/kaggle/input")
# Tested against the rest of Kaggle's image. torch 2.7.1 is the last with P100 kernels; torchvision
# and torchaudio must match it.
# transformers 5.24 renamed its cache argument, and TransformerLens 4.3 then fills no cache.
PIP_LENS = ["transformer-lens==4.3.0", "transformers==5.23.0"]
PIP_P100 = ["torch==2.7.1", "torchvision==0.22.1", "torchaudio==2.7.1"]
# Computes on each GPU: whether torch has kernels for it is then not a question of version numbers.
PROBE = """
import json, torch
gpus = []
for number in range(torch.cuda.device_count()):
    about = torch.cuda.get_device_properties(number)
    gpu = {"name": about.name, "capability": [about.major, about.minor]}
    try:
        gpu["works"] = torch.ones(8, device=f"cuda:{number}").sum().item() == 8
        gpu["free"], gpu["total"] = torch.cuda.mem_get_info(number)
    except RuntimeError:
        gpu["works"], gpu["free"], gpu["total"] = False, 0, about.total_memory
    gpus.append(gpu)
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""


def on_kaggle() -> bool:
    """Whether this runs in a Kaggle notebook."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def probe_gpus() -> dict:
    """What torch can do on this machine, tried in a process of its own.

    In one of its own because torch, once imported, can't be replaced any more, and a process that
    has used a GPU can't be forked. Returns

    - `torch`: its version, or the error that importing it gave
    - `cuda`: the version of CUDA that it was built for, None without
    - `gpus`: per GPU `name`, `capability` `[major, minor]`, `works` (a sum on it is right), `free`
      and `total` bytes
    """
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if done.returncode:
        return {"torch": (done.stderr.strip() or "none").splitlines()[-1], "cuda": None, "gpus": []}
    return json.loads(done.stdout.splitlines()[-1])


def prepare_kaggle() -> None:
    """On Kaggle: print what machine this is and install what is missing. Elsewhere: nothing.

    Must run before torch is imported. Raises RuntimeError with the remedy if the machine can't do
    the work.
    """
    if not on_kaggle():
        print("Not on Kaggle: nothing to install here, requirements.txt has what is needed.")
        return
    # 13.5 GB of weights would fill /kaggle/working, and be saved with the notebook's output.
    os.environ.setdefault("HF_HOME", "/tmp/huggingface")
    machine = probe_gpus()
    for gpu in machine["gpus"]:
        capability = ".".join(map(str, gpu["capability"]))
        print(f"GPU: {gpu['name']}, compute capability {capability}, {gpu['total'] >> 20:,} MiB")
    print(f"torch {machine['torch']}, built for CUDA {machine['cuda'] or '(none)'}")
    if not machine["cuda"]:
        raise RuntimeError(
            f"torch ({machine['torch']}) can't be used, or has no code for any GPU: choose "
            "Run > Factory reset, then run all cells again."
        )
    if not machine["gpus"]:
        raise RuntimeError(
            "There is no GPU: choose one under Settings > Accelerator (GPU T4 x2 or P100) and run "
            "all cells again."
        )
    unfit = [gpu for gpu in machine["gpus"] if not gpu["works"]]
    if unfit and unfit[0]["capability"] >= [7, 0]:
        raise RuntimeError(
            f"torch {machine['torch']} can't compute on a {unfit[0]['name']}: choose another GPU "
            "under Settings > Accelerator."
        )
    tested = _version("transformer-lens") == (4, 3) and _version("transformers") == (5, 23)
    _install(PIP_P100 * bool(unfit) + PIP_LENS * (not tested))


def _version(package: str) -> tuple[int, ...]:
    """`(major, minor)` of an installed package, `(0,)` where it is missing."""
    try:
        return tuple(map(int, metadata.version(package).split(".")[:2]))
    except metadata.PackageNotFoundError:
        return (0,)


def _install(packages: list[str]) -> None:
    if not packages:
        return
    imported = sorted({"torch", "transformers"} & sys.modules.keys())
    if imported:
        raise RuntimeError(
            f"{' and '.join(imported)} of a version that can't be used is imported already, and "
            f"{', '.join(packages)} must be installed: choose Run > Restart & clear cell outputs, "
            "then run all cells from the top."
        )
    print("pip install", *packages, flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"pip could not install {' '.join(packages)}: turn the internet on (Settings > Turn on "
            "internet; it asks for a verified phone number once) and run this cell again.\n"
            f"{done.stderr[-1000:]}"
        )


def data_sets() -> list[Path]:
    """The data sets attached on Kaggle, mounted as `<slug>` or as `datasets/<owner>/<slug>`."""
    paths = sorted([*KAGGLE_INPUT.glob("*"), *KAGGLE_INPUT.glob("datasets/*/*")])
    return [path for path in paths if path.is_dir() and path != KAGGLE_INPUT / "datasets"]


# ------------------------------------------------------------------------------------------------
# The format of the results
# ------------------------------------------------------------------------------------------------

FORMAT_VERSION = 3
SEGMENTS = ["image", "prompt", "answer"]
KINDS = ["object", "presence", "colour", "relation", "description", "own"]
UNIT = "bits"  # of JSD and entropy, everywhere
DEMO_NOTE = (
    "This is the small demo model: it knows six shapes and seven colours, and what is read from it "
    "says nothing about LLaVA-1.5-7B. For photographs, set `model` to llava-hf/llava-1.5-7b-hf "
    "(a GPU of 16 GB)."
)
ROUNDING = 1e-4  # of sums in float32


class Field(NamedTuple):
    """One field of the results: its Python type, or the kind of numbers of a numpy array (`f`, `i`
    or `u`), what it means, and of an array the shape in names of sizes and the range.
    """

    kind: type | tuple[type, ...] | str
    meaning: str
    shape: tuple[str, ...] = ()
    least: float = 0
    most: float | str = 1  # a text names a size


RUN = {  # run.pkl: what the records have in common
    "format_version": Field(int, f"{FORMAT_VERSION}"),
    "model": Field(str, "hub id or folder"),
    "revision": Field(str, "commit on the hub, or a fingerprint of the weights"),
    "dtype": Field(str, "of the weights"),
    "packages": Field(dict, "versions by name"),
    "n_layers": Field(int, "blocks of the language tower"),
    "layers": Field(list, "labels of the layer axis: emb, or l for the state after block l"),
    "segments": Field(list, "labels of the segment axis"),
    "tokens": Field(list, "a label per row of the unembedding, as the vocabulary spells it"),
    "grid": Field(int, "patches along a side of the crop"),
    "image_size": Field(int, "pixels along a side of the crop"),
    "chat": Field(str, "template around a question"),
    "questions": Field(dict, "template of the question by kind"),
    "own_prompts": Field(list, "the user's own prompts; empty: made from annotations"),
    "per_kind": Field(int, "prompts per kind and image, where made from annotations"),
    "seed": Field(int, "of the choice among candidates"),
    "top_k": Field(int, "tokens kept per layer and position"),
    "max_new_tokens": Field(int, "of an answer"),
    "knockout_windows": Field(list, "first and last block, from 1, of each; the last: all blocks"),
    "last_layer_jsd": Field(float, "largest JSD of lens and model output on the first image, bits"),
}
READINGS = {  # at each layer and position; a reading is about the token that follows the position
    "top_ids": Field("u", "ids of the top-k tokens", ("layer", "pos", "top_k"), 0, "last_id"),
    "top_probs": Field(
        "f", "their probabilities, falling", ("layer", "pos", "top_k"), 0, 1 + ROUNDING
    ),
    "jsd_prev": Field("f", "JSD to the layer before in bits; NaN at the first", ("layer", "pos")),
    "jsd_final": Field("f", "JSD to the last layer in bits", ("layer", "pos")),
    "entropy": Field("f", "in bits", ("layer", "pos"), -ROUNDING, "most_bits"),
    "target_prob": Field(
        "f",
        "of the answer token that follows, elsewhere of the last layer's top-1",
        ("layer", "pos"),
        0,
        1 + ROUNDING,
    ),
    "target_rank": Field("u", "of the same token, 1 = top", ("layer", "pos"), 1, "d_vocab"),
}
RECORD = {  # images/<name>.pkl: one image with its prompts
    "name": Field(str, "the image's, and the file's"),
    "objects": Field(list, "annotated objects (OBJECT)"),
    "words": Field(list, "categories watched in the patches (WORD)"),
    "prompts": Field(list, "one or more (PROMPT)"),
    "patches": Field(dict, "READINGS, positions = patches row by row"),
    "crop": Field("u", "the image as the model saw it: a JPEG's bytes", ("byte",), 0, 255),
}
OBJECT = {
    "category": Field(str, "its name"),
    "box": Field(list, "x, y, width, height in pixels of the crop, clipped to it"),
    "crowd": Field(bool, "COCO's iscrowd"),
    "color": Field((str, type(None)), "where the annotation has one"),
    "visible": Field(float, "share of the object within the crop"),
    "share": Field(float, "share of the crop that it takes"),
}
WORD = {
    "category": Field(str, "its name"),
    "present": Field(bool, "whether the image has it"),
    "token_ids": Field(list, "tokens whose probabilities are summed"),
    "several_tokens": Field(bool, "whether one of these is a fragment of a word"),
    "log2_probs": Field("f", "log2 of the sum, in float16", ("layer", "patch"), -127, 0.01),
}
PROMPT = {
    "kind": Field(str, "one of KINDS"),
    "question": Field(str, "as asked, without the template around it"),
    "truth": Field((str, type(None)), "the right answer, where it is known"),
    "categories": Field(list, "names of the categories that the question is about"),
    "token_ids": Field("i", "input tokens after the image", ("pos",), 0, "last_id"),
    "n_prompt": Field(int, "how many of them are the prompt's; the others are the answer's"),
    "answer_ids": Field("i", "the answer's tokens with the end token", ("answer",), 0, "last_id"),
    "answer": Field(str, "the answer as text"),
    "readings": Field(dict, "READINGS at the positions of token_ids"),
    "grey": Field(dict, "CONTROL: the same prompt with a plain grey image"),
    "knockout": Field(dict, "KNOCKOUT; empty if switched off, or for a prompt too long for it"),
}
CONTROL = {  # of the first token of the answer that the image got, at the prompt's last position
    "target_prob": Field("f", "its probability", ("layer",), 0, 1 + ROUNDING),
    "target_rank": Field("u", "its rank, 1 = top", ("layer",), 1, "d_vocab"),
}
KNOCKOUT = {  # P of the first answer token where, in a window of blocks, attention is cut ...
    way: Field("f", f"... from {way_from} to {way_to}", ("window",), 0, 1 + ROUNDING)
    for way, way_from, way_to in [
        ("object", "all text after the image", "the patches of the objects asked about"),
        ("background", "all text after the image", "as many patches outside their boxes: control"),
        ("image_last", "the last position", "all patches"),
        ("question_last", "the last position", "the other text after the image"),
        ("image", "all text after the image", "all patches"),
    ]
}
OF_OBJECTS = ["object", "background"]  # only where the objects are known
PART = {  # parts/<process>.pkl: what one process has read; an image counts once it is here
    "images": Field(list, "names"),
    "skipped": Field(dict, "the reason by name"),
    "n_images": Field("i", "images with positions in the segment", ("segment",), 0, "n_images"),
    "sums": Field(
        "f",
        "mean probability over the positions of a segment, summed over the images",
        ("segment", "layer", "d_vocab"),
        0,
        "most_sum",
    ),
}
MOST_LAYERS, MOST_GRID, MOST_PIXELS, MOST_LABEL = 200, 64, 2048, 100


def require(holds, what: str) -> None:
    """Raise ValueError(what) unless `holds`."""
    if not holds:
        raise ValueError(what)


def is_text(value) -> bool:
    """Whether `value` is a text that is not blank and can be written to any file."""
    try:
        return isinstance(value, str) and value.strip() != "" and value.encode("utf-8") is not None
    except UnicodeEncodeError:  # half a character, from a file name that is not UTF-8 for instance
        return False


def _is_file_name(value) -> bool:
    return (
        is_text(value)
        and value == Path(value).name not in ("", "..")
        and not set("\\\0") & {*value}
    )


def _check_fields(value, table: dict[str, Field], sizes: dict[str, int], where: str) -> None:
    """Raise an error unless the dict `value` has the fields of `table`."""
    require(type(value) is dict, f"{where} is no dict")
    for name, field in table.items():
        require(name in value, f"{where} has no {name}")
        if isinstance(field.kind, str):
            shape = tuple(sizes[axis] for axis in field.shape)
            most = sizes[field.most] if isinstance(field.most, str) else field.most
            _check_array(value[name], f"{where}, {name}", field, shape, most)
        else:
            kinds = field.kind if isinstance(field.kind, tuple) else (field.kind,)
            expected = " or ".join(kind.__name__ for kind in kinds)
            require(type(value[name]) in kinds, f"{where}, {name} is no {expected}")


def _check_array(value, name: str, field: Field, shape: tuple, most: float) -> None:
    require(
        type(value) is np.ndarray
        and value.dtype.kind == field.kind
        and value.shape == shape
        and ((value >= field.least) & (value <= most)).all(),
        f"{name} is not an array {shape} of numbers ({field.kind}) "
        f"from {field.least:g} to {most:g}",
    )


def check_run(run) -> None:
    """Raise an error unless `run` can be what `lens_model.describe_run` returned."""
    version = run["format_version"]
    require(
        version == FORMAT_VERSION,
        f"its format version is {str(version)[:20]}, this release reads {FORMAT_VERSION}: read the "
        "images again with Make_Analyse.ipynb, or take the release that made these results",
    )
    _check_fields(run, RUN, {}, "run")
    layers, tokens = run["layers"], run["tokens"]
    require(1 <= run["n_layers"] <= MOST_LAYERS, "n_layers is out of range")
    labels = ["emb", *map(str, range(1, run["n_layers"] + 1))]
    require(
        len(layers) > 1 and layers == [label for label in labels if label in layers],
        "layers are not emb, 1, 2, ... or some of them in that order",
    )
    require(layers[-1] == labels[-1], "layers end before the last")
    require(run["segments"] == SEGMENTS, f"segments are not {SEGMENTS}")
    require(
        tokens and all(type(token) is str and len(token) <= MOST_LABEL for token in tokens),
        f"tokens are not all texts of at most {MOST_LABEL} characters",
    )
    require(1 <= run["grid"] <= MOST_GRID, "grid is out of range")
    require(run["grid"] <= run["image_size"] <= MOST_PIXELS, "image_size is out of range")
    require(1 <= run["top_k"] <= len(tokens), "top_k is out of range")
    _check_windows(run["knockout_windows"], run["n_layers"])
    require(0 <= run["last_layer_jsd"] <= 1, "last_layer_jsd is not from 0 to 1")


def _check_windows(windows: list, n_layers: int) -> None:
    require(
        all(
            type(window) is list
            and [type(block) for block in window] == [int, int]
            and 1 <= window[0] <= window[1] <= n_layers
            for window in windows
        ),
        f"knockout_windows are not pairs of blocks from 1 to {n_layers}",
    )
    require(windows[-1:] in ([], [[1, n_layers]]), "the last of knockout_windows is not all blocks")


def _sizes_of(run: dict) -> dict[str, int | float]:
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
    }


def check_record(record, run: dict, name: str) -> None:
    """Raise an error unless `record` can be that of the image `name`, read in `run`."""
    sizes = _sizes_of(run) | {"byte": len(record["crop"])}
    _check_fields(record, RECORD, sizes, "record")
    require(record["name"] == name, "name is not that of the file")
    _check_readings(record["patches"], sizes | {"pos": sizes["patch"]}, "patches")
    for number, item in enumerate(record["objects"]):
        _check_object(item, sizes, f"object {number}")
    require(record["prompts"], "there are no prompts")
    for number, prompt in enumerate(record["prompts"]):
        _check_prompt(prompt, sizes, f"prompt {number}")
    boxes = {item["category"]: item["box"] for item in record["objects"] if min(item["box"][2:])}
    for number, word in enumerate(record["words"]):
        where, ids = f"word {number}", word["token_ids"]
        _check_fields(word, WORD, sizes, where)
        require(is_text(word["category"]), f"{where} has no category")
        require(not word["present"] or word["category"] in boxes, f"{where} is no object's")
        require(
            ids and all(type(i) is int and 0 <= i <= sizes["last_id"] for i in ids),
            f"{where} has no tokens of the vocabulary",
        )
    _check_crop(record["crop"], run["image_size"])


def _check_object(item, sizes: dict, where: str) -> None:
    _check_fields(item, OBJECT, sizes, where)
    require(
        len(item["box"]) == 4
        and all(type(side) is float and 0 <= side <= 1e5 for side in item["box"]),
        f"{where}, box is not four lengths",
    )
    for share in ("share", "visible"):
        require(0 <= item[share] <= 1.001, f"{where}, {share} is not from 0 to 1")


def _check_prompt(prompt, sizes: dict, where: str) -> None:
    n_pos, n_answer = len(prompt["token_ids"]), len(prompt["answer_ids"])
    sizes = sizes | {"pos": n_pos, "answer": n_answer}
    _check_fields(prompt, PROMPT, sizes, where)
    require(prompt["kind"] in KINDS, f"{where} has no known kind")
    require(is_text(prompt["question"]), f"{where} has no question")
    require(all(map(is_text, prompt["categories"])), f"{where}, categories are not all texts")
    require(
        prompt["n_prompt"] >= 1 and n_answer >= 1 and n_pos == prompt["n_prompt"] + n_answer - 1,
        f"the lengths of {where} don't agree",
    )
    _check_readings(prompt["readings"], sizes, where)
    _check_fields(prompt["grey"], CONTROL, sizes, f"{where}, grey")
    ways = prompt["knockout"].keys()
    require(
        not ways or sizes["window"] and ways in (KNOCKOUT.keys(), KNOCKOUT.keys() - {*OF_OBJECTS}),
        f"{where}, knockout has other ways than {', '.join(KNOCKOUT)}",
    )
    of_ways = {way: KNOCKOUT[way] for way in ways}
    _check_fields(prompt["knockout"], of_ways, sizes, f"{where}, knockout")


def _check_readings(readings, sizes: dict, where: str) -> None:
    series = readings["jsd_prev"]
    require(np.isnan(series[0]).all(), f"{where}, jsd_prev: the first layer has none before it")
    filled = np.concatenate([np.zeros_like(series[:1]), series[1:]])
    _check_fields({**readings, "jsd_prev": filled}, READINGS, sizes, where)


def _check_crop(jpeg: np.ndarray, image_size: int) -> None:
    require(jpeg.nbytes <= 2**22 and jpeg.dtype == np.uint8, "crop is too large or no bytes")
    with Image.open(io.BytesIO(jpeg.tobytes()), formats=["JPEG"]) as crop:
        # A progressive JPEG of a few bytes can take hours.
        require(
            crop.size == (image_size, image_size)
            and crop.mode == "RGB"
            and "progressive" not in crop.info,
            f"crop is no plain image in RGB of {image_size} x {image_size}",
        )
        crop.load()


def check_part(part, run: dict) -> None:
    """Raise an error unless `part` can be what a process saved in `run`."""
    n_images = len(part["images"])
    # No image adds more than 1 to a sum.
    bounds = {"n_images": n_images, "most_sum": (1 + ROUNDING) * max(n_images, 1)}
    _check_fields(part, PART, _sizes_of(run) | bounds, "part")
    require(all(map(_is_file_name, part["images"])), "an image's name is no name of a file")
    require(len(set(part["images"])) == n_images, "an image is counted twice")
    require(
        all(type(text) is str for item in part["skipped"].items() for text in item),
        "skipped is not names and reasons",
    )


# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------

# Bounds for a file, of which only the first is ever near: at LLaVA-1.5-7B's size a record has
# 2 MB, a part 25.
MOST_BYTES, MOST_OPCODES = 2**26, 2**21
# Of the pickle language what `_Pickler` writes: no memo, so nothing stands in two places; no BUILD,
# so nothing gets a state; a tuple of three only as the arguments of a call (`_read_only`).
PLAIN_OPCODES = set(
    "PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "  # noqa: SIM905 (a list of these is 30 lines)
    "SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES EMPTY_LIST APPEND APPENDS "
    "EMPTY_DICT SETITEM SETITEMS TUPLE3 STACK_GLOBAL REDUCE".split()
)
NUMBERS = {"|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"}


class _Pickler(pickle.Pickler):
    """Writes an array as the call `numpy.ndarray(shape, dtype, bytes)`, which plain pickle reads
    too."""

    def __init__(self, file):
        super().__init__(file, protocol=5)
        self.fast = True  # no memo

    def reducer_override(self, value):
        if type(value) is np.ndarray and value.dtype.str in NUMBERS:
            return np.ndarray, (list(value.shape), value.dtype.str, value.tobytes())
        if value is np.ndarray:
            return NotImplemented  # by its name
        raise ValueError(
            f"{type(value).__name__} {str(value)[:60]!r} can't be saved: results are numpy arrays "
            "of numbers, plain numbers, texts, lists and dicts"
        )


class _Unpickler(pickle.Unpickler):
    """Knows one name, numpy.ndarray, and gives a checking function for it."""

    def find_class(self, module, name):
        require(
            (module, name) == ("numpy", "ndarray"),
            f"it refers to {module[:50]}.{name[:50]}, which results never do",
        )
        return _plain_array


def _plain_array(shape, dtype, data) -> np.ndarray:
    require(
        type(dtype) is str and dtype in NUMBERS, "it has an array of something else than numbers"
    )
    require(type(data) is bytes and type(shape) is list, "it has an array of no bytes")
    # A negative length would be taken for "as many as there are".
    require(all(type(n) is int and n >= 0 for n in shape), "it has an array of an odd shape")
    return np.frombuffer(data, dtype).reshape(shape)


def _read_only(data: bytes) -> None:
    """Read the opcodes without doing what they say: then no length in them is taken at its word."""
    before = ""
    for number, (opcode, _, _) in enumerate(pickletools.genops(data)):
        require(number < MOST_OPCODES, "it has too many parts")
        require(
            opcode.name in PLAIN_OPCODES, f"its pickle has {opcode.name}, which results never do"
        )
        # Nested tuples as a key would take forever to hash.
        require((before == "TUPLE3") == (opcode.name == "REDUCE"), "it has a tuple")
        before = opcode.name


def _from_bytes(data: bytes, check: Callable):
    require(len(data) <= MOST_BYTES, f"it has more than {MOST_BYTES >> 20} MiB")
    _read_only(data)
    value = _Unpickler(io.BytesIO(data)).load()
    check(value)
    return value


def _no_check(value) -> None:
    """Accept whatever is plain."""


def save(path, value, check: Callable = _no_check, compresslevel: int = 1) -> None:
    """Pickle and gzip `value` to `path` under a temporary name, then rename it.

    So the file is whole or absent, and gzip's checksum shows damage. Raises ValueError if `load`
    with `check` would refuse it, OSError if it can't be written (a full disk, for instance).
    """
    path, pickled = Path(path), io.BytesIO()
    _Pickler(pickled).dump(value)
    data = pickled.getvalue()
    require(
        len(data) <= MOST_BYTES,
        f"{str(path)!r} would have {len(data) >> 20} MiB and may have {MOST_BYTES >> 20}: choose a "
        "smaller top_k or fewer prompts.",
    )
    try:
        _from_bytes(data, check)
    except Exception as error:  # as in `load`
        raise ValueError(f"{str(path)!r} would not be a good file: {_reason(error)}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(gzip.compress(data, compresslevel, mtime=0))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path, check: Callable = _no_check):
    """What `save` wrote. Nothing in the file is run.

    Raises ValueError, which names the file, if it is no plain file, damaged, holds anything but
    plain results, or `check` of it raises; FileNotFoundError if there is none.
    """
    try:
        about = os.lstat(path)
        require(stat.S_ISREG(about.st_mode), "it is a link or no file")
        require(about.st_size <= MOST_BYTES, f"it has more than {MOST_BYTES >> 20} MiB")
        with gzip.open(path) as file:
            data = file.read(MOST_BYTES + 1)
        return _from_bytes(data, check)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(
            f"{str(path)!r} is damaged, of another release, or no result of this project "
            f"({_reason(error)}): get it again or delete it."
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


# ------------------------------------------------------------------------------------------------
# Results
# ------------------------------------------------------------------------------------------------


class Results:
    """One folder of results: `run.pkl`, a record per image, and a part per process.

    Each file is read when it is first needed; run and parts are then kept. Another process may
    write to the same folder meanwhile: make a new `Results` to see that.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    @classmethod
    def find(cls, folder) -> "Results":
        """The one folder at or under `folder` that holds a `run.pkl`.

        Raises FileNotFoundError for none, ValueError for several.
        """
        found = sorted(path.parent for path in Path(folder).rglob("run.pkl"))
        if not found:
            raise FileNotFoundError(
                f"No results (run.pkl) under {str(folder)!r}: run Make_Analyse.ipynb first, or "
                "attach its output as a data set."
            )
        require(
            len(found) == 1,
            f"Several results under {str(folder)!r}: set `results` to one of "
            f"{', '.join(map(str, found))}.",
        )
        return cls(found[0])

    def record_path(self, name: str) -> Path:
        """Where the record of the image `name` is."""
        return self.folder / "images" / f"{name}.pkl"

    def part_path(self, process: int) -> Path:
        """Where the process of that number keeps what it has read (PART)."""
        return self.folder / "parts" / f"{process}.pkl"

    @property
    def started(self) -> bool:
        """Whether there is a `run.pkl`."""
        return (self.folder / "run.pkl").exists()

    @cached_property
    def run(self) -> dict:
        """`run.pkl` (RUN). Raises ValueError if it is damaged or of another format version."""
        return load(self.folder / "run.pkl", check_run)

    @cached_property
    def parts(self) -> dict[int, dict]:
        """The parts by process. Raises ValueError if one is damaged, or counts in an image that
        another one counts in too or whose record is gone."""
        parts, seen = {}, set()
        for path in sorted((self.folder / "parts").glob("*.pkl")):
            part = load(path, partial(check_part, run=self.run))
            if twice := seen & set(part["images"]):
                raise ValueError(
                    f"{str(path)!r} counts in {min(twice)!r}, which another part does as well: "
                    "delete one of the two, and its images are read again."
                )
            for name in part["images"]:
                require(
                    self.record_path(name).is_file(),
                    f"{str(path)!r} counts in {name!r}, but {str(self.record_path(name))!r} is "
                    f"gone: put it back, or delete {str(path)!r} as well, and its "
                    f"{len(part['images'])} images are read again.",
                )
            seen.update(part["images"])
            parts[int(path.stem)] = part
        return parts

    @property
    def names(self) -> list[str]:
        """The names of the images that were read, sorted."""
        return sorted(name for part in self.parts.values() for name in part["images"])

    @property
    def skipped(self) -> dict[str, str]:
        """The reason by name for each image that could not be read, and was not read since."""
        reasons = {k: v for part in self.parts.values() for k, v in part["skipped"].items()}
        return {name: reason for name, reason in reasons.items() if name not in self.names}

    def record(self, name: str | None = None) -> dict:
        """The record (RECORD) of one image; None: of the first.

        Raises ValueError, which names some that there are, for an image that was not read.
        """
        names = self.names
        require(names, f"No image was read into {str(self.folder)!r} yet: run Make_Analyse.ipynb.")
        name = names[0] if name is None else name
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 5) or names[:10]
            raise ValueError(
                f"No image {name!r} in {str(self.folder)!r}: set `image` to one of its "
                f"{len(names)} images, for instance {', '.join(near)}."
            )
        return load(self.record_path(name), partial(check_record, run=self.run, name=name))

    def records(self) -> Iterator[dict]:
        """All records, one after the other, by name. Raises FileNotFoundError if there is none."""
        if not self.names:
            raise FileNotFoundError(
                f"No records in {str(self.folder)!r}: run Make_Analyse.ipynb to its end."
            )
        return map(self.record, self.names)

    def mean_probability(self) -> np.ndarray:
        """The mean probability of every token `[segment, layer, d_vocab]`: over the positions of
        the segment, then over images. Raises FileNotFoundError if nothing was read."""
        if not self.parts:
            raise FileNotFoundError(
                f"No parts in {str(self.folder)!r}: run Make_Analyse.ipynb to its end."
            )
        n_images = sum(part["n_images"] for part in self.parts.values())
        sums = sum(part["sums"] for part in self.parts.values())
        return sums / np.maximum(n_images, 1)[:, None, None]

    def left(self, image_paths: dict[str, Path]) -> dict[str, Path]:
        """Those of `image_paths` (by name) that were not read yet."""
        done = set(self.names) if self.started else set()
        return {name: path for name, path in image_paths.items() if name not in done}

    def begin(self, run: dict, process: int = 0) -> None:
        """Start, or go on with, `run` as the process of that number.

        Raises ValueError as `refuse_another` does.
        """
        self.refuse_another(run)
        if not any((self.folder / "parts").glob("*.pkl")):
            save(self.folder / "run.pkl", run, check_run)
        self.__dict__.pop("run", None)
        self.__dict__.pop("parts", None)
        shape = len(SEGMENTS), len(run["layers"]), len(run["tokens"])
        empty = {
            "images": [],
            "skipped": {},
            "n_images": np.zeros(shape[0], dtype=int),
            "sums": np.zeros(shape),
        }
        self.process, self.part = process, self.parts.get(process, empty)

    def refuse_another(self, run: dict) -> None:
        """Raise ValueError if the folder holds results of another run than `run`: they must not
        be mixed. It names the setting that differs."""
        if not any(self.folder.glob("images/*.pkl")) and not any(self.folder.glob("parts/*.pkl")):
            return
        require(
            self.started,
            f"{str(self.folder)!r} holds records but no run.pkl, perhaps half of a copy: set "
            "go_on_from as before, choose another folder, or delete what is in this one.",
        )
        before = load(self.folder / "run.pkl", check_run)
        for key in sorted({*before, *run} - {"packages", "last_layer_jsd"}):
            there, now = before.get(key), run.get(key)
            require(
                there == now,
                f"{str(self.folder)!r} holds results of another run ({key}: {str(there)[:100]} "
                f"there, {str(now)[:100]} now): choose another folder, or delete what is in it.",
            )

    def add(self, record: dict, mean_probability: np.ndarray) -> None:
        """Save the record of an image and count it in, with its mean probability
        `[segment, layer, d_vocab]` (NaN for a segment without positions).

        Raises ValueError if it is counted already.
        """
        name, part = record["name"], self.part
        require(name not in part["images"], f"{name!r} is counted already.")
        check = partial(check_record, run=self.run, name=name)
        save(self.record_path(name), record, check)
        part["images"].append(name)
        part["skipped"].pop(name, None)
        part["n_images"] = part["n_images"] + ~np.isnan(mean_probability[:, 0, 0])
        # In steps of 2**-39 (2e-12) the sums of up to 2**14 images are exact: neither their order
        # nor the number of processes changes a bit.
        steps = np.round(np.nan_to_num(mean_probability).astype(float) * 2**39)
        part["sums"] = part["sums"] + steps / 2**39
        self._save_part()  # only now does the image count: what is killed before is read again

    def skip(self, name: str, reason: str) -> None:
        """Note that an image can't be read, and why."""
        self.part["skipped"][name] = reason
        self._save_part()

    def _save_part(self) -> None:
        # After every image, so not compressed: at LLaVA-1.5-7B's size 0.04 s instead of 0.25.
        check = partial(check_part, run=self.run)
        save(self.part_path(self.process), self.part, check, compresslevel=0)

    def continue_from(self, earlier=None) -> None:
        """Clear what a killed run left half-written; where no run was started here, copy the one
        in or under the folder `earlier`.

        Raises FileNotFoundError or ValueError if `earlier` holds no run or a damaged one.
        """
        for pattern in ("run.pkl.*.tmp", "images/*.pkl.*.tmp", "parts/*.pkl.*.tmp"):
            for temporary in self.folder.glob(pattern):
                temporary.unlink()
        if not earlier:
            return
        if self.started:
            print(
                f"{str(self.folder)!r} holds a run already and goes on from that, not from "
                f"{str(earlier)!r}."
            )
            return
        source = Results.find(earlier)
        for name in source.names:
            save(self.record_path(name), source.record(name))
        for process, part in source.parts.items():
            save(self.part_path(process), part)
        save(self.folder / "run.pkl", source.run)  # last: until then the copy is not whole


# ------------------------------------------------------------------------------------------------
# Patches
# ------------------------------------------------------------------------------------------------


def patch_coverage(box, grid: int, image_size: int) -> np.ndarray:
    """The share (0 to 1) of each patch `[grid * grid]`, row by row, that a box covers.

    `box` is x, y, width and height in pixels of the crop, which has `image_size` along a side.
    """
    edges = np.linspace(0, image_size, grid + 1)
    x, y, width, height = box
    columns = np.clip(np.minimum(edges[1:], x + width) - np.maximum(edges[:-1], x), 0, None)
    rows = np.clip(np.minimum(edges[1:], y + height) - np.maximum(edges[:-1], y), 0, None)
    return np.outer(rows, columns).ravel() * (grid / image_size) ** 2


# ------------------------------------------------------------------------------------------------
# What people see
# ------------------------------------------------------------------------------------------------


def open_crop(record: dict) -> Image.Image:
    """The image as the model saw it."""
    return Image.open(io.BytesIO(record["crop"].tobytes()))


def printable(label: str, length: int | None = None, glyphs: frozenset[int] | None = None) -> str:
    """A token label in which every character can be seen, cut to `length`.

    What is blank, or not among the code points `glyphs` that can be drawn (None: all can), becomes
    `U+4E2D`.
    """

    def seen(char):
        has_glyph = glyphs is None or ord(char) in glyphs
        return char.isprintable() and not char.isspace() and has_glyph

    shown = "".join(char if seen(char) else f"U+{ord(char):04X}" for char in label)
    return shown if length is None or len(shown) <= length else shown[: length - 1] + "…"
