"""A value against the schema: what is out of shape, out of range or missing is named, when it is
loaded and when it is saved; what may be missing or empty; bounds."""

import math
from functools import partial, reduce
from operator import getitem

import numpy as np
import pytest

from llava_lens import checks, pickles, schema
from tests.hostile import (
    CHECKS,
    N_LAYERS,
    PART,
    RECORD,
    ROUTE,
    RUN,
    make_readings,
    pickled,
    places,
    refused,
    with_value,
    within,
    write,
)


def changed(array, at, new):
    array = array.copy()
    array[at] = new
    return array


def long_prompts() -> list[dict]:
    """A prompt of more positions than figures can show."""
    long = {"token_ids": np.full(400_000, 1), "n_prompt": 399_999}
    return [RECORD["prompts"][0] | long | {"readings": make_readings(400_000)}]


READINGS, CROP = RECORD["patches"], RECORD["crop"]
# Beyond the crop, or thinner than rounding.
BOXES_OF_NO_PATCH = [[8.0, 1.0, 2.0, 2.0], [1.0, 8.0, 2.0, 2.0]]
BOXES_OF_NO_PATCH += [[1.0, 1.0, 1e-9, 4.0], [1.0, 1.0, 4.0, 1e-3]]
OLD_VERSION = f"format version is 1, this release reads {schema.FORMAT_VERSION}"
IN_RUN = [
    ("format_version", 1, OLD_VERSION),
    ("grid", [2], "grid has 1 items, not 2"),
    ("grid", [2, 10**6], "grid 1 is no int"),
    ("grid", [2, 9], "grid is larger than image_size"),
    *(("n_image_tokens", odd, "n_image_tokens are neither") for odd in (3, 6)),
    ("top_k", 21, "top_k is no int from 1 to 20"),
    ("layers", ["emb", "1"], "layers end before the last"),
    *(("layers", odd, "layers are not emb, 1, 2") for odd in (["2"], ["emb", "2", "1"])),
    ("segments", ["image"], "segments are not"),
    ("n_layers", 10**9, "n_layers is no int from 1"),
    ("image_size", 10**6, "image_size is no int from 1"),
    ("tokens", ["a" * 101], "tokens 0 is no str from 0 to 100"),
    ("knockout_windows", [[0, 2]], "knockout_windows are not pairs of blocks from 1 to 2"),
    ("knockout_windows", [[1, 1]], "the last of knockout_windows is not all blocks"),
    *(
        ("route_layers", odd, "route_layers are not in order from 0 to 2")
        for odd in ([0, 2, 1], [0, 1, 1, 2], [1, 2], [0, 1], [0, 2, 3])
    ),
]
IN_RECORD = [
    ("name", "../../evil", "name is not that of the file"),
    ("objects 0 box", [0.0, 0.0, 1.0], "box has 3 items, not 4"),
    # The box of a present word is in the crop.
    *(("objects 0 box", box, "leaves the crop|no object's") for box in BOXES_OF_NO_PATCH),
    ("objects 0 visible", 2.0, "visible is no float from 0 to 1.001"),
    ("prompts", [], "no prompts"),
    ("prompts", long_prompts(), "prompts have too many positions|items, which is more than"),
    ("prompts 0 kind", "evil", "kind"),
    ("prompts 0 n_prompt", 3, "lengths"),
    ("prompts 0 question", " ", "question is no text"),
    ("prompts 0 absent_sampling", "evil", "prompt 0 has no known absent_sampling"),
    ("prompts 0 word_ids", [4], "word_ids of prompt 0 don't have the answer's"),
    ("prompts 0 knockout image_last", 1.5, "image_last is no float from 0 to 1"),
    ("prompts 0 route own_id", 10**6, "own_id is no int from 0"),
    ("prompts 0 route other_id", 3, "route of prompt 0 has one token for both answers"),
    ("words 0 token_ids", [20], "token_ids 0 is no int from 0 to 19"),
    ("words 0 token_ids", [], "no tokens"),
    ("words 0 absent_sampling", "random", "word 0 has no known absent_sampling"),
    ("words 0 log2_probs", np.ones((3, 4), np.float16), "log2_probs has numbers that are not"),
    ("words 0 category", "cat", "word 0 is no object's"),
    ("patches top_ids", changed(READINGS["top_ids"], (0, 0, 0), 20), "top_ids"),
    ("patches top_probs", changed(READINGS["top_probs"], (1, 1, 1), 1.5), "top_probs"),
    ("patches entropy", READINGS["entropy"] + 5, "entropy has numbers that are not from"),
    ("patches jsd_prev", changed(READINGS["jsd_prev"], (0, 0), 0), "jsd_prev"),
    ("patches target_rank", READINGS["target_rank"] * 0, "target_rank"),
    ("crop", CROP.astype(np.uint16), "crop is no array"),
]
IN_PART = [
    *(("images", [odd], "name of a file") for odd in ("../../evil", "a\\b", "..", "a" * 201)),
    ("images", ["a", "a"], "twice"),
    # Each image adds a distribution, whose sum is 1.
    *(("sums", PART["sums"] * factor, "sums") for factor in (-1, 0, 0.5, 1.01)),
    ("n_images", np.array([9, 9, 9]), "n_images"),
]
WRONG = [
    (what, [int(key) if key.isdigit() else key for key in where.split()], new, message)
    for what, rows in (("run", IN_RUN), ("record", IN_RECORD), ("part", IN_PART))
    for where, new, message in rows
]


