"""A value against the schema: what is out of shape, out of range or missing is named, when it is
loaded and when it is saved; what may be missing or empty; bounds."""

from functools import partial

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
BOXES_OF_NO_PATCH = [[9.0, 9.0, 2.0, 2.0], [8.0, 1.0, 2.0, 2.0], [7.0, 7.0, 2.0, 0.5]]
BOXES_OF_NO_PATCH += [[1.0, 1.0, 1e-9, 4.0], [1.0, 1.0, 4.0, 1e-3], [0.0, 0.0, 1e4, 1e4]]
OLD_VERSION = f"format version is 1, this release reads {schema.FORMAT_VERSION}"
IN_RUN = [
    ("format_version", 1, OLD_VERSION),
    ("grid", 2, "grid is no list"),
    ("grid", [2], "grid has 1 items, not 2"),
    ("grid", [2, 10**6], "grid 1 is no int"),
    ("grid", [2, 9], "grid is larger than image_size"),
    ("n_image_tokens", 3, "n_image_tokens are neither"),
    ("n_image_tokens", 6, "n_image_tokens are neither"),
    ("top_k", 21, "top_k"),
    ("tokens", ["a", 1], "tokens"),
    ("layers", ["emb", "1"], "layers"),
    ("layers", ["emb", "3"], "layers"),
    ("segments", ["image"], "segments"),
    ("last_layer_jsd", float("nan"), "jsd"),
    ("model", 3, "model"),
    ("model", "half \ud800", "model"),
    ("top_k", True, "top_k"),
    ("n_layers", 3, "layers end before the last"),
    ("n_layers", 10**9, "n_layers"),
    ("layers", ["2"], "layers"),
    ("layers", ["emb", "2", "1"], "layers"),
    ("image_size", 1, "image_size"),
    ("image_size", 10**6, "image_size"),
    ("tokens", ["a" * 101], "tokens"),
    ("own_prompts", {}, "own_prompts"),
    ("questions", [], "questions"),
    ("chat", "a" * 100_000, "chat"),
    ("seed", "0", "seed"),
    ("packages", None, "packages"),
    ("packages", {"a": "b" * 100_000}, "packages"),
    ("knockout_windows", [[0, 2]], "knockout_windows"),
    ("knockout_windows", [[1, 1]], "the last of knockout_windows is not all blocks"),
    *(
        ("route_layers", odd, "route_layers are not in order from 0 to 2")
        for odd in ([0, 2, 1], [0, 1, 1, 2], [1, 2], [0, 1], [0, 2, 3])
    ),
    ("route_layers", [0, 1.0, 2], "route_layers 1 is no int"),
    ("route_layers", None, "route_layers is no list"),
    ("categories", ["dog", 1], "categories"),
]
IN_RECORD = [
    ("name", "../../evil", "name"),
    ("image_digest", "a" * 100_000, "image_digest"),
    ("objects 0 category", 5, "category"),
    ("objects 0 box", [0.0, 0.0, float("inf"), 1.0], "box"),
    ("objects 0 box", (0.0, 0.0, 1.0, 1.0), "TUPLE"),
    ("objects 0 box", [0.0, 0.0, 1.0], "box"),
    ("objects 0 box", [0.0, 0.0, 1, 1.0], "box"),
    # The box of a present word is in the crop.
    *(("objects 0 box", box, "box|no object's") for box in BOXES_OF_NO_PATCH),
    ("objects 0 visible", 2.0, "visible"),
    ("objects 0 share", float("nan"), "share"),
    ("objects 0 crowd", 1, "crowd"),
    ("objects 0 color", 1, "color"),
    ("objects", np.zeros(0), "objects is no list"),
    ("prompts", [], "no prompts"),
    ("prompts", long_prompts(), "prompts"),
    ("prompts 0 kind", "evil", "kind"),
    ("prompts 0 n_prompt", 3, "lengths"),
    ("prompts 0 token_ids", np.array([1, 2, 20]), "token_ids"),
    ("prompts 0 answer_ids", np.array([3, -1]), "answer_ids"),
    ("prompts 0 question", None, "question"),
    ("prompts 0 question", " ", "question"),
    ("prompts 0 absent_sampling", "evil", "prompt 0 has no known absent_sampling"),
    ("prompts 0 word_ids", [4], "word_ids of prompt 0 don't have the answer's"),
    ("prompts 0 other word_prob", np.full(3, np.nan, "f4"), "other"),
    ("prompts 0 other", None, "other is no dict"),
    ("prompts 0 grey target_prob", np.full(3, np.nan), "grey"),
    ("prompts 0 knockout image", np.zeros(2, "f4"), "knockout, image is no float from 0 to 1"),
    ("prompts 0 knockout image", np.float32(0.5), "numpy|image is no float"),
    ("prompts 0 knockout image", float("nan"), "image is no float"),
    ("prompts 0 knockout image", "evil", "image is no float"),
    ("prompts 0 knockout image_last", 1.5, "image_last is no float from 0 to 1"),
    ("prompts 0 knockout object", np.zeros(3, "f4"), "object has 3 items, .* more than 2"),
    ("prompts 0 knockout object", 0.5, "object is no array"),
    ("prompts 0 knockout object", np.array([0.5, np.nan]), "object has numbers that are not from"),
    ("prompts 0 route own", float("inf"), "own is no float from -1000000 to 1000000"),
    ("prompts 0 route own", np.float64(1), "numpy|own is no float"),
    ("prompts 0 route mediated", float("nan"), "mediated is no float"),
    ("prompts 0 route counterfactual", 1, "counterfactual is no float"),
    ("prompts 0 route image", np.array([0, np.nan, 1]), "image has numbers that are not from"),
    ("prompts 0 route last", np.array([0, np.inf, 1]), "last has numbers that are not from"),
    ("prompts 0 route question", np.zeros(2), "question has 2 items, not 3"),
    ("prompts 0 route question", [0.0, 0.0, 0.0], "question is no array"),
    ("prompts 0 route own_id", 10**6, "own_id is no int from 0"),
    ("prompts 0 route other_id", 3, "route of prompt 0 has one token for both answers"),
    ("prompts 0 route other", " ", "other is no text"),
    ("prompts 0 route other_answer", None, "other_answer is no str"),
    ("prompts 0 categories", "dog", "categories is no list"),
    ("prompts 0 categories", [1], "categories"),
    ("prompts 0 truth", 1, "truth"),
    ("prompts 0 answer", None, "answer"),
    ("prompts 0 readings top_probs", READINGS["top_probs"].astype(int), "top_probs"),
    ("words 0 token_ids", [20], "token_ids 0 is no int from 0 to 19"),
    ("words 0 log2_probs", np.ones((3, 4), np.float16), "log2_probs"),
    ("words 0 present", 1, "words 0, present is no bool"),
    ("words 0 absent_sampling", "random", "word 0 has no known absent_sampling"),
    ("words 0 category", " ", "words 0, category is no text"),
    ("words 0 category", "cat", "word 0 is no object's"),
    ("words 0 token_ids", [], "no tokens"),
    ("patches", make_readings(5), "patches"),
    ("patches top_ids", changed(READINGS["top_ids"], (0, 0, 0), 20), "top_ids"),
    ("patches top_probs", changed(READINGS["top_probs"], (1, 1, 1), 1.5), "top_probs"),
    ("patches jsd_final", changed(READINGS["jsd_final"], (1, 1), np.nan), "jsd_final"),
    ("patches entropy", READINGS["entropy"] + 5, "entropy"),
    ("patches jsd_prev", changed(READINGS["jsd_prev"], (0, 0), 0), "jsd_prev"),
    ("patches target_rank", READINGS["target_rank"] * 0, "target_rank"),
    ("patches target_prob", READINGS["target_prob"][:, :3].copy(), "target_prob"),
    ("crop", CROP.astype(np.uint16), "crop is no array"),
    *(
        ("crop", CROP[part].copy(), "crop has")
        for part in (np.s_[:7], np.s_[:, :7], np.s_[..., :2])
    ),
    ("crop", CROP[0].copy(), "crop is no array"),
]
IN_PART = [
    ("images", ("a.jpg",), "TUPLE1"),
    ("images", {"a.jpg": 1}, "images is no list"),
    ("images", ["../../evil"], "name of a file"),
    ("images", ["a", "a"], "twice"),
    ("images", ["a\\b"], "name of a file"),
    ("images", [".."], "name of a file"),
    ("images", ["a" * 251 + ".jpg"], "name of a file"),
    # Each image adds a distribution, whose sum is 1.
    *(("sums", PART["sums"] * factor, "sums") for factor in (-1, 0, 0.5, 1.01)),
    ("sums", PART["sums"][:2], "sums"),
    ("n_images", np.array([9, 9, 9]), "n_images"),
    ("skipped", {"a": 1}, "skipped"),
    ("skipped", {"a": "half \ud800"}, "skipped"),
]
WRONG = [
    (what, [int(key) if key.isdigit() else key for key in where.split()], new, message)
    for what, rows in (("run", IN_RUN), ("record", IN_RECORD), ("part", IN_PART))
    for where, new, message in rows
]


