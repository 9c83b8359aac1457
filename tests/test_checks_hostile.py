"""llava_lens.checks: what is out of shape, out of range or missing is named, when it is loaded and
when it is saved."""

import numpy as np
import pytest

from llava_lens import checks, pickles, schema
from tests.hostile import (
    CHECKS,
    PART,
    RECORD,
    RUN,
    Within,
    make_readings,
    pickled,
    places,
    refused,
    with_value,
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
    ("grid", 10**6, "grid"),
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
    ("prompts 0 knockout object", np.zeros(3, np.float32), "knockout"),
    ("prompts 0 knockout image", "evil", "knockout"),
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
    with Within(), pytest.raises(ValueError, match=message):
        pickles.save(path, wrong, check)
    assert not path.exists()
    try:
        write(tmp_path, pickled(wrong))
    except UnicodeEncodeError:  # not to be said in a pickle
        return
    with Within():
        refused(path, check, why=message)


@pytest.mark.parametrize("what", CHECKS)
def test_what_is_missing_is_named(tmp_path, what):
    value, check = CHECKS[what]
    for where in places(value):
        if not where or not isinstance(where[-1], str) or where[0] in ("packages", "questions"):
            continue
        if where[0] == "skipped" and where[1:] or where[-1] in ("other", "norms", "cosines"):
            continue  # may be missing
        holder = value
        for key in where[:-1]:
            holder = holder[key]
        less = {key: inner for key, inner in holder.items() if key != where[-1]}
        path = write(tmp_path, pickled(with_value(value, where[:-1], less)))
        refused(path, check, why=where[-1])


def test_what_has_no_positions_adds_nothing_to_the_sums():
    checks.check_part(PART, RUN)
    none = {"n_images": np.array([1, 1, 0]), "sums": PART["sums"] * [[[1]], [[1]], [[0]]]}
    checks.check_part(PART | none, RUN)  # no answer has positions
