"""A value against the schema: what may be missing or empty, knockout and route."""

import numpy as np
import pytest

from llava_lens import checks, schema

N_LAYERS, LAYERS = 5, [0, 2, 5]
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
WINDOWS = [[1, 2], [1, N_LAYERS]]
KNOCKOUT = {
    "object": np.array([0.5, 0.25], np.float32),
    "background": np.array([0.5, 0.5], np.float16),
    **dict.fromkeys(("image", "image_last", "question_last"), 0.25),
}


@pytest.fixture
def checked(records, run):
    """Checks a record of the tiny model with other values for a prompt, or for the run."""

    def check(of_run=None, **of_prompt):
        first, *others = records[0]["prompts"]
        first = {**first, "knockout": KNOCKOUT, "route": ROUTE, **of_prompt}
        prompts = [
            {name: prompt[name] for name in prompt if prompt[name] is not None}
            | {"truth": prompt["truth"]}
            for prompt in [first, *({**prompt, "knockout": {}, "route": {}} for prompt in others)]
        ]
        now = {**run, "knockout_windows": WINDOWS, "route_layers": LAYERS, **(of_run or {})}
        checks.check_run(now)
        checks.check_record({**records[0], "prompts": prompts}, now, records[0]["name"])

    return check


def test_knockout_and_route_may_be_there_or_not(checked):
    checked()
    checked(route={})
    checked(route=None)  # missing
    checked(knockout={})
    checked(knockout={name: KNOCKOUT[name] for name in KNOCKOUT.keys() - {*schema.OF_OBJECTS}})
    checked({"knockout_windows": [], "route_layers": []}, knockout={}, route={})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": np.zeros(2, np.float32)}, "knockout, image is no float from 0 to 1"),
        ({"image": np.float32(0.5)}, "image is no float"),
        ({"image": float("nan")}, "image is no float"),
        ({"image_last": 1.5}, "image_last is no float from 0 to 1"),
        ({"object": np.zeros(3, np.float32)}, "object is no array"),
        ({"object": 0.5}, "object is no array"),
        ({"object": np.array([0.5, np.nan], np.float32)}, "object has numbers that are not from"),
        ({"evil": 0.5}, "knockout has a field that results never have: evil"),
    ],
)
def test_a_knockout_out_of_shape_or_range_is_named(checked, change, message):
    with pytest.raises(ValueError, match=message):
        checked(knockout={**KNOCKOUT, **change})


@pytest.mark.parametrize("name", KNOCKOUT)
def test_a_cut_that_is_missing_is_named(checked, name):
    less = {key: value for key, value in KNOCKOUT.items() if key != name}
    with pytest.raises(ValueError, match=f"no {name}|only one of object and background"):
        checked(knockout=less)


@pytest.mark.parametrize("name", ROUTE)
def test_a_part_of_the_route_that_is_missing_is_named(checked, name):
    with pytest.raises(ValueError, match=f"prompts 0, route has no {name}"):
        checked(route={key: value for key, value in ROUTE.items() if key != name})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"own": float("inf")}, "own is no float from -1000000 to 1000000|own is no float"),
        ({"mediated": float("nan")}, "mediated is no float"),
        ({"counterfactual": 1}, "counterfactual is no float"),
        ({"own": np.float64(1)}, "own is no float"),
        ({"image": np.array([0, np.nan, 1])}, "image has numbers that are not from"),
        ({"last": np.array([0, np.inf, 1])}, "last has numbers that are not from"),
        ({"question": np.zeros(2)}, r"question is no array \(3,\)"),
        ({"question": [0.0, 0.0, 0.0]}, "question is no array"),
        ({"own_id": 10**6}, "own_id is no int from 0"),
        ({"other_id": 3}, "route of prompt 0 has one token for both answers"),
        ({"other": " "}, "other is no text"),
        ({"other_answer": None}, "other_answer is no str"),
        ({"grey": 1}, "route has a field that results never have: grey"),
    ],
)
def test_a_route_out_of_shape_or_range_is_named(checked, change, message):
    with pytest.raises(ValueError, match=message):
        checked(route={**ROUTE, **change})


@pytest.mark.parametrize(
    "of_run, message",
    [
        ({"route_layers": [0, 5, 2]}, "route_layers are not in order from 0 to 5"),
        ({"route_layers": [0, 2, 2, 5]}, "route_layers are not in order"),
        ({"route_layers": [2, 5]}, "route_layers are not in order"),
        ({"route_layers": [0, 2]}, "route_layers are not in order"),
        ({"route_layers": [0, 2.0, 5]}, "route_layers is no int"),
        ({"route_layers": None}, "route_layers is no list"),
        ({"knockout_windows": [[1, 2]]}, "the last of knockout_windows is not all blocks"),
        ({"evil": 1}, "run has a field that results never have: evil"),
    ],
)
def test_a_run_and_its_records_agree(checked, of_run, message):
    with pytest.raises(ValueError, match=message):
        checked(of_run)


def test_a_run_without_knockout_or_route_has_none_in_its_records(checked):
    floats = {name: KNOCKOUT[name] for name in KNOCKOUT.keys() - {*schema.OF_OBJECTS}}
    with pytest.raises(ValueError, match="prompt 0 has a knockout, but its run has none"):
        checked({"knockout_windows": []}, knockout=floats)
    empty = {name: np.zeros(0, np.float32) for name in ("image", "question", "last")}
    with pytest.raises(ValueError, match="prompt 0 has a route, but its run has none"):
        checked({"route_layers": []}, route={**ROUTE, **empty})


@pytest.mark.parametrize("sampling", schema.ABSENT_SAMPLINGS)
def test_how_an_absent_category_was_drawn_is_known(checked, sampling):
    checked(absent_sampling=sampling)
    with pytest.raises(ValueError, match="prompt 0 has no known absent_sampling"):
        checked(absent_sampling=f"{sampling}ly")


def test_a_record_of_format_3_is_refused(run):
    with pytest.raises(ValueError, match="format version is 3, this release reads 4: read the"):
        checks.check_run({**run, "format_version": 3})
