"""A value against the schema: what may be missing or empty, knockout and route, bounds."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from llava_lens import checks, pickles, schema
from tests.hostile import N_LAYERS, RECORD, RUN, Within, pickled, write

LAYERS, WINDOWS = [0, 1, 2], [[1, 1], [1, 2]]
ROUTE = {
    "other": "china.jpg",
    "other_answer": "cat",
    "own_id": 3,
    "other_id": 4,
    "own": 2.5,
    "counterfactual": -2.5,
    **{name: np.array([2.5, 0, -2.5], np.float32) for name in ("image", "question", "last")},
    "mediated": 0.5,
}
KNOCKOUT = {
    "object": np.array([0.5, 0.25], np.float32),
    "background": np.array([0.5, 0.5], np.float16),
    **dict.fromkeys(("image", "image_last", "question_last"), 0.25),
}
NO_OBJECT = {name: KNOCKOUT[name] for name in KNOCKOUT.keys() - {*schema.OF_OBJECTS}}


def check(of_run=None, **of_prompt):
    """Check a record with other values for its prompt, or for the run."""
    prompt = {**RECORD["prompts"][0], "knockout": KNOCKOUT, "route": ROUTE, **of_prompt}
    run = {**RUN, "knockout_windows": WINDOWS, "route_layers": LAYERS, **(of_run or {})}
    checks.check_run(run)
    checks.check_record({**RECORD, "prompts": [prompt]}, run, RECORD["name"])


def test_knockout_and_route_may_be_there_or_not():
    check()
    check(route={})
    check(knockout={})
    check(knockout=NO_OBJECT)
    check({"knockout_windows": [], "route_layers": []}, knockout={}, route={})
    checks.check_record(RECORD, RUN, RECORD["name"])  # the route is missing


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": np.zeros(2, np.float32)}, "knockout, image is no float from 0 to 1"),
        ({"image": np.float32(0.5)}, "image is no float"),
        ({"image": float("nan")}, "image is no float"),
        ({"image_last": 1.5}, "image_last is no float from 0 to 1"),
        ({"object": np.zeros(3, np.float32)}, "object has 3 items, .* more than 2"),
        ({"object": 0.5}, "object is no array"),
        ({"object": np.array([0.5, np.nan], np.float32)}, "object has numbers that are not from"),
        ({"evil": 0.5}, "knockout has a field that results never have: evil"),
    ],
)
def test_a_knockout_out_of_shape_or_range_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        check(knockout={**KNOCKOUT, **change})


@pytest.mark.parametrize("name", KNOCKOUT)
def test_a_cut_that_is_missing_is_named(name):
    less = {key: value for key, value in KNOCKOUT.items() if key != name}
    with pytest.raises(ValueError, match=f"no {name}|only one of object and background"):
        check(knockout=less)


@pytest.mark.parametrize("name", ROUTE)
def test_a_part_of_the_route_that_is_missing_is_named(name):
    with pytest.raises(ValueError, match=f"prompts 0, route has no {name}"):
        check(route={key: value for key, value in ROUTE.items() if key != name})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"own": float("inf")}, "own is no float from -1000000 to 1000000"),
        ({"mediated": float("nan")}, "mediated is no float"),
        ({"counterfactual": 1}, "counterfactual is no float"),
        ({"own": np.float64(1)}, "own is no float"),
        ({"image": np.array([0, np.nan, 1])}, "image has numbers that are not from"),
        ({"last": np.array([0, np.inf, 1])}, "last has numbers that are not from"),
        ({"question": np.zeros(2)}, "question has 2 items, not 3"),
        ({"question": [0.0, 0.0, 0.0]}, "question is no array"),
        ({"own_id": 10**6}, "own_id is no int from 0"),
        ({"other_id": 3}, "route of prompt 0 has one token for both answers"),
        ({"other": " "}, "other is no text"),
        ({"other_answer": None}, "other_answer is no str"),
        ({"grey": 1}, "route has a field that results never have: grey"),
    ],
)
def test_a_route_out_of_shape_or_range_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        check(route={**ROUTE, **change})


@pytest.mark.parametrize(
    "of_run, message",
    [
        *(
            ({"route_layers": odd}, "route_layers are not in order from 0 to 2")
            for odd in ([0, 2, 1], [0, 1, 1, 2], [1, 2], [0, 1], [0, 2, 3])
        ),
        ({"route_layers": [0, 1.0, 2]}, "route_layers 1 is no int"),
        ({"route_layers": None}, "route_layers is no list"),
        ({"knockout_windows": [[1, 1]]}, "the last of knockout_windows is not all blocks"),
        ({"evil": 1}, "run has a field that results never have: evil"),
        ({"format_version": 3}, "format version is 3, this release reads 5: read the images again"),
    ],
)
def test_a_run_and_its_records_agree(of_run, message):
    with pytest.raises(ValueError, match=message):
        check(of_run)


def test_a_run_without_knockout_or_route_has_none_in_its_records():
    with pytest.raises(ValueError, match="prompt 0 has a knockout, but its run has none"):
        check({"knockout_windows": []}, knockout=NO_OBJECT)
    empty = {name: np.zeros(0, np.float32) for name in ("image", "question", "last")}
    with pytest.raises(ValueError, match="prompt 0 has a route, but its run has none"):
        check({"route_layers": []}, route={**ROUTE, **empty})


@pytest.mark.parametrize("sampling", schema.ABSENT_SAMPLINGS)
def test_how_an_absent_category_was_drawn_is_known(sampling):
    check(absent_sampling=sampling)
    with pytest.raises(ValueError, match="prompt 0 has no known absent_sampling"):
        check(absent_sampling=f"{sampling}ly")


# ---- Bounds -------------------------------------------------------------------------------------


def run_of(n_tokens=20, n_categories=1, n_prompts=0, most_new=2, text=1):
    asked = {key: RECORD["prompts"][0][key] for key in schema.ASKED}
    return RUN | {
        "tokens": ["a"] * n_tokens,
        "categories": ["dog" * text] * n_categories,
        "own_prompts": [asked] * n_prompts,
        "max_new_tokens": most_new,
    }


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
OF_RUN = {
    "n_tokens": MOST["d_vocab"],
    "n_categories": MOST["category"],
    "n_prompts": OTHERS,
    "most_new": MOST["answer"],
    "text": schema.MOST_TEXT // 3,
}
OF_RECORD = {
    "n_prompts": OTHERS,
    "n_answer": MOST["answer"],
    "n_words": OTHERS,
    "n_objects": MOST["object"],
    "n_text": 4000,
    "n_about": OTHERS,
}


def sizes_of(bounds):
    """Within the bounds and beyond; most of them small, or nothing would ever be within."""
    few = {
        name: st.sampled_from([2, 3, 2, 3, 2, 3, most, most + 1, 3 * most])
        for name, most in bounds.items()
    }
    return st.fixed_dictionaries(few)


def quick(n_cases):
    only = {"deadline": None, "derandomize": True, "database": None, "phases": [Phase.generate]}
    return settings(max_examples=n_cases, **only)


def is_refused(folder, value, check) -> bool:
    path = write(folder, pickled(value))
    with Within():
        try:
            pickles.load(path, check)
        except ValueError as error:
            assert "file.pkl" in str(error) and len(str(error)) < 1000
            refused = True
        else:
            refused = False
    return refused


@pytest.mark.parametrize("n_layers, d_vocab", [(41, 32_064), (33, 128_320), (33, 152_000)])
def test_the_sums_of_real_models_can_be_saved(n_layers, d_vocab):
    """LLaVA-1.5-13B, Llama 3 8B, Qwen 7B."""
    sums = np.zeros((len(schema.SEGMENTS), n_layers, d_vocab))
    assert sums.nbytes + 2**20 < pickles.MOST_BYTES


@quick(30)
@given(sizes_of(OF_RUN))
def test_a_run_is_taken_within_the_bounds_and_only_there(tmp_path_factory, sizes):
    beyond = any(sizes[name] > most for name, most in OF_RUN.items())
    beyond |= 3 * sizes["text"] * sizes["n_categories"] > pickles.MOST_BYTES
    folder = tmp_path_factory.mktemp("run")
    assert is_refused(folder, run_of(**sizes), checks.check_run) == beyond


@quick(40)
@given(sizes_of(OF_RECORD))
def test_a_record_is_taken_within_the_bounds_and_only_there(tmp_path_factory, sizes):
    cells = N_LAYERS * sizes["n_prompts"] * (sizes["n_text"] - 1 + sizes["n_answer"])
    if cells > 2**24:  # a file of gigabytes: `load` has a bound for that
        return
    beyond = any(sizes[name] > most for name, most in OF_RECORD.items() if name != "n_text")
    beyond |= sizes["n_text"] - 1 + sizes["n_answer"] > MOST["pos"] or cells > schema.MOST_CELLS
    rows = sizes["n_prompts"] * sizes["n_answer"] + sizes["n_words"]
    beyond |= (N_LAYERS + 20) * rows > schema.MOST_ROWS_OF_ONE
    run = run_of(most_new=MOST["answer"])

    def check(record):
        checks.check_record(record, run, RECORD["name"])

    assert is_refused(tmp_path_factory.mktemp("record"), record_of(**sizes), check) == beyond


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
