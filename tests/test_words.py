"""Words: which tokens stand for a category and for an answer, in Llama's vocabulary.

`llama_words.json` holds all entries of that vocabulary, with their ids, that spell a name in
`lens_words.json`, a colour, a place, yes or no, and some pieces of such words.
"""

import json
from pathlib import Path

import pytest

import lens_data as ld
import lens_utils as lu

LLAMA = json.loads(Path(__file__).with_name("llama_words.json").read_text("utf-8"))


class Llama:
    """Of Llama's tokenizer only the vocabulary."""

    def get_vocab(self):
        return LLAMA


def watched(category: str) -> set[str]:
    spelled = {i: text for text, i in LLAMA.items()}
    return {spelled[i] for i in ld.word_ids(LLAMA, category)}


WITH_A_WORD = (
    "person|car|airplane|bus|train|boat|bird|cat|dog|horse|sheep|cow|bear|tie|skis|sports ball|cup|"
    "fork|apple|orange|chair|potted plant|bed|dining table|tv|laptop|mouse|remote|keyboard|"
    "cell phone|sink|book|clock"
).split("|")


def test_of_cocos_80_categories_33_have_a_word_in_llamas_vocabulary():
    assert len(lu.WORDS["categories"]) == 80 and len(WITH_A_WORD) == 33
    assert [name for name in lu.WORDS["categories"] if watched(name)] == WITH_A_WORD


@pytest.mark.parametrize(
    "category, words",
    [
        ("fork", "▁fork"),  # not ▁for
        ("orange", "▁orange"),  # not ▁or, nor the county
        ("bed", "▁bed ▁Bed"),  # not `bed`, which ends "described"
        ("cat", "▁cat ▁Cat"),
        ("car", "▁car ▁Car ▁cars"),
        ("tie", "▁tie"),  # not `ties`, which ends "properties"
        ("boat", "▁boat ▁boats ▁ship ▁ships"),  # not `ship`, which ends "friendship"
        ("airplane", "▁plane plane ▁aircraft ▁jet jets"),
        ("dog", "▁dog ▁Dog ▁dogs dog"),
        ("apple", "▁apple apple"),  # ▁Apple is a company
        ("cow", "▁cow ▁Cow ▁cattle"),  # `cow` begins "cowboy"
        ("cell phone", "▁phone ▁Phone phone Phone"),
        ("cake", ""),
        ("wine glass", ""),
        ("teddy bear", ""),
        ("hot dog", ""),
        ("bowl", ""),  # only ▁Bowl is a token, as in Super Bowl
    ],
)
def test_a_word_is_whole_tokens(category, words):
    assert watched(category) == set(words.split())


def test_every_watched_token_is_a_name_of_its_category():
    for category in WITH_A_WORD:
        letters = {word.lstrip("▁").lower() for word in watched(category)}
        assert letters <= set(lu.names_of(category))
        assert not letters & set("bag wine meter mitt bat glass traffic stop fire hot".split())
    assert "man" not in watched("person") and "▁man" in watched("person")


def test_other_categories_get_singular_plural_and_capitals():
    vocabulary = {"▁berry": 4, "▁berries": 5, "▁Berry": 6, "berry": 7, "▁Berries": 8, "▁ber": 9}
    assert ld.word_ids(vocabulary, "Berry") == [4, 5, 6, 8]
    assert ld.word_ids(vocabulary, "cranberry") == []


def test_each_name_belongs_to_one_category():
    names = [name for category in lu.WORDS["categories"] for name in set(lu.names_of(category))]
    assert len(names) == len(set(names))


def box_of(category: str, visible: float = 1.0) -> dict:
    return {"category": category, "visible": visible}


def test_a_category_without_a_word_is_not_watched_present_or_absent():
    objects = [box_of("zebra"), box_of("dog"), box_of("tie", visible=0.05)]
    words = ld.words_to_watch(Llama(), objects, ["cake", "dog", "fork", "tie", "zebra"])
    assert [(word["category"], word["present"], word["way"]) for word in words] == [
        ("dog", True, ""),
        ("fork", False, "random"),
    ]
    assert words[0]["token_ids"] == ld.word_ids(LLAMA, "dog")


def test_orange_is_not_watched_where_colours_are_asked_about():
    asked = [{"kind": "colour", "categories": ["cup"]}]
    objects = [box_of("orange"), box_of("cup")]
    for prompts, present in ([], ["cup", "orange"]), (asked, ["cup"]):
        words = ld.words_to_watch(Llama(), objects, ["fork", "orange"], prompts)
        assert [word["category"] for word in words if word["present"]] == present
