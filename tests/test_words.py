"""Words: which tokens stand for a category and for an answer, in Llama's vocabulary.

`llama_words.json` holds all entries of that vocabulary, with their ids, that spell a name in
`llava_lens/words.json`, a colour, a place, yes or no, and some pieces of such words.
"""

import json
from pathlib import Path

import pytest
import torch

from llava_lens import schema
from llava_lens import words as words_py
from llava_lens.data import images as data_images
from llava_lens.data import prompts as data_prompts
from llava_lens.model import lens, load
from llava_lens.model import read as model_read
from llava_lens.model import run as model_run

LLAMA = json.loads(Path(__file__).with_name("llama_words.json").read_text("utf-8"))


def watched(category: str) -> set[str]:
    spelled = {i: text for text, i in LLAMA.items()}
    return {spelled[i] for i in words_py.word_ids(LLAMA, category)}


WITH_A_WORD = [
    "person", "car", "airplane", "bus", "train", "boat", "bird", "cat", "dog", "horse", "sheep",
    "cow", "bear", "tie", "skis", "sports ball", "cup", "fork", "apple", "orange", "chair",
    "potted plant", "bed", "dining table", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "sink", "book", "clock",
]  # fmt: skip


def test_of_cocos_80_categories_33_have_a_word_in_llamas_vocabulary():
    assert len(words_py.WORDS["categories"]) == 80 and len(WITH_A_WORD) == 33
    assert [name for name in words_py.WORDS["categories"] if watched(name)] == WITH_A_WORD
    names = [name for word in words_py.WORDS["categories"] for name in words_py.names_of(word)]
    assert len(names) == len(set(names))  # each belongs to one category
    assert "▁man" in watched("person") and "man" not in watched("person")


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
        ("airplane", "▁plane plane ▁aircraft ▁jet"),  # `jets` ends "projets"
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


def test_other_categories_get_singular_plural_and_capitals():
    vocabulary = {"▁berry": 4, "▁berries": 5, "▁Berry": 6, "berry": 7, "▁Berries": 8, "▁ber": 9}
    assert words_py.word_ids(vocabulary, "Berry") == [4, 5, 6, 8]
    assert words_py.word_ids(vocabulary, "cranberry") == []


def test_tokens_that_differ_in_space_and_capital_alone_spell_one_word():
    labels, groups = list(LLAMA), {}
    for label, word in zip(labels, words_py.spelled_alike(labels), strict=True):
        groups.setdefault(word, set()).add(label)
    for group in ("▁red Red red ▁Red", "▁yes yes Yes ▁Yes", "▁blue Blue blue ▁Blue", "▁P", "ink"):
        assert set(group.split()) in groups.values()
    odd = ["▁red", "▁RED", "RED", "▁", "<0x0A>", "Red", "▁."]
    assert words_py.spelled_alike(odd) == [0, 1, 2, 3, 4, 0, 6]


