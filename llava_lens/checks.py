"""A value of the results against the schema."""

import math
from pathlib import Path

import numpy as np

from llava_lens import schema
from llava_lens.kinds import KINDS
from llava_lens.schema import ABSENT_SAMPLINGS, OF_OBJECTS, ROUNDING, Field
from llava_lens.text import is_text, require


def check_run(run) -> None:
    """Raise an error unless `run` fits RUN."""
    version = run["format_version"]
    other = f"its format version is {version!s:.20}, {schema.OTHER_RELEASE}"
    require(version == schema.FORMAT_VERSION, other)
    _check(run, Field(schema.RUN, ""), {"two": 2}, "run")
    n_layers, layers, patched = run["n_layers"], run["layers"], run["route_layers"]
    labels = ["emb", *map(str, range(1, n_layers + 1))]
    in_order = layers == [label for label in labels if label in layers] and len(layers) > 1
    require(in_order, "layers are not emb, 1, 2, ... or some in that order")
    require(layers[-1] == labels[-1], "layers end before the last")
    require(run["segments"] == schema.SEGMENTS, f"segments are not {schema.SEGMENTS}")
    require(max(run["grid"]) <= run["image_size"], "grid is larger than image_size")
    more = run["n_image_tokens"] - math.prod(run["grid"])
    require(more in (0, 1), "n_image_tokens are neither the patches of grid nor one more")
    windows = run["knockout_windows"]
    pairs = all([type(block) for block in window] == [int, int] for window in windows)
    pairs = pairs and all(1 <= first <= last <= n_layers for first, last in windows)
    require(pairs, f"knockout_windows are not pairs of blocks from 1 to {n_layers}")
    require(windows[-1:] in ([], [[1, n_layers]]), "the last of knockout_windows is not all blocks")
    in_order = patched == sorted({*patched} & {*range(n_layers)} | {0, n_layers})
    require(in_order or not patched, f"route_layers are not in order from 0 to {n_layers}")


def check_record(record, run: dict, name: str) -> None:
    """Raise an error unless `record` fits RECORD and `run`, and is of the image `name`."""
    _check(record, Field(schema.RECORD, ""), _sizes_of(run), "record")
    require(record["name"] == name, "name is not that of the file")
    require(record["prompts"], "there are no prompts")
    n_cells = sum(len(prompt["token_ids"]) for prompt in record["prompts"]) * len(run["layers"])
    few = n_cells <= schema.MOST_CELLS and n_rows(record, run) <= schema.MOST_ROWS_OF_ONE
    require(few, "prompts have too many positions to be shown")
    for number, prompt in enumerate(record["prompts"]):
        _check_prompt(prompt, run, f"prompt {number}")
    both = len(record["patches"].keys() & {"embedding_ids", "embedding_cosines"}) != 1
    require(both, "patches have only one of embedding_ids and embedding_cosines")
    seen = set()
    for number, item in enumerate(record["objects"]):
        x, y, width, height = item["box"]
        in_crop = max(x + width, y + height) <= run["image_size"] + ROUNDING
        require(in_crop, f"the box of object {number} leaves the crop")
        seen |= {item["category"]} if min(width, height) >= schema.LEAST_SIDE else set()
    for number, word in enumerate(record["words"]):
        require(word["token_ids"], f"word {number} has no tokens")
        require(not word["present"] or word["category"] in seen, f"word {number} is no object's")
        known = word["absent_sampling"] in ([""] if word["present"] else ABSENT_SAMPLINGS)
        require(known, f"word {number} has no known absent_sampling")


def _check_prompt(prompt: dict, run: dict, where: str) -> None:
    require(prompt["kind"] in KINDS, f"{where} has no known kind")
    known = prompt["absent_sampling"] in ["", *ABSENT_SAMPLINGS]
    require(known, f"{where} has no known absent_sampling")
    n_prompt, n_answer = prompt["n_prompt"], len(prompt["answer_ids"])
    agree = n_prompt >= 1 and len(prompt["token_ids"]) == n_prompt + n_answer - 1
    agree = agree and 1 <= n_answer <= run["max_new_tokens"]
    require(agree, f"the lengths of {where} don't agree")
    at, ids = prompt["word_at"], prompt["word_ids"]
    begins = at < n_answer and (not ids or int(prompt["answer_ids"][at]) in ids)
    require(begins, f"word_ids of {where} don't have the answer's first token")
    cuts, route = prompt["knockout"], prompt.get("route")
    require(not cuts or run["knockout_windows"], f"{where} has a knockout, but its run has none")
    both = len(cuts.keys() & {*OF_OBJECTS}) != 1
    require(both, f"knockout of {where} has only one of {' and '.join(OF_OBJECTS)}")
    require(not route or run["route_layers"], f"{where} has a route, but its run has none")
    differ = not route or route["own_id"] != route["other_id"]
    require(differ, f"route of {where} has one token for both answers")


