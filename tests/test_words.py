"""Words: which tokens stand for a category and for an answer, in Llama's vocabulary.

`llama_words.json` holds all entries of that vocabulary, with their ids, that spell a name in
`lens_words.json`, a colour, a place, yes or no, and some pieces of such words.
"""

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava_lens import schema
from llava_lens import words as words_py
from llava_lens.data import prompts as data_prompts
from llava_lens.data import watched as data_watched
from llava_lens.model import lens
from llava_lens.model import read as model_read

LLAMA = json.loads(Path(__file__).with_name("llama_words.json").read_text("utf-8"))


class Llama:
    """Of Llama's tokenizer only the vocabulary."""

    def get_vocab(self):
        return LLAMA


def watched(category: str) -> set[str]:
    spelled = {i: text for text, i in LLAMA.items()}
    return {spelled[i] for i in words_py.word_ids(LLAMA, category)}


WITH_A_WORD = [
    "person", "car", "airplane", "bus", "train", "boat", "bird", "cat", "dog", "horse", "sheep",
    "cow", "bear", "tie", "skis", "sports ball", "cup", "fork", "apple", "orange", "chair",
    "potted plant", "bed", "dining table", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "sink", "book", "clock",
]  # fmt: skip
AMBIGUOUS = {"bag", "wine", "meter", "mitt", "bat", "glass", "traffic", "stop", "fire", "hot"}


def test_of_cocos_80_categories_33_have_a_word_in_llamas_vocabulary():
    assert len(words_py.WORDS["categories"]) == 80 and len(WITH_A_WORD) == 33
    assert [name for name in words_py.WORDS["categories"] if watched(name)] == WITH_A_WORD


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
        assert letters <= set(words_py.names_of(category))
        assert not letters & AMBIGUOUS
    assert "man" not in watched("person") and "▁man" in watched("person")


def test_other_categories_get_singular_plural_and_capitals():
    vocabulary = {"▁berry": 4, "▁berries": 5, "▁Berry": 6, "berry": 7, "▁Berries": 8, "▁ber": 9}
    assert words_py.word_ids(vocabulary, "Berry") == [4, 5, 6, 8]
    assert words_py.word_ids(vocabulary, "cranberry") == []


def test_each_name_belongs_to_one_category():
    names = [
        name
        for category in words_py.WORDS["categories"]
        for name in set(words_py.names_of(category))
    ]
    assert len(names) == len(set(names))


def box_of(category: str, visible: float = 1.0) -> dict:
    return {"category": category, "visible": visible}


def test_a_category_without_a_word_is_not_watched_present_or_absent():
    objects = [box_of("zebra"), box_of("dog"), box_of("tie", visible=0.05)]
    words = data_watched.words_to_watch(Llama(), objects, ["cake", "dog", "fork", "tie", "zebra"])
    assert [(word["category"], word["present"], word["way"]) for word in words] == [
        ("dog", True, ""),
        ("fork", False, "random"),
    ]
    assert words[0]["token_ids"] == words_py.word_ids(LLAMA, "dog")


def test_orange_is_not_watched_where_colours_are_asked_about():
    asked = [{"kind": "colour", "categories": ["cup"], "way": ""}]
    objects = [box_of("orange"), box_of("cup")]
    for prompts, present in ([], ["cup", "orange"]), (asked, ["cup"]):
        words = data_watched.words_to_watch(Llama(), objects, ["fork", "orange"], prompts)
        assert [word["category"] for word in words if word["present"]] == present


# ------------------------------------------------------------------------------------------------
# Absent categories, POPE's three ways
# ------------------------------------------------------------------------------------------------

# Ten images: of animals a person is the most frequent, a fork is always beside a cup.
SCENES = [["person", "dog"]] * 4 + [["person", "cat", "book"]] * 3 + [["cup", "fork", "bed"]] * 3
ALL = sorted({name for scene in SCENES for name in scene} | {"bus", "tie"})


def annotated(scenes) -> dict[str, list[dict]]:
    whole = {"visible": 1.0, "share": 0.1, "crowd": False, "color": None, "box": [0, 0, 9, 9]}
    return {
        f"{i}.jpg": [{"category": name, **whole} for name in scene]
        for i, scene in enumerate(scenes)
    }


def test_categories_are_counted_together():
    together = data_watched.count_together(annotated([["dog", "dog", "cat"], ["dog"], []]))
    assert together == {"dog": Counter(dog=2, cat=1), "cat": Counter(dog=1, cat=1)}


def test_absent_categories_are_drawn_in_popes_three_ways_in_turn():
    together, drawn = (
        data_watched.count_together(annotated(SCENES)),
        {way: Counter() for way in schema.WAYS},
    )
    absent = [name for name in ALL if name not in ("cup", "bed")]
    for seed in range(300):
        rows = data_watched.draw_absent(absent, {"cup", "bed"}, together, 3, random.Random(seed))
        assert {way for _, way in rows} == set(schema.WAYS) and len({name for name, _ in rows}) == 3
        assert rows == data_watched.draw_absent(
            absent, {"cup", "bed"}, together, 3, random.Random(seed)
        )
        name, way = rows[0]
        drawn[way][name] += 1
    # Of those left: frequent are person 7, dog 4, then book, cat and fork with 3 each; beside cup
    # and bed only the fork ever was.
    assert set(drawn["random"]) == set(absent)
    assert set(drawn["popular"]) == {"person", "dog", "book"}
    assert drawn["adversarial"]["fork"] > 20 and len(drawn["adversarial"]) == 3
    assert min(sum(names.values()) for names in drawn.values()) > 70


