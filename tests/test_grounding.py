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

GRID, N_LAYERS = 6, 3
RUN = {
    "grid": GRID,
    "layers": ["emb", "1", "2"],
    "segments": lu.SEGMENTS,
    "tokens": ["▁dog", "▁cat", "s", "<0x0A>", "7"],
}


@pytest.fixture(scope="module")
def crop(records):
    """A JPEG of 56 x 56 pixels."""
    return records[0]["crop"]


def make_record(crop, name, boxes, log2_probs, top_ids=None, absent=None):
    """`boxes` by category, in the crop of 56 pixels; `log2_probs` `[layer, patch]` by category."""
    objects = [
        {
            "category": category,
            "box": box,
            "crowd": False,
            "color": None,
            "visible": 1.0,
            "share": box[2] * box[3] / 56**2,
        }
        for category, box in boxes
    ]
    words = [
        {
            "category": category,
            "present": category not in (absent or ()),
            "token_ids": [0],
            "several_tokens": False,
            "log2_probs": values.astype(np.float16),
        }
        for category, values in log2_probs.items()
    ]
    top_ids = np.zeros((N_LAYERS, GRID**2, 1), np.uint8) if top_ids is None else top_ids
    return {
        "name": name,
        "objects": objects,
        "words": words,
        "crop": crop,
        "patches": {"top_ids": top_ids},
    }


def test_auroc_against_scikit_learn():
    rng = np.random.default_rng(0)
    values, inside = rng.integers(0, 9, (4, 50)).astype(float), rng.random(50) < 0.3  # with ties
    assert lu.auroc(values, inside) == pytest.approx(
        [sklearn.metrics.roc_auc_score(inside, row) for row in values]
    )
    assert lu.auroc(-values, inside) == pytest.approx(1 - lu.auroc(values, inside))


def test_patches_of_a_category_by_hand(crop):
    """On a grid of 6, 56 pixels: a patch has 9 1/3."""
    record = make_record(
        crop,
        "a",
        [
            ("dog", (0.0, 0.0, 19.0, 9.4)),
            ("dog", (30.0, 30.0, 1.0, 1.0)),
            ("cat", (20.0, 20.0, 3.0, 2.0)),
        ],
        {},
    )
    assert np.flatnonzero(lu.patches_of(record, RUN, "dog")).tolist() == [
        0,
        1,
        21,
    ]  # the second dog is too small for half a patch
    assert np.flatnonzero(lu.patches_of(record, RUN, "cat")).tolist() == [14]


def test_an_exact_half_counts(records):
    """At LLaVA-1.5's grid of 24 on 336 pixels, at every place along the diagonal."""
    jpeg = io.BytesIO()
    Image.new("RGB", (336, 336)).save(jpeg, "JPEG")
    for at in range(24):
        box = (14.0 * at, 14.0 * at, 7.0, 14.0) if at == 23 else (14.0 * at, 14.0 * at, 21.0, 14.0)
        record = make_record(np.frombuffer(jpeg.getvalue(), np.uint8), "a", [("dog", box)], {})
        expected = [25 * at] if at == 23 else [25 * at, 25 * at + 1]
        assert (
            np.flatnonzero(lu.patches_of(record, {**RUN, "grid": 24}, "dog")).tolist() == expected
        )