@pytest.mark.parametrize("what, where, new, message", WRONG)
def test_what_is_out_of_shape_or_range_is_named(tmp_path, what, where, new, message):
    (value, check), path = CHECKS[what], tmp_path / "file.pkl"
    wrong = with_value(value, where, new)
    with within(), pytest.raises(ValueError, match=message):
        pickles.save(path, wrong, check)
    assert not path.exists()
    try:
        write(tmp_path, pickled(wrong))
    except UnicodeEncodeError:  # not to be said in a pickle
        return
    with within():
        refused(path, check, why=message)


@pytest.mark.parametrize("what", CHECKS)
def test_what_is_missing_or_unknown_is_named(tmp_path, what):
    value, check = CHECKS[what]
    for where in places(value):
        if not where or not isinstance(where[-1], str) or where[0] in ("packages", "questions"):
            continue
        *above, key = where
        may_be_missing = key in ("route", "norms", "cosines") or above[-1:] + [key] == [0, "other"]
        if where[0] == "skipped" and above or may_be_missing:
            continue
        holder = value
        for name in above:
            holder = holder[name]
        less = {name: inner for name, inner in holder.items() if name != key}
        why = f"no {key}|only one of object and background" if "knockout" in above else key
        refused(write(tmp_path, pickled(with_value(value, above, less))), check, why=why)
        if holder is not value.get("skipped"):
            more = with_value(value, above, {**holder, "evil": 1})
            why = "has a field that results never have: evil"
            refused(write(tmp_path, pickled(more)), check, why=why)


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
# Each with its bound. Beyond the bounds are the sizes that took minutes or gigabytes.
OF_RUN = {"n_tokens": MOST["d_vocab"], "n_categories": MOST["category"], "n_prompts": OTHERS}
OF_RUN |= {"most_new": MOST["answer"], "text": schema.MOST_TEXT // 3}
OF_RECORD = {"n_prompts": OTHERS, "n_answer": MOST["answer"], "n_words": OTHERS, "n_about": OTHERS}
OF_RECORD |= {"n_objects": MOST["object"], "n_text": MOST["pos"] - 1}
# Each within its bound, but not together: cells, and rows of the tables.
TOGETHER = [(record_of, {"n_prompts": 205, "n_text": 1705})]
TOGETHER += [(record_of, {"n_prompts": 23, "n_answer": MOST["answer"]})]
NOT_BEYOND = [(record_of, {"n_prompts": 205, "n_text": 1704})]
NOT_BEYOND += [(record_of, {"n_prompts": 22, "n_answer": MOST["answer"]})]
SIZES = [(make, sizes, True) for make, sizes in TOGETHER]
SIZES += [(make, sizes, False) for make, sizes in NOT_BEYOND]
SIZES += [
    (make, {name: size}, size > most)
    for make, bounds in ((run_of, OF_RUN), (record_of, OF_RECORD))
    for name, most in bounds.items()
    for size in (most, most + 1, 3 * most)
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
