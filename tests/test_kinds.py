"""Kinds of question: each is one entry of KINDS and one rule of CANDIDATES."""

import pytest

from llava_lens import kinds
from llava_lens.analysis import grading
from llava_lens.data import prompts
from llava_lens.model import load


def first_line(kind: str, **words) -> str:
    return kinds.question_of(kind, **words).splitlines()[0]


@pytest.mark.parametrize("asked", """
    a dog | an umbrella | an Apple | a bus | a wine glass | a uniform | a USB stick | a UFO
    a urinal | a European flag | a one-way sign | an SUV | an LCD screen | an x-ray | an 8-ball
    an 18-wheeler
    an hourglass | an hour | an honest man | an heir | a sheep | a pair of scissors | an onion
    an urn | a unit | a bunch of grapes | a glass (of wine) | a ledger | a thermos
""".replace("\n", "|").split("|")[1:-1])  # fmt: skip
def test_a_question_names_one_thing_with_its_article(asked):
    noun = asked.strip().split(" ", 1)[1]
    for spelled in (noun, noun.replace(" ", "_"), f" {noun} "):
        assert first_line("presence", category=spelled) == f"Is there {asked.strip()} in the image?"
    assert first_line("colour", category=noun) == f"What color is the {noun}?"


@pytest.mark.parametrize("noun", ["scissors", "skis", "jeans", "People", "traffic lights", "Cars"])
def test_a_question_agrees_with_a_plural(noun):
    assert first_line("presence", category=noun) == f"Are there {noun} in the image?"
    assert first_line("colour", category=noun) == f"What color are the {noun}?"
    assert first_line("relation", a=noun, b="dog").startswith(f"Where are the {noun} relative to")
    assert first_line("relation", a="dog", b=noun).startswith("Where is the dog relative to the")


def test_questions_about_what_is_not_counted_and_about_numbers():
    assert first_line("presence", category="broccoli") == "Is there broccoli in the image?"
    assert first_line("colour", category="broccoli") == "What color is the broccoli?"
    assert first_line("counting", category="cell_phone") == "How many cell phones are there?"


def test_each_kind_that_is_made_has_candidates_and_only_those_named_are_asked():
    assert {*prompts.CANDIDATES} == {*kinds.MADE_KINDS}
    asked = {"colour", "object", "relation", "presence", "description"}
    assert asked <= {*kinds.DEFAULT_KINDS} and "counting" not in kinds.DEFAULT_KINDS
    assert load.Settings("a model").kinds == kinds.DEFAULT_KINDS
    for wrong in ([], "colour", ["own"], ["color"], [3]):
        with pytest.raises(ValueError, match="kinds is .* a list of some of colour"):
            load.Settings("a model", kinds=wrong)


def test_the_truths_of_every_kind_are_graded_in_a_sentence():
    """So a kind whose rule says truths that its meanings don't know is noticed. In a sentence, as a
    truth that is no term is compared as text."""
    about = [("dog", "brown", (0, 90)), ("cat", "black", (200, 99)), ("cup", "red", (9, 250))]
    scene = [
        {"category": name, "color": colour, "box": [*at, 120, 120], "visible": 1.0, "share": share}
        for (name, colour, at), share in zip(about, (0.3, 0.1, 0.1), strict=True)
    ]
    scene = [item | {"crowd": False, "cut_off": False} for item in scene]
    made = prompts.make_prompts(scene, ["bed", "fork"], per_kind=9, kinds=kinds.MADE_KINDS)
    truths = {
        kind: {prompt["truth"] for prompt in made if prompt["kind"] == kind} for kind in kinds.KINDS
    }
    assert all(truths[kind] for kind in kinds.MADE_KINDS) and truths["description"] == {None}
    for kind, known in truths.items():
        for truth in known - {None}:
            for said in known - {None}:
                assert grading.is_right(kind, f"It is {said}.", truth) is (said == truth), kind


def test_a_seventh_kind_is_one_entry_and_one_rule(monkeypatch):
    meanings = {"big": "large", "large": "large", "small": "small", "tiny": "small"}
    size = kinds.Kind("sizes", "How big is the {category}?", meanings=meanings, in_order=True)

    def sizes(scene: prompts.Scene) -> list[prompts.Candidate]:
        words = {True: "large", False: "small"}
        return scene.draw([
            prompts.Candidate({"category": item["category"]}, words[item["share"] > 0.2])
            for item in scene.single
        ])  # fmt: skip

    monkeypatch.setitem(kinds.KINDS, "size", size)
    monkeypatch.setitem(prompts.CANDIDATES, "size", sizes)
    dog = {"category": "dog", "visible": 1.0, "share": 0.5, "crowd": False, "box": [0, 0, 9, 9]}
    (asked,) = prompts.make_prompts([dog], [], kinds=["size"])
    assert (asked["question"], asked["truth"]) == ("How big is the dog?", "large")
    assert asked["categories"] == ["dog"] and asked["truth_from"] == "annotation"
    assert grading.is_right("size", "It is big.", asked["truth"]) is True
    assert grading.is_right("size", "Tiny", asked["truth"]) is False
    assert grading.is_right("size", "Big or small", asked["truth"]) is None