def test_without_counts_absent_categories_are_random():
    rows = data_watched.draw_absent(ALL, set(), {}, 99, random.Random(0))
    assert sorted(name for name, _ in rows) == ALL and {way for _, way in rows} == {"random"}


def test_the_way_of_an_absent_category_is_kept_from_question_to_watched_word():
    objects_of = annotated(SCENES)
    together, ways = data_watched.count_together(objects_of), Counter()
    for name, objects in objects_of.items():
        prompts = data_prompts.make_prompts(objects, ALL, name, 1, together)
        (absent,) = [prompt for prompt in prompts if prompt["truth"] == "no"]
        assert {prompt["way"] for prompt in prompts if prompt is not absent} == {""}
        words = data_watched.words_to_watch(Llama(), objects, ALL, prompts, name, together)
        way_of = {word["category"]: word["way"] for word in words if not word["present"]}
        assert way_of[absent["categories"][0]] == absent["way"] in schema.WAYS
        assert len(way_of) == sum(word["present"] for word in words)
        turn = [schema.WAYS.index(way) for way in way_of.values()]
        assert all((b - a) % 3 == 1 for a, b in itertools.pairwise(turn))
        ways.update(way_of.values())
    assert set(ways) == set(schema.WAYS)


# ------------------------------------------------------------------------------------------------
# The word of an answer
# ------------------------------------------------------------------------------------------------


def test_tokens_that_differ_in_space_and_capital_alone_spell_one_word():
    labels = list(LLAMA)
    alike = words_py.spelled_alike(labels)
    groups = {
        frozenset(label for label, word in zip(labels, alike, strict=True) if word == alike[i])
        for i in range(len(labels))
    }
    for group in ("▁red Red red ▁Red", "▁yes yes Yes ▁Yes", "▁blue Blue blue ▁Blue", "▁P", "ink"):
        assert frozenset(group.split()) in groups
    assert words_py.spelled_alike(["▁red", "▁RED", "RED", "▁", "<0x0A>", "Red", "▁."]) == [
        0, 1, 2, 3, 4, 0, 6,
    ]  # fmt: skip


class Labels:
    """Of a tokenizer only what names the tokens."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def convert_ids_to_tokens(self, ids):
        return [self.labels[i] for i in ids]


@pytest.mark.parametrize(
    "answer, word",
    [
        ("▁Red </s>", "▁red ▁Red red Red"),
        ("▁Red . </s>", "▁red ▁Red red Red"),
        ("▁Red", "▁red ▁Red red Red"),
        ("▁Red ▁and", "▁red ▁Red red Red"),
        ("▁P ink </s>", ""),  # Pink and Above, as Llama's tokenizer splits them
        ("▁A bove </s>", ""),
        ("▁ <0x0A>", ""),
        (". </s>", ""),
    ],
)
def test_an_answer_that_begins_with_a_piece_has_no_word(answer, word):
    labels = ["</s>", "▁and", "▁", "<0x0A>", ".", "▁P", "ink", "▁A", "bove", "▁a", "▁p"]
    labels += ["▁red", "▁Red", "red", "Red"]
    bridge = SimpleNamespace(tokenizer=Labels(labels), cfg=SimpleNamespace(d_vocab=len(labels)))
    ids = model_read._word_ids(bridge, np.array([labels.index(label) for label in answer.split()]))
    assert [labels[i] for i in ids] == word.split()


def test_the_word_of_an_answer_against_sums_over_the_whole_softmax(llava, records):
    """Each spelling by hand, every word ranked in float64; the same from a run with the cache."""
    bridge, processor = llava
    labels = words_py.token_labels(processor.tokenizer, bridge.cfg.d_vocab)
    assert bridge.tokenizer.convert_ids_to_tokens(range(400)) == labels[:400]
    words = {}
    for i, label in enumerate(labels):
        letters = label.lstrip("▁")
        known = letters.isalpha() and letters in (letters.lower(), letters.capitalize())
        words.setdefault(letters.lower() if known else label, []).append(i)
    residuals = list(torch.randn(6, 3, bridge.cfg.d_model, generator=torch.manual_seed(1)))
    with torch.inference_mode():
        several = [word for word, ids in words.items() if len(ids) > 1]
        for spelled in [*several[:3], "▁"]:
            read = model_read.read_answer(bridge, residuals, words[spelled][-1])
            for layer, resid in enumerate(residuals):
                p = lens.lens_logits(bridge, resid[-1:])[0].double().softmax(-1)
                own = p[words[spelled]].sum()
                sums = torch.stack([p[ids].sum() for ids in words.values()])
                assert read["word_prob"][layer] == pytest.approx(float(own), rel=1e-4)
                assert abs(int(read["word_rank"][layer]) - int((sums > own).sum() + 1)) <= 1
                assert read["target_prob"][layer] == pytest.approx(
                    float(p[words[spelled][-1]]), rel=1e-4
                )
    for prompt in (prompt for record in records for prompt in record["prompts"]):
        at = prompt["n_prompt"] - 1
        assert (prompt["word_prob"] >= prompt["readings"]["target_prob"][:, at] - 1e-6).all()
        assert prompt["word_ids"] == [] or prompt["answer_ids"][0] in prompt["word_ids"]
