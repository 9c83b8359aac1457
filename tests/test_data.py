"""lens_data: finding data, opening images, the crop, prompts, words to watch."""


import pytest

from llava_lens import kinds as kinds_py
from llava_lens import words as words_py
from llava_lens.data import prompts as data_prompts
from llava_lens.data import watched


def item(category, box, crowd=False, color=None, visible=1.0, crop=336):
    return {
        "category": category,
        "box": box,
        "crowd": crowd,
        "color": color,
        "visible": visible,
        "share": box[2] * box[3] / crop**2,
    }


def kinds(prompts):
    return {
        (prompt["kind"], prompt["question"].split("\n")[0], prompt["truth"]) for prompt in prompts
    }


def test_prompts_of_all_kinds():
    objects = [item("dog", (0, 100, 150, 150), color="brown"), item("cat", (200, 110, 60, 60))]
    prompts = kinds(data_prompts.make_prompts(objects, ["cat", "dog", "umbrella"], per_kind=9))
    assert prompts == {
        ("object", "What is the main object in the image?", "dog"),
        ("presence", "Is there a dog in the image?", "yes"),
        ("presence", "Is there a cat in the image?", "yes"),
        ("presence", "Is there an umbrella in the image?", "no"),
        ("colour", "What color is the dog?", "brown"),
        ("colour", "What color is the cat?", None),
        ("relation", "Where is the dog relative to the cat: left, right, above or below?", "left"),
        ("relation", "Where is the cat relative to the dog: left, right, above or below?", "right"),
        ("description", "Describe the image.", None),
    }


def test_every_prompt_has_the_categories_that_it_is_about():
    objects = [item("dog", (0, 100, 150, 150), color="brown"), item("cat", (200, 110, 60, 60))]
    prompts = data_prompts.make_prompts(objects, ["cat", "dog", "umbrella"], per_kind=9)
    about = {(p["kind"], p["truth"], *p["categories"]) for p in prompts}
    assert about == {
        ("object", "dog", "dog"),
        ("presence", "yes", "dog"),
        ("presence", "yes", "cat"),
        ("presence", "no", "umbrella"),
        ("colour", "brown", "dog"),
        ("colour", None, "cat"),
        ("relation", "left", "dog", "cat"),
        ("relation", "right", "cat", "dog"),
        ("description", None),
    }
    unknown = [
        *data_prompts.make_prompts([], []),
        *data_prompts.as_prompts(["a", {"question": "b", "truth": "dog"}]),
    ]
    assert all(p["categories"] == [] and list(p) == list(prompts[0]) for p in unknown)


def test_prompts_are_capped_and_seeded():
    objects = [item(name, (100 * i, 0, 50, 50)) for i, name in enumerate("abc")]
    prompts = data_prompts.make_prompts(objects, list("abcdef"), seed="s")
    assert [prompt["kind"] for prompt in prompts] == [
        "presence",
        "presence",
        "colour",
        "relation",
        "description",
    ]
    assert prompts == data_prompts.make_prompts(objects, list("abcdef"), seed="s")
    assert any(
        prompts != data_prompts.make_prompts(objects, list("abcdef"), seed=seed)
        for seed in range(9)
    )


def test_all_but_the_description_ask_for_a_short_answer():
    objects = [item("dog", (0, 100, 150, 150)), item("cat", (200, 110, 60, 60))]
    for prompt in data_prompts.make_prompts(objects, ["dog", "cat"]):
        assert prompt["question"].endswith(kinds_py.SHORT_ANSWER) == (
            prompt["kind"] != "description"
        )


@pytest.mark.parametrize(
    "other",
    [
        item("dog", (200, 100, 20, 20)),
        item("dog", (200, 100, 90, 90), crowd=True),
        item("dog", (200, 100, 9, 9), visible=0.1),
    ],
)
def test_what_occurs_twice_is_asked_neither_colour_nor_relation(other):
    objects = [item("dog", (0, 100, 150, 150)), other, item("cat", (300, 0, 30, 30), visible=0.2)]
    assert {kind for kind, _, _ in kinds(data_prompts.make_prompts(objects, ["dog", "cat"]))} == {
        "object",
        "presence",
        "description",
    }


def test_what_is_outside_the_crop_is_neither_present_nor_absent():
    objects = [item("dog", (0, 100, 150, 150)), item("cat", (330, 0, 6, 60), visible=0.1)]
    questions = [
        prompt["question"]
        for prompt in data_prompts.make_prompts(objects, ["dog", "cat"], per_kind=9)
    ]
    assert not any("cat" in question for question in questions)


def test_no_main_object_where_none_is_clearly_the_largest():
    objects = [item("dog", (0, 0, 100, 100)), item("cat", (150, 0, 90, 90))]
    assert "object" not in {
        prompt["kind"] for prompt in data_prompts.make_prompts(objects, ["dog", "cat"])
    }


def test_prompts_without_annotations():
    assert [prompt["kind"] for prompt in data_prompts.make_prompts([], [])] == [
        "object",
        "description",
    ]


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
        (["What is <image>?"], "own <image>"),
        ("What is it?", "it must be a list of questions"),
        ([{"question": None}], "Prompt 0 is empty"),
        ([None], "Prompt 0 is empty or no text"),
        ([7], "no text"),
        ([{"question": "How many?", "truth": 3}], "has the truth 3"),
        ([{"question": "a", "answer": "b"}], "has 'answer': only question, kind and truth"),
        ([{"question": "a", "kind": "color"}], "kind 'color'"),
    ],
)
def test_bad_prompts(prompts, message):
    with pytest.raises(ValueError, match=message):
        data_prompts.as_prompts(prompts)


@pytest.mark.parametrize(
    "noun, plural",
    [
        ("dog", "dogs"),
        ("person", "people"),
        ("bus", "buses"),
        ("couch", "couches"),
        ("toothbrush", "toothbrushes"),
        ("sheep", "sheep"),
        ("wine glass", "wine glasses"),
        ("berry", "berries"),
        ("toy", "toys"),
        ("box", "boxes"),
    ],
)
def test_plural(noun, plural):
    assert words_py.plural_of(noun) == plural


def test_words_to_watch(llava):
    tokenizer, categories = llava[1].tokenizer, ["cat", "dog", "hot dog", "zebra", "left"]
    objects = [
        {"category": "dog", "visible": 1.0},
        {"category": "dog", "visible": 0.4},
        {"category": "zebra", "visible": 0.0},
    ]
    words = watched.words_to_watch(tokenizer, objects, categories, (), 0)
    assert words == watched.words_to_watch(tokenizer, objects, categories, (), 0)
    # What the model is asked about is watched.
    for category in ("cat", "left"):
        asked = [{"kind": "presence", "categories": [category], "way": "random"}]
        assert all(
            watched.words_to_watch(tokenizer, objects, categories, asked, seed)[1]["category"]
            == category
            for seed in range(5)
        )
    assert [word["present"] for word in words] == [True, False]
    assert words[0]["category"] == "dog" and words[1]["category"] in ("cat", "left")
    assert words[0]["token_ids"] == [tokenizer.convert_tokens_to_ids("▁dog")]
    assert watched.words_to_watch(tokenizer, [], categories) == []
