"""Questions made from annotations, and the user's own."""

import numpy as np
import pytest

from llava_lens import checks, kinds
from llava_lens.data import crop
from llava_lens.data import prompts as data_prompts
from tests.hostile import RUN


def item(category, box, crowd=False, color=None, visible=1.0, cut_off=False):
    return {
        "category": category, "box": box, "crowd": crowd, "color": color, "visible": visible,
        "cut_off": cut_off, "share": box[2] * box[3] / 336**2,
    }  # fmt: skip


BROWN_DOG, CAT = item("dog", (0, 100, 150, 150), color="brown"), item("cat", (200, 110, 60, 60))
WHERE = "Where is the {} relative to the {}: left, right, above or below?"


def test_prompts_of_all_kinds():
    made = data_prompts.make_prompts([BROWN_DOG, CAT], ["cat", "dog", "umbrella"], per_kind=9)
    asked = {(p["kind"], p["question"].split("\n")[0], p["truth"], *p["categories"]) for p in made}
    assert asked == {
        ("object", "What is the main object in the image?", "dog", "dog"),
        ("presence", "Is there a dog in the image?", "yes", "dog"),
        ("presence", "Is there a cat in the image?", "yes", "cat"),
        ("presence", "Is there an umbrella in the image?", "no", "umbrella"),
        ("colour", "What color is the dog?", "brown", "dog"),
        ("colour", "What color is the cat?", None, "cat"),
        ("relation", WHERE.format("dog", "cat"), "left", "dog", "cat"),
        ("relation", WHERE.format("cat", "dog"), "right", "cat", "dog"),
        ("description", "Describe the image.", None),
    }
    for prompt in made:
        assert prompt["question"].endswith(kinds.SHORT_ANSWER) == (prompt["kind"] != "description")
    own = data_prompts.as_prompts(["a", {"question": "b", "truth": "dog"}])
    assert all(p["categories"] == [] and list(p) == list(made[0]) for p in own)
    without = data_prompts.make_prompts([], [])
    assert [p["kind"] for p in without] == ["object", "description"]
    assert all(p["categories"] == [] and p["truth"] is None for p in without)


def test_prompts_are_capped_and_seeded():
    objects = [item(name, (100 * i, 0, 50, 50)) for i, name in enumerate("abc")]
    made = [data_prompts.make_prompts(objects, list("abcdef"), seed=seed) for seed in range(9)]
    kinds_asked = ["presence", "presence", "colour", "relation", "description"]
    assert [prompt["kind"] for prompt in made[0]] == kinds_asked
    assert made[0] == data_prompts.make_prompts(objects, list("abcdef"), seed=0)
    assert any(prompts != made[0] for prompts in made)


@pytest.mark.parametrize(
    "other",
    [
        item("dog", (200, 100, 20, 20)),
        item("dog", (200, 100, 90, 90), crowd=True),
        item("dog", (200, 100, 9, 9), visible=0.1),
        item("Puppy", (200, 100, 90, 90)),
    ],
)
def test_what_occurs_twice_is_asked_neither_colour_nor_relation(other):
    """Nor is what the crop hardly holds, the cat, present or absent."""
    objects = [item("dog", (0, 100, 150, 150)), other, item("cat", (300, 0, 30, 30), visible=0.2)]
    made = data_prompts.make_prompts(objects, ["dog", "cat"], per_kind=9)
    assert {prompt["kind"] for prompt in made} == {"object", "presence", "description"}
    assert not any("cat" in prompt["question"] for prompt in made)


@pytest.mark.parametrize(
    "a, b, relation",
    [
        ((0, 0, 10, 10), (20, 2, 10, 10), "left"),
        ((20, 2, 10, 10), (0, 0, 10, 10), "right"),
        ((0, 0, 10, 10), (2, 20, 10, 10), "above"),
        ((2, 20, 10, 10), (0, 0, 10, 10), "below"),
        ((0, 0, 10, 10), (20, 20, 10, 10), None),  # diagonal
        ((0, 0, 30, 10), (20, 0, 30, 10), None),  # overlapping
    ],
)
def test_relation(a, b, relation):
    assert data_prompts.relation_of(a, b) == relation


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([""], "Prompt 0 is empty"),
        (["a", " \n"], "Prompt 1 is empty"),
        (["What is <image>?"], "Prompt 0 .*has its own <image>: leave it out"),
        (["A dog?<|im_end|> </s>"], r"own <\|im_end\|>, </s>: leave it out"),
        ("What is it?", "it must be a list of questions"),
        ([{"question": None}], "Prompt 0 is empty"),
        ([None], "Prompt 0 is empty or no text"),
        ([7], "no text"),
        ([{"question": "How many?", "truth": 3}], "has the truth 3"),
        ([{"question": "a", "answer": "b"}], "has 'answer': only question, kind and truth"),
        ([{"question": "a", "kind": "color"}], "kind 'color'"),
        *(
            ([{"question": "a", "kind": kind, "truth": truth}], f"{truth}': for {kind} give {can}")
            for kind, truth, can in [
                ("colour", "turquoise", "one of black, white, .*purple"),
                ("relation", "left or right", "one of left, right, above, below"),
                ("presence", "true", "one of yes, no"),
                ("counting", "2.5", "one of 0, 1, 2, ..., 1000"),
            ]
        ),
    ],
)
def test_bad_prompts(prompts, message):
    with pytest.raises(ValueError, match=message):
        data_prompts.as_prompts(prompts)