@pytest.mark.parametrize("what, where, new, message", WRONG)
def test_what_breaks_a_rule_is_named(tmp_path, what, where, new, message):
    value, check = CHECKS[what]
    path = write(tmp_path, pickled(with_value(value, where, new)))
    with within():
        refused(path, check, why=message)


# Of other types, or out of all bounds.
WRONG_INSTEAD_OF = {
    bool: [1],
    int: [True, 1.0],
    float: [1, math.nan, math.inf, -math.inf],
    str: ["half \ud800", "a" * 100_000],
    list: [{}],
    dict: [[]],
}


def wrong_values(value):
    """What may never stand in the place of `value`."""
    yield from [b"x", *WRONG_INSTEAD_OF.get(type(value), [])]
    if isinstance(value, np.ndarray):
        yield value[..., None].copy()
        yield np.zeros(value.shape, bool)
        yield from (np.delete(value, 0, axis) for axis in range(value.ndim))
        if value.dtype.kind == "f":
            yield from (np.full_like(value, one) for one in (np.nan, np.inf, -np.inf))
        elif value is not CROP:  # which may have any number of its type
            yield np.full_like(value, np.iinfo(value.dtype).max)
        if value.dtype.kind == "i":
            yield np.full_like(value, -1)


@pytest.mark.parametrize("what", CHECKS)
def test_every_value_is_checked_and_named(tmp_path, what):
    value, check = CHECKS[what]
    # A prompt's arrays are held against each other.
    said = {"format_version": "format version", "token_ids": "top_ids", "answer_ids": "lengths"}
    for where in places(value)[1:]:
        keys = [key for key in where if isinstance(key, str)]
        named = keys[0] if keys[0] in OF_TEXTS else keys[-1]
        why = f"{named}|{said.get(named, named)}"
        for new in wrong_values(reduce(getitem, where, value)):
            with pytest.raises(ValueError, match=rf"\(.*({why}).*\): change"):
                pickles.save(tmp_path / "file.pkl", with_value(value, where, new), check)
    assert not any(tmp_path.iterdir())


OF_TEXTS = {"packages", "questions", "skipped"}  # dicts with any keys


@pytest.mark.parametrize("what", CHECKS)
def test_what_is_missing_or_unknown_is_named(tmp_path, what):
    value, check = CHECKS[what]
    for where in places(value):
        holder = reduce(getitem, where, value)
        if not isinstance(holder, dict) or OF_TEXTS & {*where}:
            continue
        may_be_missing = {"route", "norms", "cosines", "other" if "kind" in holder else ""}
        for key in holder.keys() - may_be_missing:
            less = {name: inner for name, inner in holder.items() if name != key}
            why = f"no {key}|only one of|'{key}'"  # both of two, or neither
            refused(write(tmp_path, pickled(with_value(value, where, less))), check, why=why)
        more = pickled(with_value(value, where, {**holder, "evil": 1}))
        refused(write(tmp_path, more), check, why="has a field that results never have: evil")


def check(of_run=None, **of_prompt):
    """Check a record with other values for its prompt, or for the run."""
    run, prompt = RUN | (of_run or {}), RECORD["prompts"][0] | of_prompt
    checks.check_run(run)
    checks.check_record(RECORD | {"prompts": [prompt]}, run, RECORD["name"])


def test_knockout_and_route_may_be_there_or_not():
    cuts = RECORD["prompts"][0]["knockout"]
    no_object = {name: cuts[name] for name in cuts.keys() - {*schema.OF_OBJECTS}}
    check(knockout=no_object)
    check(knockout={}, route={})
    check({"knockout_windows": [], "route_layers": []}, knockout={}, route={})
    with pytest.raises(ValueError, match="prompt 0 has a knockout, but its run has none"):
        check({"knockout_windows": []}, knockout=no_object)
    empty = {name: np.zeros(0, np.float32) for name in ("image", "question", "last")}
    with pytest.raises(ValueError, match="prompt 0 has a route, but its run has none"):
        check({"route_layers": []}, route=ROUTE | empty)
    prompt = {name: value for name, value in RECORD["prompts"][0].items() if name != "route"}
    checks.check_record(RECORD | {"prompts": [prompt]}, RUN, RECORD["name"])


@pytest.mark.parametrize("sampling", schema.ABSENT_SAMPLINGS)
def test_how_an_absent_category_was_drawn_is_known(sampling):
    check(absent_sampling=sampling)