@pytest.mark.parametrize(
    "answer, at, word",
    [
        ("▁Red </s>", 0, "▁red ▁Red red Red"),
        ("▁Red . </s>", 0, "▁red ▁Red red Red"),
        ("▁Red", 0, "▁red ▁Red red Red"),
        ("▁Red ▁and", 0, "▁red ▁Red red Red"),
        ("▁Y ellow </s>", 0, "▁Y ▁yellow yellow"),  # as LLaVA-1.5-7B says it
        ("▁A bove </s>", 0, "▁A ▁above above"),
        ("▁A bove ▁it", 0, "▁A ▁above above"),
        ("▁P ink </s>", 0, ""),  # no token spells it
        ("▁J ets </s>", 0, ""),  # `jets` is a piece: " jets" is no token
        ("▁ 2 </s>", 1, "2"),  # Llama's way to say a digit
        ("▁ 2 ▁and", 1, "2"),
        ("▁ 1 2 </s>", 1, ""),
        ("▁two </s>", 0, "▁two ▁Two"),
        ("▁TV </s>", 0, "▁TV ▁tv"),
        ("▁Red - 2", 0, ""),  # a word of two
        ("▁ 2 . 1", 1, ""),  # a number that is no token
        ("▁A bove . </s>", 0, "▁A ▁above above"),
        ("▁ह ा </s>", 0, ""),  # its mark is no letter, but ends no word
        ("▁<0xE7> <0x8B> <0x97>", 0, ""),  # with a space no token spells it
        ('▁" Red "', 1, "▁red ▁Red red Red"),
        ("▁ <0xE7> <0x8B> <0x97>", 1, "<0xE7> 狗"),
        ("▁ <0x0A>", 0, ""),
        (". </s>", 0, ""),
        ("</s>", 0, ""),  # not the word s
    ],
)
def test_the_word_of_an_answer_is_its_first_decoded_word(answer, at, word):
    labels = ["</s>", "▁and", "▁", "<0x0A>", ".", "▁P", "ink", "▁A", "bove", "▁a", "▁p", "▁it"]
    labels += ["▁red", "▁Red", "red", "Red", "▁Y", "ellow", "▁yellow", "yellow", "▁above", "above"]
    labels += ["▁J", "ets", "jets", "1", "2", "▁two", "▁Two", "▁TV", "▁tv", "-", '▁"', '"']
    labels += ["<0xE7>", "<0x8B>", "<0x97>", "狗", "▁<0xE7>", "▁ह", "ा"]
    found = words_py.first_word(labels, [labels.index(label) for label in answer.split()])
    assert found[0] == at and {labels[i] for i in found[1]} == set(word.split())
    assert found[1] == sorted(found[1])


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
                of_token = float(p[words[spelled][-1]])
                assert read["target_prob"][layer] == pytest.approx(of_token, rel=1e-4)
    for prompt in (prompt for record in records for prompt in record["prompts"]):
        at = prompt["n_prompt"] - 1 + prompt["word_at"]
        assert (prompt["word_prob"] >= prompt["readings"]["target_prob"][:, at] - 1e-6).all()
        begun = prompt["answer_ids"][prompt["word_at"]]
        assert prompt["word_ids"] == [] or begun in prompt["word_ids"]


def test_a_word_that_follows_a_space_is_read_where_it_is_said(llava, photographs, monkeypatch):
    """As if the first token were a space: answer and controls are read one position later."""
    bridge, processor = llava
    monkeypatch.setattr(model_read, "first_word", lambda _, ids: (1, [int(ids[1])]))
    settings = load.Settings("a model", max_new_tokens=3)
    image = data_images.open_image(photographs / "china.jpg")
    prompts = data_prompts.as_prompts(["How many?"])
    record, *_ = model_read.read_image(bridge, processor, image, prompts, settings)
    (prompt,) = record["prompts"]
    n_prompt, answer_ids = prompt["n_prompt"], prompt["answer_ids"]
    assert prompt["word_at"] == 1 and prompt["word_ids"] == [answer_ids[1]]
    of_token = prompt["readings"]["target_prob"][:, n_prompt]  # where answer_ids[0] is fed back
    assert prompt["word_prob"] == pytest.approx(of_token, rel=1e-4)
    own = model_run.keep_prefix(bridge, processor, image)
    (control,) = model_read.read_control(bridge, own, [prompt])  # its own image: the same
    for name in ("target_prob", "word_prob"):
        assert control[name] == pytest.approx(of_token, rel=1e-3)


TEXTS = {  # how GPT-2's byte-level vocabulary writes a token, and its text
    "Ġcat": "▁cat", "cat": "cat", "ĠCats": "▁Cats", "Ċ": "\n", "ĠĠ": "▁▁", "Ã©": "é",
    "ç": "<0xE7>", "Ġç": "▁<0xE7>", "çĭĹ": "狗", "<|im_end|>": "<|im_end|>", "Ġ2": "▁2",
    "a token that was added": "a token that was added", "Ġ" * 128: "▁" * 100,
}  # fmt: skip