def test_grounding_against_brute_force(crop):
    rng, records = np.random.default_rng(0), []
    for name in "abcd":
        boxes = [
            ("dog", (*rng.uniform(0, 25, 2), *rng.uniform(10, 30, 2))),
            ("cat", (*rng.uniform(0, 25, 2), *rng.uniform(10, 30, 2))),
        ]
        boxes = [(category, tuple(map(float, box))) for category, box in boxes]
        log2_probs = {
            category: rng.integers(-9, 0, (N_LAYERS, GRID**2))
            for category in ("dog", "cat", "horse")
        }
        records.append(
            make_record(
                crop,
                name,
                boxes,
                log2_probs,
                rng.integers(0, 3, (N_LAYERS, GRID**2, 1)),
                absent=["horse"],
            )
        )
    table = lu.grounding(records, RUN)
    assert len(table) == 4 * 2 * N_LAYERS and set(table["category"]) == {"dog", "cat"}

    def inside(record, category):
        (box,) = [item["box"] for item in record["objects"] if item["category"] == category]
        fine = np.arange(0.5, 5600) / 100  # a hundred points per pixel along each side
        edges = np.linspace(0, 56, GRID + 1)
        along = [
            [
                (
                    (fine >= low)
                    & (fine < high)
                    & (fine >= box[axis])
                    & (fine < box[axis] + box[axis + 2])
                ).sum()
                / ((fine >= low) & (fine < high)).sum()
                for low, high in itertools.pairwise(edges)
            ]
            for axis in (0, 1)
        ]
        return np.outer(along[1], along[0]).ravel() >= 0.5

    before = None
    for record in records:
        for number, word in enumerate(record["words"][:2]):
            rows = table[
                (table["image"] == record["name"]) & (table["category"] == word["category"])
            ]
            mask = inside(record, word["category"])
            for layer in range(N_LAYERS):
                row = rows[rows["layer"] == layer].iloc[0]
                assert row["auroc"] == pytest.approx(
                    sklearn.metrics.roc_auc_score(mask, word["log2_probs"][layer])
                )
                assert row["said"] == pytest.approx(
                    (record["patches"]["top_ids"][layer, mask, 0] == 0).mean()
                )
                if before:
                    other = inside(before, before["words"][number]["category"])
                    assert row["shuffled"] == pytest.approx(
                        sklearn.metrics.roc_auc_score(other, word["log2_probs"][layer])
                    )
                    assert row["said_shuffled"] == pytest.approx(
                        (record["patches"]["top_ids"][layer, other, 0] == 0).mean()
                    )
                else:
                    assert np.isnan(row["shuffled"])
        before = record


def planted(crop, n=40):
    """Images whose patches inside the box have the word's probability, at random places."""
    rng, records = np.random.default_rng(0), []
    for number in range(n):
        box = (*map(float, rng.integers(0, 3, 2) * 56 / 3), 56 / 3, 56 / 3)
        record = make_record(
            crop,
            f"{number}.jpg",
            [("dog", box)],
            {"dog": np.full((N_LAYERS, GRID**2), -9.0), "cat": np.full((N_LAYERS, GRID**2), -7.0)},
            absent=["cat"],
        )
        inside = lu.patches_of(record, RUN, "dog")
        assert inside.sum() == 4
        record["words"][0]["log2_probs"][1:, inside] = -1
        records.append(record)
    return records


def test_a_planted_signal_has_auroc_1_and_a_shuffled_one_a_half(crop):
    table = lu.grounding(planted(crop), RUN)
    means = table.groupby("layer")[["auroc", "shuffled"]].mean()
    assert means["auroc"].tolist() == [0.5, 1, 1]
    shuffled = table[table["layer"] == 2]["shuffled"].dropna()
    rng = np.random.default_rng(0)
    low, high = np.percentile(
        [rng.choice(shuffled, len(shuffled)).mean() for _ in range(1000)], [0.5, 99.5]
    )
    assert low <= 0.5 <= high and high - low < 0.25


def test_present_or_imagined(crop):
    """The largest over layers and patches; AUROC against scikit-learn; its interval holds it and narrows with the number of images."""
    table = lu.confidence(planted(crop, 8))
    assert table["confidence"].tolist() == [0.5, 2.0**-7] * 8 and lu.confidence_auroc(table) == (
        1,
        1,
        1,
    )
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "image": [f"{i // 4}" for i in range(400)],
            "present": [True, False] * 200,
            "confidence": rng.random(400) + [0.3, 0] * 200,
        }
    )
    value, low, high = lu.confidence_auroc(table)
    assert (
        value == pytest.approx(sklearn.metrics.roc_auc_score(table["present"], table["confidence"]))
        and low < value < high
    )
    _, few_low, few_high = lu.confidence_auroc(table.head(40))
    assert high - low < few_high - few_low
    assert np.isnan(lu.confidence_auroc(table.head(8))[1]) and np.isnan(
        lu.confidence_auroc(table[table["present"]])[0]
    )


