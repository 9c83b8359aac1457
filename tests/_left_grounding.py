"""Where the image is seen: P(word) against boxes, present and absent categories, and the grey-image control."""

import io
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch
from PIL import Image

import lens_utils as lu
from conftest import PROMPTS, ROOT

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
    assert lu.plural_of(noun) == plural


def test_words_to_watch(llava):
    tokenizer, categories = llava[1].tokenizer, ["cat", "dog", "hot dog", "zebra", "left"]
    objects = [
        {"category": "dog", "visible": 1.0},
        {"category": "dog", "visible": 0.4},
        {"category": "zebra", "visible": 0.0},
    ]
    words = lu.category_words(tokenizer, objects, categories, (), 0)
    assert words == lu.category_words(tokenizer, objects, categories, (), 0)
    # What the model is asked about is watched.
    for category in ("cat", "left"):
        asked = [{"question": lu.presence_question(category)}]
        assert all(
            lu.category_words(tokenizer, objects, categories, asked, seed)[1]["category"]
            == category
            for seed in range(5)
        )
    # Categories that begin with one token: the one would say nothing about the other.
    both = lu.category_words(tokenizer, [{"category": "dog", "visible": 1.0}], ["dog", "dog house"])
    assert [word["category"] for word in both] == ["dog"]
    assert (
        [word["present"] for word in words] == [True, False]
        and words[0]["category"] == "dog"
        and words[1]["category"] in ("cat", "hot dog", "left")
        and words[0]["plural"] == "dogs"
    )
    assert (
        words[0]["token_ids"] == [tokenizer.convert_tokens_to_ids("▁dog")]
        and not words[0]["several_tokens"]
    )
    (zebra,) = [
        word
        for word in lu.category_words(tokenizer, [{"category": "zebra", "visible": 1.0}], ["zebra"])
    ]
    assert zebra["several_tokens"] and zebra["token_ids"] == [
        tokenizer("a zebra", add_special_tokens=False)["input_ids"][1]
    ]
    assert lu.category_words(tokenizer, [], categories) == []


def test_the_words_are_read_from_the_full_distribution(llava, photographs):
    """Against the softmax of the lens at every patch and layer."""
    bridge, processor = llava
    image = lu.open_image(photographs / "china.jpg")
    words = [
        {"category": "x", "present": True, "token_ids": [7, 300], "several_tokens": False},
        {"category": "y", "present": False, "token_ids": [11], "several_tokens": True},
    ]
    record, _ = lu.read_image(
        bridge, processor, image, PROMPTS[:1], top_k=1, max_new_tokens=1, words=words
    )
    pixel_values, (ids,) = lu.encode(processor, image, [PROMPTS[0]["question"]])
    with torch.inference_mode():
        residuals, _ = lu.run_and_capture(
            bridge, ids, None, pixel_values=pixel_values, use_cache=False
        )
        for layer, resid in enumerate(residuals):
            p = (
                lu.lens_logits(bridge, resid[ids == bridge.original_model.config.image_token_id])
                .double()
                .softmax(-1)
            )
            for word, kept in zip(words, record["words"]):
                np.testing.assert_allclose(
                    kept["log2_probs"][layer], p[:, word["token_ids"]].sum(-1).log2(), atol=0.02
                )
    assert [word["category"] for word in record["words"]] == ["x", "y"] and "words" not in record[
        "patches"
    ]


def test_the_grey_control_is_a_run_on_a_grey_image(llava, records):
    """Each prompt read from the one prefix equals a whole run on a grey image, whatever was asked before it."""
    bridge, processor = llava
    grey = lu.open_image(ROOT / "demo/scenes/scene_00.png").resize((90, 70))
    grey.paste((128, 128, 128), (0, 0, 90, 70))
    for record in records[:2]:
        for prompt in record["prompts"]:
            pixel_values, (ids,) = lu.encode(processor, grey, [prompt["question"]])
            with torch.inference_mode():
                residuals, _ = lu.run_and_capture(
                    bridge, ids, None, pixel_values=pixel_values, use_cache=False
                )
                p = torch.stack(
                    [lu.lens_logits(bridge, resid[-1:]).softmax(-1)[0] for resid in residuals]
                )
            target = p[:, prompt["answer_ids"][0]]
            np.testing.assert_allclose(prompt["grey"]["target_prob"], target, atol=1e-5)
            assert (
                np.abs(
                    prompt["grey"]["target_rank"].astype(int)
                    - ((p > target[:, None]).sum(-1) + 1).numpy()
                ).max()
                <= 1
            )