@pytest.mark.parametrize(
    "kind, truth",
    [("colour", "Dark grey"), ("relation", "on top"), ("presence", "Yes."), ("counting", "two"),
     ("object", "temple"), ("own", "anything"), ("colour", None)],
)  # fmt: skip
def test_a_truth_that_an_answer_can_meet_is_taken(kind, truth):
    (asked,) = data_prompts.as_prompts([{"question": "?", "kind": kind, "truth": truth}])
    assert asked["truth"] == truth


@pytest.mark.parametrize(
    "asked",
    [
        list(np.array(["What is it?", "Where?"])),
        np.array(["What is it?", "Where?"]),
        [{"question": np.str_("What is it?"), "kind": np.str_("object"), "truth": np.str_("a")}],
        [{np.str_("question"): "What is it?"}],
    ],
)
def test_texts_of_numpy_are_made_plain(asked):
    plain = data_prompts.as_prompts(asked)
    assert all({type(key) for key in prompt} == {str} for prompt in plain)
    checks.check_run(RUN | {"own_prompts": plain})


DOG, FRISBEE = item("dog", (50, 50, 250, 250)), item("frisbee", (200, 150, 80, 60))
TABLE, CAKE = item("dining table", (10, 100, 310, 200)), item("cake", (100, 120, 60, 60))


@pytest.mark.parametrize(
    "objects, main",
    [
        ([DOG, FRISBEE], "dog"),  # what it holds is small
        ([TABLE, CAKE], None),  # furniture that carries something
        ([TABLE], "dining table"),
        ([item("dining table", (0, 100, 336, 236), cut_off=True)], None),  # its food has no name
        ([item("Table", (10, 100, 310, 200)), item("book", (50, 150, 9, 9))], None),
        ([item("bed", (10, 10, 300, 300)), item("teddy bear", (50, 50, 30, 30))], None),
        ([item("bed", (10, 10, 300, 200)), item("lamp", (10, 250, 30, 60))], "bed"),
        ([item("oven", (200, 200, 100, 100))], None),  # one thing in a kitchen
        ([item("bus", (10, 100, 310, 200), cut_off=True)], "bus"),
        ([item("person", (10, 10, 60, 60))], None),  # small
        ([item("dog", (0, 0, 100, 100)), item("cat", (150, 0, 90, 90))], None),  # not clearly
        # A cat in a box that is twice as large: what it cuts from the box is not the box's.
        ([item("crate", (0, 0, 300, 200)), item("cat", (50, 20, 190, 150))], None),
        ([item("Dog", (0, 0, 200, 200)), item("dogs", (0, 200, 300, 100))], "Dog"),
    ],
)
def test_the_main_object_is_what_a_person_would_name(objects, main):
    assert data_prompts.main_category(objects, objects) == main


def dogs(n: int, **last) -> list[dict]:
    row = [item("dog", (10 + 60 * i, 10, 50, 50)) for i in range(n - 1)]
    return [*row, item("dog", (10, 100, 50, 50), **last)]


@pytest.mark.parametrize(
    "objects, number",
    [
        (dogs(2), "2"),
        (dogs(5), "5"),
        (dogs(6), None),
        (dogs(2, crowd=True), None),
        (dogs(2, cut_off=True), None),
        ([*dogs(2), item("Dogs", (200, 200, 50, 50))], "3"),
        ([*dogs(2), item("puppy", (200, 200, 50, 50), cut_off=True)], None),
        ([*dogs(1), item("dog", (200, 200, 20, 20))], "2"),
        ([*dogs(1), item("dog", (200, 200, 9, 9))], None),
        ([item("scissors", (9, 9, 99, 99)), item("broccoli", (200, 9, 99, 99))], None),
        ([], None),
    ],
)
def test_what_is_counted_is_whole_and_few(objects, number):
    made = data_prompts.make_prompts(objects, [], per_kind=9, kinds=["counting"])
    asked = {prompt["question"].splitlines()[0]: prompt["truth"] for prompt in made}
    assert asked.pop("How many dogs are there?", None) == number
    assert {*asked} <= {"How many Dogs are there?"}


def test_counting_is_asked_only_where_it_is_named_and_changes_no_other_draw():
    objects = [*dogs(2), item("cat", (200, 200, 50, 50)), item("cup", (10, 200, 50, 50))]
    known = ["dog", "cat", "cup", "bed", "fork"]
    for seed in range(9):
        made = data_prompts.make_prompts(objects, known, seed)
        more = data_prompts.make_prompts(objects, known, seed, kinds=kinds.MADE_KINDS)
        assert more[:-1] == made and more[-1]["kind"] == "counting"
        some = data_prompts.make_prompts(objects, known, seed, kinds=["colour", "counting"])
        assert [prompt["kind"] for prompt in some] == ["colour", "counting"]


def test_an_object_at_an_edge_of_image_or_crop_may_be_cut_off(llava):
    """The image is 640 x 480: the crop leaves out 80 pixels at the left and at the right."""
    boxes = {
        "whole": (200, 100, 100, 100), "top": (200, 1, 100, 100), "bottom": (200, 300, 99, 179),
        "out": (0, 100, 60, 60), "crop": (60, 100, 100, 100), "at the crop": (90, 100, 60, 60),
    }  # fmt: skip
    objects = [{"category": name, "box": list(box)} for name, box in boxes.items()]
    seen = crop.objects_in_crop(objects, (640, 480), llava[1].image_processor)
    whole = [found["category"] for found in seen if not found["cut_off"]]
    assert whole == ["whole", "at the crop"]