def test_the_curve_is_scikit_learns(crop):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "image": [str(i) for i in range(60)],
            "category": "dog",
            "present": rng.random(60) < 0.5,
            "confidence": rng.integers(0, 9, 60) / 9,
        }
    )
    # Of the first twenty images the model was asked about the dog, of all about a cat, which was not watched.
    asked = [
        {
            "image": str(i),
            "question": lu.presence_question(what),
            "answer": "Yes." if i % 3 else "no",
        }
        for i in range(20)
        for what in ("dog", "cat")
    ]
    answers = pd.DataFrame(asked).assign(token=0, layer=0, kind="presence")
    figure = lu.plot_presence(table, answers)
    lines, few = figure.axes[0].lines, table.head(20)
    for line, rows in ((lines[0], table), (lines[2], few)):
        wrong, right, _ = sklearn.metrics.roc_curve(
            rows["present"], rows["confidence"], drop_intermediate=False
        )
        np.testing.assert_allclose(line.get_xydata(), np.transpose([wrong, right]))
    yes = np.arange(20) % 3 > 0
    np.testing.assert_allclose(
        lines[3].get_xydata(), [[yes[~few["present"]].mean(), yes[few["present"]].mean()]]
    )
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert (
        f"{sklearn.metrics.roc_auc_score(few['present'], yes):.2f} (" in labels[3]
        and " to " in labels[3]
    )
    plt.close(figure)


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


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """`(folder, run)` of the demo, read in float32."""
    folder, scenes = tmp_path_factory.mktemp("demo"), ROOT / "demo/scenes"
    annotations, categories, _ = lu.read_annotations(scenes)
    lu.read_images(
        lu.find_images(scenes),
        annotations,
        categories,
        folder,
        str(ROOT / "demo/model"),
        "float32",
        "cpu",
        max_new_tokens=3,
    )
    return folder, lu.load_run(folder)


def test_on_the_demo_what_its_training_reported(demo):
    """README: AUROC of the own shape word 0.45 0.45 0.52 0.70 0.97 0.99 0.99 1.00 1.00 on a thousand scenes; here 24 of them."""
    folder, run = demo
    table = lu.grounding(lu.load_records(folder, run), run)
    means = table.groupby("layer")[["auroc", "shuffled"]].mean()
    assert (
        np.abs(means["auroc"] - [0.45, 0.45, 0.52, 0.70, 0.97, 0.99, 0.99, 1.00, 1.00]).max() < 0.08
    )
    assert (means["shuffled"] - 0.5).abs().max() < 0.15
    assert lu.confidence_auroc(lu.confidence(lu.load_records(folder, run)))[0] > 0.95


def test_on_the_demo_the_image_brings_the_answer(demo):
    """With a grey image the answers about objects and colours are about as probable as by chance."""
    folder, run = demo
    ends = lu.first_tokens_at_end(lu.summarise(lu.load_records(folder, run), run)["answers"])
    assert (ends.loc[["object", "colour", "relation"], "probability"] > 0.9).all()
    assert (ends.loc[["object", "colour", "relation"], "grey_probability"] < 0.4).all()


def test_one_rare_size_takes_no_band_from_the_others(crop):
    records = planted(crop, 8)
    records[0]["objects"].append(
        {
            "category": "cat",
            "box": (0.0, 0.0, 3.0, 3.0),
            "crowd": False,
            "color": None,
            "visible": 1.0,
            "share": 0.003,
        }
    )
    records[0]["words"][1]["present"] = True
    figure = lu.plot_grounding(
        lu.grounding(records, RUN),
        pd.DataFrame({"image": [], "segment": [], "layer": [], "no_word": []}),
        RUN,
    )
    assert len(figure.axes[0].collections) == 3  # all, large, control
    plt.close(figure)


