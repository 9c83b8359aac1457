"""Which categories are watched in the patches, and how absent ones are drawn."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from llava_lens import words
from llava_lens.data import prompts as data_prompts
from llava_lens.data import watched
from llava_lens.schema import ABSENT_SAMPLINGS

LLAMA = json.loads((Path(__file__).parents[1] / "llama_words.json").read_text("utf-8"))


class Llama:
    """Of Llama's tokenizer only the vocabulary."""

    def get_vocab(self):
        return LLAMA


def box_of(category: str, visible: float = 1.0) -> dict:
    rest = {"share": 0.1, "crowd": False, "color": None, "cut_off": False, "box": [0, 0, 9, 9]}
    return {"category": category, "visible": visible, **rest}


def test_a_category_without_a_word_is_not_watched_present_or_absent():
    objects = [box_of("zebra"), box_of("dog"), box_of("cup"), box_of("tie", visible=0.2)]
    chosen = watched.words_to_watch(Llama(), objects, ["cake", "dog", "fork", "tie", "zebra"])
    assert [(word["category"], word["present"], word["absent_sampling"]) for word in chosen] == [
        ("cup", True, ""),
        ("dog", True, ""),
        ("fork", False, "random"),
    ]
    assert chosen[1]["token_ids"] == words.word_ids(LLAMA, "dog")


def test_orange_is_not_watched_where_colours_are_asked_about():
    asked = [{"kind": "colour", "categories": ["cup"], "absent_sampling": ""}]
    objects = [box_of("orange"), box_of("cup")]
    for prompts, present in ([], ["cup", "orange"]), (asked, ["cup"]):
        chosen = watched.words_to_watch(Llama(), objects, ["fork", "orange"], prompts)
        assert [word["category"] for word in chosen if word["present"]] == present


# Ten images: of animals a person is the most frequent, a fork is always beside a cup.
SCENES = [["person", "dog"]] * 4 + [["person", "cat", "book"]] * 3 + [["cup", "fork", "bed"]] * 3
ALL = sorted({name for scene in SCENES for name in scene} | {"bus", "tie"})


def annotated(scenes) -> dict[str, list[dict]]:
    return {f"{i}.jpg": list(map(box_of, scene)) for i, scene in enumerate(scenes)}


def test_absent_categories_are_drawn_in_popes_three_ways_in_turn():
    together = watched.count_together(annotated([["dog", "dog", "cat"], ["dog"], []]))
    assert together == {"dog": Counter(dog=2, cat=1), "cat": Counter(dog=1, cat=1)}
    together = watched.count_together(annotated(SCENES))
    drawn = {way: Counter() for way in ABSENT_SAMPLINGS}
    absent = [name for name in ALL if name not in ("cup", "bed")]
    for seed in range(300):
        rows, again = (
            watched.draw_absent(absent, {"cup", "bed"}, together, 3, random.Random(seed))
            for _ in range(2)
        )
        assert rows == again and len({name for name, _ in rows}) == 3
        assert {way for _, way in rows} == set(ABSENT_SAMPLINGS)
        name, way = rows[0]
        drawn[way][name] += 1
    # Of those left: frequent are person 7, dog 4, then book, cat and fork with 3 each; beside cup
    # and bed only the fork ever was.
    assert set(drawn["random"]) == set(absent)
    assert set(drawn["popular"]) == {"person", "dog", "book"}
    assert drawn["adversarial"]["fork"] > 20 and len(drawn["adversarial"]) == 3
    assert min(sum(names.values()) for names in drawn.values()) > 70
    # Without counts all are random.
    rows = watched.draw_absent(ALL, set(), {}, 99, random.Random(0))
    assert sorted(name for name, _ in rows) == ALL and {way for _, way in rows} == {"random"}


def test_the_way_of_an_absent_category_is_kept_from_question_to_watched_word():
    objects_of = annotated(SCENES)
    together, ways = watched.count_together(objects_of), Counter()
    for name, objects in objects_of.items():
        prompts = data_prompts.make_prompts(objects, ALL, name, 1, together)
        (absent,) = [prompt for prompt in prompts if prompt["truth"] == "no"]
        assert {prompt["absent_sampling"] for prompt in prompts if prompt is not absent} == {""}
        chosen, again = (
            watched.words_to_watch(Llama(), objects, ALL, prompts, name, together) for _ in range(2)
        )
        assert chosen == again
        way_of = {w["category"]: w["absent_sampling"] for w in chosen if not w["present"]}
        assert way_of[absent["categories"][0]] == absent["absent_sampling"] in ABSENT_SAMPLINGS
        assert len(way_of) == sum(word["present"] for word in chosen)
        turn = [ABSENT_SAMPLINGS.index(way) for way in way_of.values()]
        assert all((b - a) % 3 == 1 for a, b in itertools.pairwise(turn))
        ways.update(way_of.values())
    assert set(ways) == set(ABSENT_SAMPLINGS)


def test_what_is_asked_about_is_watched_first_but_no_more_than_is_present():
    for first, second in itertools.permutations(["cat", "bed", "fork"], 2):
        asked = [
            {"kind": "presence", "categories": [name], "absent_sampling": "random"}
            for name in (first, second)
        ]
        for objects in ([], [box_of("dog")], [box_of("dog"), box_of("cup")]):
            chosen = watched.words_to_watch(Llama(), objects, ["bed", "cat", "fork"], asked)
            absent = {word["category"] for word in chosen if not word["present"]}
            assert len(absent) == len(objects) and absent <= {first, second}


@pytest.mark.parametrize(
    "name, there",
    [("Dog", "dog"), ("dogs", "dog"), ("puppy", "dog"), ("DOG", "dog"), ("dog", "puppy")],
)
def test_what_shares_a_name_with_something_there_is_no_control(name, there):
    for visible in (1.0, 0.0):
        objects = [box_of(there, visible), box_of("cup"), box_of("bed")]
        chosen = watched.words_to_watch(Llama(), objects, [name, "fork"])
        absent = [word["category"] for word in chosen if not word["present"]]
        assert absent == ["fork"]  # alone, though two or three are present
        prompts = data_prompts.make_prompts(objects, [name], per_kind=9)
        assert "no" not in {prompt["truth"] for prompt in prompts}


def test_a_byte_level_vocabulary_is_watched_too(monkeypatch):
    objects, absent = [box_of("dog"), box_of("cup")], ["fork", "cat"]
    as_llama = watched.words_to_watch(Llama(), objects, absent)
    as_bytes = {label.replace("▁", "Ġ"): token_id for label, token_id in LLAMA.items()}
    monkeypatch.setattr(Llama, "get_vocab", lambda _: as_bytes)
    assert watched.words_to_watch(Llama(), objects, absent) == as_llama != []
