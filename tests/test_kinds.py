"""Kinds of question: each is one entry of KINDS and one rule of CANDIDATES."""

import pytest

from llava_lens import kinds
from llava_lens.analysis import grading
from llava_lens.data import prompts
from llava_lens.model import load


def first_line(kind: str, **words) -> str:
    return kinds.question_of(kind, **words).splitlines()[0]


@pytest.mark.parametrize(
    "category, asked, colour",
    [
        ("dog", "Is there a dog", "What color is the dog?"),
        ("umbrella", "Is there an umbrella", "What color is the umbrella?"),
        ("Apple", "Is there an Apple", "What color is the Apple?"),
        ("bus", "Is there a bus", "What color is the bus?"),
        ("wine glass", "Is there a wine glass", "What color is the wine glass?"),
        ("uniform", "Is there a uniform", "What color is the uniform?"),
        ("hourglass", "Is there an hourglass", "What color is the hourglass?"),
        ("sheep", "Is there a sheep", "What color is the sheep?"),
        ("scissors", "Are there scissors", "What color are the scissors?"),
        ("skis", "Are there skis", "What color are the skis?"),
        ("jeans", "Are there jeans", "What color are the jeans?"),
        ("People", "Are there People", "What color are the People?"),
        ("pair of scissors", "Is there a pair of scissors", "What color is the pair of scissors?"),
        ("broccoli", "Is there broccoli", "What color is the broccoli?"),
        ("cell_phone", "Is there a cell phone", "What color is the cell phone?"),
    ],
)
def test_a_question_agrees_with_its_noun(category, asked, colour):
    assert first_line("presence", category=category) == f"{asked} in the image?"
    assert first_line("colour", category=category) == colour


def test_questions_about_two_and_about_numbers():
    where = "relative to the dog: left, right, above or below?"
    assert first_line("relation", a="skis", b="dog") == f"Where are the skis {where}"
    assert first_line("relation", a="cat", b="dog") == f"Where is the cat {where}"
    assert first_line("counting", category="mouse") == "How many mice are there?"
    assert first_line("counting", category="dining table") == "How many dining tables are there?"


def test_each_kind_that_is_made_has_candidates_and_only_those_named_are_asked():
    assert {*prompts.CANDIDATES} == {*kinds.MADE_KINDS}
    assert {*kinds.MADE_KINDS} - {*kinds.DEFAULT_KINDS} == {"counting"}
    assert load.Settings("a model").kinds == kinds.DEFAULT_KINDS
    for wrong in ([], "colour", ["own"], ["color"], [3]):
        with pytest.raises(ValueError, match="kinds is .* a list of some of colour"):
            load.Settings("a model", kinds=wrong)


def test_a_seventh_kind_is_one_entry_and_one_rule(monkeypatch):
    size = kinds.Kind(
        "sizes",
        "How big is the {category}?",
        meanings={"big": "large", "large": "large", "small": "small", "tiny": "small"},
        in_order=True,
    )

    def sizes(scene: prompts.Scene) -> list[prompts.Candidate]:
        known = {item["category"]: item["share"] for item in scene.single}
        words = {True: "large", False: "small"}
        return scene.draw(
            [prompts.Candidate({"category": name}, words[s > 0.2]) for name, s in known.items()]
        )

    monkeypatch.setitem(kinds.KINDS, "size", size)
    monkeypatch.setitem(prompts.CANDIDATES, "size", sizes)
    dog = {"category": "dog", "visible": 1.0, "share": 0.5, "crowd": False, "box": [0, 0, 9, 9]}
    (asked,) = prompts.make_prompts([dog], [], kinds=["size"])
    assert (asked["question"], asked["truth"]) == ("How big is the dog?", "large")
    assert asked["categories"] == ["dog"] and asked["truth_from"] == "annotation"
    assert grading.is_right("size", "It is big.", asked["truth"]) is True
    assert grading.is_right("size", "Tiny", asked["truth"]) is False
    assert grading.is_right("size", "Big or small", asked["truth"]) is None