def check_part(part, run: dict) -> None:
    """Raise an error unless `part` fits PART and `run`."""
    names = part["images"]
    # No image adds more than 1 to a sum.
    sizes = _sizes_of(run) | {"most_sum": (1 + ROUNDING) * max(len(names), 1)}
    _check(part, Field(schema.PART, ""), sizes, "part")
    for name in names:
        is_file_name = name == Path(name).name not in ("", "..") and not set("\\\0") & {*name}
        is_file_name = is_file_name and len(name.encode()) <= schema.MOST_NAME_BYTES
        require(is_file_name, "an image's name is no name of a file")
    require(len(set(names)) == len(names), "an image is counted twice")
    # Each image adds a distribution, whose sum is 1, per layer and segment with positions.
    near = np.isclose(part["sums"].sum(axis=-1), part["n_images"][:, None], 1e-3, 1e-6)
    require(near.all(), "sums are not those of n_images distributions")


def n_rows(record: dict, run: dict) -> int:
    """How many rows the tables have of a record: (layers + 20) x (answers' tokens + watched words).
    The 20 stand for what is kept of a token or word at all layers, some 4 kB."""
    n_tokens = sum(len(prompt["answer_ids"]) for prompt in record["prompts"])
    return (len(run["layers"]) + 20) * (n_tokens + len(record["words"]))


def _sizes_of(run: dict) -> dict[str, float]:
    """What the names of axes and bounds in the tables stand for, as far as the run says."""
    d_vocab, side = len(run["tokens"]), run["image_size"]
    lengths = {"layer": "layers", "window": "knockout_windows", "route_layer": "route_layers"}
    sizes = {axis: len(run[name]) for axis, name in lengths.items()}
    sizes |= {"segment": len(schema.SEGMENTS), "top_k": run["top_k"]}
    sizes |= {"patch": math.prod(run["grid"]), "two": 2}
    sizes |= {"d_vocab": d_vocab, "last_id": d_vocab - 1, "most_bits": np.log2(d_vocab) + ROUNDING}
    n_kept = len(run["layers"][:: schema.NEAREST_EVERY])
    sizes |= {"nearest": schema.N_NEAREST, "nearest_layer": n_kept}
    return sizes | {"row": side, "column": side, "rgb": 3, "xywh": 4, "side": side + ROUNDING}


def _check(value, field: Field, sizes: dict[str, float], where: str) -> None:
    """Raise ValueError, which says `where`, unless `value` is what `field` says. `sizes` has what
    names in the field stand for; an axis that is not there yet gets its size from `value`."""
    kind, least, most = field.kind, field.least, sizes.get(field.most, field.most)
    if isinstance(kind, dict):
        _check_fields(value, field, sizes, where)
    elif kind in ("f", "i", "u", "|u1"):
        is_array = type(value) is np.ndarray and kind in (value.dtype.kind, value.dtype.str)
        require(is_array and value.ndim == len(field.shape), f"{where} is no array {field.shape}")
        for axis, length in zip(field.shape, value.shape, strict=True):
            _check_length(length, axis, sizes, where)
        within = (value >= least) & (value <= most)  # so no NaN
        if where.endswith("jsd_prev"):
            within[0] = np.isnan(value[0])  # there is none before the first layer
        require(within.all(), f"{where} has numbers that are not from {least:g} to {most:g}")
    elif field.shape:
        require(type(value) is (dict if kind is dict else list), f"{where} is no list or dict")
        _check_length(len(value), field.shape[0], sizes, where)
        one = kind[0] if isinstance(kind, list) else str if kind is dict else kind
        field = field._replace(kind=one, shape=())
        for number, item in enumerate([*value, *value.values()] if kind is dict else value):
            _check(item, field, sizes, f"{where} {number}")
    else:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        size, fits = value, type(value) in kinds
        if type(value) is str:
            size, fits = len(value), kind == "text" or str in kinds
            fits = fits and size <= schema.MOST_TEXT and is_text("x" * (kind != "text") + value)
        if not fits or not (least is None or least <= size <= most):
            names = " or ".join(getattr(one, "__name__", one) for one in kinds)
            bounds = "" if least is None else f" from {least:.7g} to {most:.7g}"
            raise ValueError(f"{where} is no {names}{bounds}")


def _check_length(length: int, axis: str, sizes: dict[str, float], where: str) -> None:
    most = schema.MOST.get(axis, sizes.get(axis, schema.MOST_OF_AXIS))
    require(length <= most, f"{where} has {length} items, which is more than {most}")
    expected = sizes.setdefault(axis, length)
    require(length == expected, f"{where} has {length} items, not {expected}")


def _check_fields(value, field: Field, sizes: dict[str, float], where: str) -> None:
    require(type(value) is dict, f"{where} is no dict")
    if field.may_be_empty and not value:
        return
    sizes = sizes | ({"pos": sizes[field.shape[0]]} if field.shape else {})
    for name, inner in field.kind.items():
        if name in value or not inner.optional:
            require(name in value, f"{where} has no {name}")
            _check(value[name], inner, sizes, f"{where}, {name}")
    others = [str(name)[:50] for name in value if name not in field.kind]
    require(not others, f"{where} has a field that results never have: {', '.join(others[:3])}")