class Bytes:
    """Of a byte-level tokenizer only the vocabulary."""

    def __len__(self):
        return len(TEXTS)

    def get_vocab(self):
        return {token: 10 + i for i, token in enumerate(TEXTS)}

    def convert_ids_to_tokens(self, ids):
        return [list(TEXTS)[i] for i in ids]


def test_labels_of_a_byte_level_vocabulary_are_as_sentencepiece_has_them():
    labels = words_py.token_labels(Bytes(), len(TEXTS) + 2)
    assert labels == [*TEXTS.values(), f"<row{len(TEXTS)}>", f"<row{len(TEXTS) + 1}>"]
    assert max(map(len, labels)) <= schema.MOST_LABEL
    vocabulary = words_py.ids_by_label(Bytes())
    assert words_py.word_ids(vocabulary, "cat") == [10, 12]
    assert (words_py.bytes_of("▁<0xE7>"), words_py.bytes_of("<s>")) == (b" \xe7", b" ")
    assert words_py.first_word(labels, [2]) == (0, [2])
    assert words_py.first_word(labels, [0, 9]) == (0, [0, 1])
    assert words_py.first_word(labels, [10, 9]) == (0, [10])
    are_words = [True, True, True, False, False, True]
    assert [words_py.is_word(label) for label in labels[:6]] == are_words
    shown = [words_py.without_space(label) for label in labels[:5]]
    assert shown == ["cat", "cat", "Cats", "\n", "▁"]


def test_every_byte_has_the_character_of_gpt2():
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert alphabet == set(words_py.BYTE_OF) and len(set(words_py.BYTE_OF.values())) == 256
    assert (words_py.BYTE_OF["Ġ"], words_py.BYTE_OF["Ċ"], words_py.BYTE_OF["é"]) == (32, 10, 233)


def test_sentencepiece_labels_stay_as_they_are():
    odd = ["<s>", "▁dog", "Ġ", "<0x0A>", "▁▁", "é"]  # with a letter of Maltese
    assert words_py.plain_labels(odd) == odd


@pytest.mark.parametrize(
    "noun, plural",
    [
        ("dog", "dogs"), ("person", "people"), ("bus", "buses"), ("couch", "couches"),
        ("toothbrush", "toothbrushes"), ("sheep", "sheep"), ("wine glass", "wine glasses"),
        ("berry", "berries"), ("toy", "toys"), ("box", "boxes"), ("toy mouse", "toy mice"),
        ("pair of scissors", "pairs of scissors"), ("glass (wine)", "glasses (wine)"),
    ],
)  # fmt: skip
def test_plural(noun, plural):
    assert words_py.plural_of(noun) == plural


def test_of_cocos_categories_two_are_plural_and_one_has_no_article():
    names = words_py.WORDS["categories"]
    assert [name for name in names if words_py.is_plural(name)] == ["skis", "scissors"]
    a = {words_py.with_article(name).split()[0] for name in names}
    assert a == {"a", "an", "skis", "scissors", "broccoli"}
    plural = ["sunglasses", "men", "Cars", "feet", "traffic_lights", "zebras", "tomatoes"]
    one = ["glass", "tennis", "cactus", "lens", "Bus", "dress", "bunch_of_grapes", "fish", "s"]
    assert all(words_py.is_plural(noun) for noun in plural)
    assert not any(words_py.is_plural(noun) for noun in [*one, ""])


def test_what_shares_a_name_with_something_there_is_not_absent():
    there = ["cat", "tv", "cell phone", "person"]
    names = ["Cat", "cat ", "cats", "kitten", "Television", "cell_phone", "women", "dog", "Dogs"]
    assert words_py.not_called(names, there) == ["Dogs", "dog"]
    assert words_py.not_called(names, []) == sorted(names)