def test_half_of_what_the_image_brings_by_hand():
    probs, grey = (
        [0.1, 0.2, 0.6, 0.5, 0.9],
        [0.1, 0.0, 0.1, 0.3, 0.1],
    )  # brings 0, 0.2, 0.5, 0.2, 0.8
    answers = pd.DataFrame(
        {
            "token": 0,
            "kind": "colour",
            "image": "a",
            "layer": range(5),
            "probability": probs,
            "grey_probability": grey,
        }
    )
    assert lu.first_tokens_at_end(answers).loc["colour"].tolist() == pytest.approx(
        [0.9, 0.1, 0.8, 4]
    )


def test_own_answers(demo):
    folder, run = demo
    answers = lu.summarise(lu.load_records(folder, run), run)["answers"]
    own, asked = (
        lu.own_answers(answers, lu.confidence(lu.load_records(folder, run))),
        lu.per_prompt(answers).query("kind == 'presence'"),
    )
    assert len(own) == len(asked) == 48 and own["present"].sum() == 24
    assert ((own["confidence"] == 1) == own["present"]).mean() == pytest.approx(
        asked["right"].astype(float).mean()
    )
    rows = own.groupby("present")["confidence"].mean()
    assert lu.confidence_auroc(own)[0] == pytest.approx((1 + rows[True] - rows[False]) / 2)


def test_figures_and_sentences(demo):
    folder, run = demo
    tables, table, confident = (
        lu.summarise(lu.load_records(folder, run), run),
        lu.grounding(lu.load_records(folder, run), run),
        lu.confidence(lu.load_records(folder, run)),
    )
    text = lu.report_places(run, tables, table, confident)
    per_layer = table.groupby(["image", "layer"])["auroc"].mean().groupby("layer").mean()
    best = per_layer.idxmax()
    shuffled = table[table["layer"] == best].groupby("image")["shuffled"].mean().mean()
    assert (
        f"best at layer {run['layers'][best]} (" in text
        and f"mean AUROC {per_layer.max():.2f}, and {shuffled:.2f} for the boxes of another image"
        in text
    )
    assert (
        f"tells {confident['present'].sum()} present from {(~confident['present']).sum()} absent"
        in text
        and "Of the 48 that the model was asked about" in text
    )
    one = table[table["image"] == "scene_00.png"].assign(shuffled=np.nan, said_shuffled=np.nan)
    alone = lu.report_places(run, tables, one, confident[confident["present"]])
    assert (
        "nan" not in alone
        and "no control, which takes two images" in alone
        and "Present or imagined" not in alone
    )
    figure = lu.plot_grounding(table, tables["layers"], run)
    labels = [label.get_text() for label in figure.axes[0].get_legend().get_texts()]
    assert labels == ["all sizes", "medium", "large", "control: another image's boxes"]
    plt.close(figure)
    figure = lu.plot_gallery(folder, run, table, best)
    at_best = table[table["layer"] == best]
    titles = [axis.get_title() + axis.get_title(loc="left") for axis in figure.axes]
    assert (
        len(titles) == 6
        and f"AUROC {at_best['auroc'].max():.2f}" in titles[0]
        and f"AUROC {at_best['auroc'].min():.2f}" in titles[3]
    )
    plt.close(figure)


def test_without_annotations_nothing_is_claimed(results):
    run = lu.load_run(results)
    table, confident = (
        lu.grounding(lu.load_records(results, run), run),
        lu.confidence(lu.load_records(results, run)),
    )
    assert table.empty and confident.empty
    assert lu.report_places(run, {}, table, confident).startswith("Nothing to report")


def test_patches_that_say_no_word(results):
    """By hand, on the image's positions."""
    run = lu.load_run(results)
    tables = lu.summarise(lu.load_records(results, run), run)
    record = next(lu.load_records(results, run))
    rows = tables["layers"].query("image == @record['name'] and segment == 'image'")
    for layer, share in enumerate(rows["no_word"]):
        labels = [run["tokens"][i] for i in record["patches"]["top_ids"][layer, :, 0]]
        assert share == pytest.approx(
            np.mean([not label.replace("▁", "").isalpha() for label in labels])
        )