def test_what_has_no_positions_adds_nothing_to_the_sums():
    none = {"n_images": np.array([1, 1, 0]), "sums": PART["sums"] * [[[1]], [[1]], [[0]]]}
    checks.check_part(PART | none, RUN)  # no answer has positions


# ---- Bounds -------------------------------------------------------------------------------------


def run_of(n_tokens=20, n_categories=1, n_prompts=0, most_new=2, text=1):
    asked = {key: RECORD["prompts"][0][key] for key in schema.ASKED}
    sizes = {"tokens": ["a"] * n_tokens, "categories": ["dog" * text] * n_categories}
    return RUN | sizes | {"own_prompts": [asked] * n_prompts, "max_new_tokens": most_new}


def record_of(n_prompts=1, n_answer=2, n_words=1, n_objects=1, n_text=3, n_about=1):
    """A record of these sizes that is right in all else. The readings don't matter for them."""
    n_pos = n_text - 1 + n_answer
    zeros = np.zeros((N_LAYERS, n_pos), np.float32)
    nan = zeros.copy()
    nan[0] = np.nan
    ids = np.zeros((*zeros.shape, RUN["top_k"]), np.uint8)
    readings = {"top_ids": ids, "top_probs": ids.astype(np.float32), "jsd_prev": nan}
    readings |= dict.fromkeys(("jsd_final", "entropy", "target_prob"), zeros)
    prompt = RECORD["prompts"][0] | {
        "categories": ["dog"] * n_about,
        "token_ids": np.zeros(n_pos, int),
        "n_prompt": n_text,
        "answer_ids": np.full(n_answer, 3),
        "readings": readings | {"target_rank": np.ones(zeros.shape, np.uint8)},
    }
    many = {"prompts": n_prompts, "words": n_words, "objects": n_objects}
    values = {"prompts": [prompt], "words": RECORD["words"], "objects": RECORD["objects"]}
    return RECORD | {name: values[name] * times for name, times in many.items()}


OTHERS, MOST = schema.MOST_OF_AXIS, schema.MOST
OF_RUN = {"n_tokens": MOST["d_vocab"], "n_categories": MOST["category"], "n_prompts": OTHERS}
OF_RUN |= {"most_new": MOST["answer"], "text": schema.MOST_TEXT // 3}
OF_RECORD = {"n_prompts": OTHERS, "n_answer": MOST["answer"], "n_words": OTHERS, "n_about": OTHERS}
OF_RECORD |= {"n_objects": MOST["object"], "n_text": MOST["pos"] - 1}
SIZES = [
    (make, {name: most + more}, more == 1)
    for make, bounds in ((run_of, OF_RUN), (record_of, OF_RECORD))
    for name, most in bounds.items()
    for more in (0, 1)
]
# Each within its bound, but not together: cells, and rows of the tables.
SIZES += [(record_of, {"n_prompts": 205, "n_text": 1704 + more}, more == 1) for more in (0, 1)]
SIZES += [
    (record_of, {"n_prompts": 22 + more, "n_answer": MOST["answer"]}, more == 1) for more in (0, 1)
]


@pytest.mark.parametrize("n_layers, d_vocab", [(41, 32_064), (33, 128_320), (33, 152_000)])
def test_the_sums_of_real_models_can_be_saved(n_layers, d_vocab):
    """LLaVA-1.5-13B, Llama 3 8B, Qwen 7B."""
    sums = np.zeros((len(schema.SEGMENTS), n_layers, d_vocab))
    assert sums.nbytes + 2**20 < pickles.MOST_BYTES


@pytest.mark.parametrize("make, sizes, beyond", SIZES)
def test_what_is_within_the_bounds_is_taken_and_nothing_else(tmp_path, make, sizes, beyond):
    run = run_of(most_new=MOST["answer"])
    check = checks.check_run
    if make is record_of:
        check = partial(checks.check_record, run=run, name=RECORD["name"])
    path = write(tmp_path, pickled(make(**sizes)))
    with within():
        if beyond:
            refused(path, check)
        else:
            pickles.load(path, check)


def test_an_answer_is_no_longer_than_its_run_allows():
    with pytest.raises(ValueError, match="the lengths of prompt 0 don't agree"):
        checks.check_record(record_of(n_answer=3), RUN, RECORD["name"])


def test_every_list_dict_and_array_has_a_bound():
    """Each has a shape, and each of its axes a size that the run gives or a bound in MOST."""
    run = schema.RUN | {"tokens": ["a"], "layers": [], "knockout_windows": [], "route_layers": []}
    known = checks._sizes_of(run | {"image_size": 1, "grid": [1, 1], "top_k": 1})
    tables = [schema.RUN, schema.RECORD, schema.PART, schema.PROMPT, schema.OBJECT, schema.WORD]
    for table in (*tables, schema.ASKED, schema.ROUTE, schema.KNOCKOUT, schema.READINGS):
        for name, field in table.items():
            holds_many = field.kind in (dict, list, "f", "i", "u", "|u1")
            assert field.shape or not (holds_many or isinstance(field.kind, list)), name
    assert set(schema.MOST) & known.keys() == {"d_vocab"}
