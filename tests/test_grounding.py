"""lens_tables against annotations: P(word) and boxes, present and absent categories, what the image
brings; and the figures and sentences about these."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from llava_lens import kinds, schema, store
from llava_lens.analysis import answers as analysis_answers
from llava_lens.analysis import curves, grounding, presence, report_image, stats
from llava_lens.data import annotations as data_annotations
from llava_lens.data import images as data_images
from llava_lens.figures import all_images
from llava_lens.model import images, load
from tests.conftest import ROOT

GRID, LAYERS = 6, [0, 2, 5]  # not every layer was read: a layer is no position
RUN = {
    "grid": GRID,
    "image_size": 56,
    "layers": ["emb", "2", "5"],
    "segments": schema.SEGMENTS,
    "tokens": ["▁dog", "▁cat", "s", "<0x0A>", "7"],
}


def make_object(category, box):
    """An annotated object with its box in the crop of 56 pixels."""
    about = {"category": category, "crowd": False, "color": None, "visible": 1.0}
    return {**about, "box": list(box), "share": box[2] * box[3] / 56**2}


def make_record(name, boxes, log2_probs, top_ids=None, absent=(), asked=()):
    """`boxes` are pairs of category and box, `log2_probs` `[layer, patch]` is by category, `asked`
    are pairs of the category of a presence prompt and its answer."""
    words = [
        {
            "category": category,
            "present": category not in absent,
            "token_ids": [0],
            "way": "random" if category in absent else "",
            "log2_probs": np.asarray(values, np.float16),
        }
        for category, values in log2_probs.items()
    ]
    prompts = [
        {"kind": "presence", "categories": [category], "answer": answer}
        for category, answer in asked
    ]
    top_ids = np.zeros((len(LAYERS), GRID**2, 1), np.uint8) if top_ids is None else top_ids
    return {
        "name": name,
        "image_digest": "0",
        "annotations_digest": "0",
        "objects": [make_object(category, box) for category, box in boxes],
        "words": words,
        "prompts": prompts,
        "patches": {"top_ids": top_ids},
    }


def test_auroc_against_scikit_learn():
    rng = np.random.default_rng(0)
    values, inside = rng.integers(0, 9, (4, 50)).astype(float), rng.random(50) < 0.3  # with ties
    assert stats.auroc(values, inside) == pytest.approx(
        [sklearn.metrics.roc_auc_score(inside, row) for row in values]
    )
    assert stats.auroc(-values, inside) == pytest.approx(1 - stats.auroc(values, inside))


def test_patches_of_a_category_by_hand():
    """On a grid of 6, 56 pixels: a patch has 9 1/3. The second dog is too small for half of one."""
    boxes = [
        ("dog", (0.0, 0.0, 19.0, 9.4)),
        ("dog", (30.0, 30.0, 1.0, 1.0)),
        ("cat", (20.0, 20.0, 3.0, 2.0)),
    ]
    record = make_record("a", boxes, {})
    assert np.flatnonzero(grounding.patches_of(record, RUN, "dog")).tolist() == [0, 1, 21]
    assert np.flatnonzero(grounding.patches_of(record, RUN, "cat")).tolist() == [14]


def test_an_exact_half_counts():
    """At LLaVA-1.5's grid of 24 on 336 pixels, at every place along the diagonal."""
    run = {**RUN, "grid": 24, "image_size": 336}
    for at in range(24):
        width, expected = (7.0, [25 * at]) if at == 23 else (21.0, [25 * at, 25 * at + 1])
        record = make_record("a", [("dog", (14.0 * at, 14.0 * at, width, 14.0))], {})
        assert np.flatnonzero(grounding.patches_of(record, run, "dog")).tolist() == expected


def patches_by_points(record, category):
    """The mask of the patches at least half covered, by a hundred points per pixel and side."""
    (box,) = [item["box"] for item in record["objects"] if item["category"] == category]
    fine, along = np.arange(0.5, 5600) / 100, []
    for axis in (0, 1):
        in_box = (fine >= box[axis]) & (fine < box[axis] + box[axis + 2])
        spans = itertools.pairwise(np.linspace(0, 56, GRID + 1))
        along.append([in_box[(fine >= low) & (fine < high)].mean() for low, high in spans])
    return np.outer(along[1], along[0]).ravel() >= 0.5


def test_grounding_against_brute_force():
    rng, records = np.random.default_rng(0), []
    for name in "abcd":
        boxes = [
            (category, list(map(float, (*rng.uniform(0, 25, 2), *rng.uniform(10, 30, 2)))))
            for category in ("dog", "cat")
        ]
        log2_probs = {
            category: rng.integers(-9, 0, (len(LAYERS), GRID**2))
            for category in ("dog", "cat", "horse")
        }
        top_ids = rng.integers(0, 3, (len(LAYERS), GRID**2, 1))
        records.append(make_record(name, boxes, log2_probs, top_ids, absent=["horse"]))
    table = grounding.grounding(records, RUN)
    assert len(table) == 4 * 2 * len(LAYERS) and set(table["category"]) == {"dog", "cat"}
    rows = table.set_index(["image", "category", "layer"])

    def check(row, columns, record, word, position, mask):
        """The two `columns` of `row` are the readings of `record` against `mask`."""
        area = sklearn.metrics.roc_auc_score(mask, word["log2_probs"][position])
        named = (record["patches"]["top_ids"][position, mask, 0] == 0).mean()
        assert row[columns].tolist() == pytest.approx([area, named])

    before, other_image = records[-1], ["auroc_other_image", "named_other_image"]
    absent = ["auroc_absent", "named_absent"]
    for record in records:
        for word in record["words"][:2]:
            for position, layer in enumerate(LAYERS):
                row = rows.loc[record["name"], word["category"], layer]
                at = record, word, position
                mask = patches_by_points(record, word["category"])
                check(row, ["auroc", "named"], *at, mask)
                check(row, absent, record, record["words"][2], position, mask)
                check(row, other_image, *at, patches_by_points(before, word["category"]))
        before = record


def planted(n=40):
    """Images whose patches inside the box have the word's probability, at random places."""
    rng, records, shape = np.random.default_rng(0), [], (len(LAYERS), GRID**2)
    for number in range(n):
        box = (*map(float, rng.integers(0, 3, 2) * 56 / 3), 56 / 3, 56 / 3)
        log2_probs = {"dog": np.full(shape, -9.0), "cat": np.full(shape, -7.0)}
        record = make_record(f"{number}.jpg", [("dog", box)], log2_probs, absent=["cat"])
        inside = grounding.patches_of(record, RUN, "dog")
        assert inside.sum() == 4
        record["words"][0]["log2_probs"][1:, inside] = -1
        records.append(record)
    return records


def test_a_planted_signal_has_auroc_1_and_another_image_s_boxes_a_half():
    table = grounding.grounding(planted(160), RUN)
    means = table.groupby("layer")["auroc"].mean()
    assert means.index.tolist() == LAYERS and means.tolist() == [0.5, 1, 1]
    other = table[table["layer"] == LAYERS[2]]["auroc_other_image"].dropna()
    assert len(other) == 160 and abs(other.mean() - 0.5) < 3 * other.std() / 160**0.5 < 0.06


def test_no_control_without_another_image_or_an_absent_word():
    (record,) = planted(1)
    record["words"] = record["words"][:1]
    table = grounding.grounding([record], RUN)
    assert table.filter(regex="_absent|_other_image").isna().all(axis=None)
    text = "".join(
        report_image.report_grounding(RUN, table, presence.category_confidence([record]))
    )
    assert "no absent words" in text and "another image to compare" in text and "nan" not in text


def test_present_or_absent():
    """The largest over layers and patches; AUROC against scikit-learn; its interval holds it and
    narrows with the number of images."""
    table = presence.category_confidence(planted(24))
    assert table["confidence"].tolist() == [0.5, 2.0**-7] * 24
    value, (low, high) = presence.presence_areas(table)["confidence"]
    assert value == high == 1 and 0.8 < low < 0.9
    # All images have the one and none the other: a constant tells as much.
    assert presence.presence_areas(table)["frequency"][0] == 1
    assert np.isnan(presence.presence_areas(table)["within"][0])
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "image": [f"{i // 4}" for i in range(400)],
            "present": [True, False] * 200,
            "category": rng.integers(0, 5, 400),
            "confidence": rng.random(400) + [0.3, 0] * 200,
            "frequency": rng.random(400),
        }
    )
    value, (low, high) = presence.presence_areas(table)["confidence"]
    expected = sklearn.metrics.roc_auc_score(table["present"], table["confidence"])
    assert value == pytest.approx(expected) and low < value < high
    _, (few_low, few_high) = presence.presence_areas(table.head(60))["confidence"]
    assert high - low < few_high - few_low
    assert np.isnan(presence.presence_areas(table.head(44))["confidence"][1]).all()
    one_kind, ends = presence.presence_areas(table[table["present"]])["confidence"]
    assert np.isnan(one_kind) and np.isnan(ends).all()


def test_the_frequency_is_that_of_the_other_half_of_the_images():
    records = [
        make_record(
            str(number),
            [("dog", (0.0, 0.0, 9.0, 9.0))] if number in (0, 1, 3) else [],
            {"dog": np.zeros((len(LAYERS), GRID**2))},
            absent=[] if number in (0, 1, 3) else ["dog"],
        )
        for number in range(4)
    ]
    assert presence.category_confidence(records)["frequency"].tolist() == [1, 0.5, 1, 0.5]


def test_the_curve_is_scikit_learns():
    """Of the first twenty images the model was asked about the dog, and the opposite it said about
    a cat, which was not watched."""
    rng, records = np.random.default_rng(0), []
    present, exponents = rng.random(60) < 0.5, rng.integers(-8, 1, 60)
    for i in range(60):
        says = ["Yes.", "no"] if i % 3 else ["no", "Yes."]
        records.append(
            make_record(
                str(i),
                [("dog", (0.0, 0.0, 9.0, 9.0))] if present[i] else [],
                {"dog": np.full((len(LAYERS), GRID**2), exponents[i])},
                absent=[] if present[i] else ["dog"],
                asked=zip(("dog", "cat"), says, strict=True) if i < 20 else (),
            )
        )
    table = presence.category_confidence(records)
    assert table["category"].eq("dog").all() and len(table) == 60
    table = table.assign(category=[f"{i % 2}" for i in range(60)])
    figure = all_images.plot_presence(table)
    lines = figure.axes[0].lines
    for line, n in ((lines[0], 60), (lines[1], 20)):
        wrong, right, _ = sklearn.metrics.roc_curve(
            present[:n], 2.0 ** exponents[:n], drop_intermediate=False
        )
        np.testing.assert_allclose(line.get_xydata(), np.transpose([wrong, right]))
    yes, few = np.arange(20) % 3 > 0, present[:20]
    (point,) = (line for line in lines if line.get_marker() == "D")
    np.testing.assert_allclose(point.get_xydata(), [[yes[~few].mean(), yes[few].mean()]])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    area = sklearn.metrics.roc_auc_score(present, 2.0**exponents)
    assert f"AUROC {area:.2f} (" in labels[0] and " to " in labels[0]
    plt.close(figure)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The results of the demo, read in float32."""
    folder, scenes = tmp_path_factory.mktemp("demo"), ROOT / "demo/scenes"
    annotations, _, categories, *_ = data_annotations.read_annotations(scenes)
    settings = load.Settings(str(ROOT / "demo/model"), "float32", "cpu", max_new_tokens=3)
    images.read_images(data_images.find_images(scenes), annotations, categories, folder, settings)
    return store.Results(folder)


@pytest.fixture(scope="module")
def demo_tables(demo):
    return analysis_answers.tabulate(demo.records(), demo.run)


@pytest.fixture(scope="module")
def demo_grounding(demo):
    return grounding.grounding(demo.records(), demo.run)


@pytest.fixture(scope="module")
def demo_confidence(demo):
    return presence.category_confidence(demo.records())


def test_on_the_demo_what_its_training_reported(demo_grounding, demo_confidence):
    """README: AUROC of the own shape word on a thousand scenes; here 24 of them."""
    means = demo_grounding.groupby("layer")[["auroc", "auroc_other_image"]].mean()
    reported = [0.45, 0.45, 0.52, 0.70, 0.97, 0.99, 0.99, 1.00, 1.00]
    assert np.abs(means["auroc"] - reported).max() < 0.08
    assert (means["auroc_other_image"] - 0.5).abs().max() < 0.15
    assert presence.presence_areas(demo_confidence)["within"][0] > 0.95


def test_on_the_demo_the_image_brings_the_answer(demo_tables):
    """With a grey image, and with another one, the answers about objects and colours are about as
    probable as by chance."""
    ends = analysis_answers.controls_table(demo_tables["answers"]).loc[
        ["object", "colour", "relation"]
    ]
    assert (ends["probability"] > 0.9).all() and (ends["low"] > 0.5).all()
    assert (ends[["grey_probability", "other_probability"]] < 0.4).all(axis=None)


def test_one_rare_size_takes_no_band_from_the_others():
    records = planted(14)
    records[0]["objects"].append(make_object("cat", (0.0, 0.0, 3.0, 3.0)))
    records[0]["words"][1]["present"] = True
    table = grounding.grounding(records, RUN)
    assert (table["size"] == "small").any()
    layers = pd.DataFrame({"image": [], "segment": [], "layer": [], "no_word": []})
    figure = all_images.plot_grounding(table, layers, RUN)
    bands = {
        column: sum(c.get_alpha() == 0.2 for c in figure.axes[column].collections)
        for column in (0, 1)
    }
    assert bands[0] == 4  # all, large, both controls
    plt.close(figure)


def test_controls_by_hand():
    answers = pd.DataFrame(
        {
            "token": 0,
            "whole_word": True,
            "kind": "colour",
            "image": ["a", "a", "b", "b"],
            "layer": [0, 1, 0, 1],
            "probability": [0.1, 0.9, 0.2, 0.7],
            "other_probability": [0.1, 0.3, np.nan, np.nan],
            "grey_probability": [0.0, 0.1, 0.0, 0.2],
        }
    )
    row = analysis_answers.controls_table(answers).loc["colour"]
    assert row[:4].tolist() == pytest.approx([0.8, 0.3, 0.15, (0.6 + 0.5) / 2])
    assert np.isnan(row["low"])


def test_presence_answers(demo_tables, demo_confidence):
    asked = curves.first_tokens(demo_tables["answers"]).query("kind == 'presence'")
    answers = presence.presence_answers(demo_confidence)
    assert len(answers) == len(asked) == 48 and answers["present"].sum() == 24
    right = (answers["said_yes"] == 1) == answers["present"]
    assert right.mean() == pytest.approx(asked["right"].astype(float).mean())
    questions = answers["category"].map(lambda name: kinds.question_of("presence", category=name))
    said = zip(answers["image"], questions, answers["said_yes"] == 1, strict=True)
    assert sorted(said) == sorted(
        zip(asked["image"], asked["question"], asked["answer"].str.lower() == "yes", strict=True)
    )
    rows = answers.groupby("present")["said_yes"].mean()
    row = presence.presence_table(demo_confidence).loc["all"]
    assert row["sensitivity"] == pytest.approx(rows[True])
    assert row["specificity"] == pytest.approx(1 - rows[False])


def test_the_sentences_are_those_of_the_tables(demo, demo_grounding, demo_confidence):
    table = demo_grounding
    lines = report_image.report_grounding(demo.run, table, demo_confidence)
    per_image = table.groupby(["image", "layer"])[["auroc", "auroc_absent"]].mean()
    above = (per_image["auroc"] - per_image["auroc_absent"]).groupby("layer").mean()
    assert lines[0].startswith("An object's own word marks its patches more than words of absent")
    assert f"at layer {above.idxmax()}, where the difference is largest" in lines[0]
    assert f"{above.max():.2f} (" in lines[0] and "on 24 images" in lines[0]
    assert lines[1].startswith("An object's word is read where the object is")
    assert lines[3].startswith("The patches tell whether a category is there")
    row = presence.presence_table(demo_confidence).loc["all"]
    assert f"{row['within']:.2f} ({row['within_low']:.2f} to" in lines[3]
    blind = f"how many images of the other half have it, {row['frequency']:.2f}"
    assert blind in lines[3]
    assert f"says yes to {row['sensitivity']:.0%} (" in lines[3]
    unnamed = report_image.report_grounding(demo.run, table.assign(named=0.0), demo_confidence)
    assert "No patch's top-1 token is its object's word, at any layer." in unnamed
    one = table[table["image"] == "scene_00.png"]
    alone = report_image.report_grounding(
        demo.run, one, demo_confidence[demo_confidence["present"]]
    )
    assert "nan" not in " ".join(alone) and len(alone) == 3
    assert alone[0].startswith("Not shown: an object's own word")


def test_categories_by_hand(demo_grounding, demo_tables):
    table = grounding.categories_table(demo_grounding, 4, demo_tables["answers"])
    at_layer = demo_grounding.query("layer == 4 and category == 'star'")
    expected = (at_layer["auroc"] - at_layer["auroc_absent"]).mean()
    assert table.loc["star", "above_absent"] == pytest.approx(expected)
    first = curves.first_tokens(demo_tables["answers"])
    about = first[["star" in categories for categories in first["categories"]]]
    assert table.loc["star", "graded"] == about["right"].notna().sum()
    assert table["above_absent"].is_monotonic_decreasing


def test_the_figures_are_those_of_the_tables(demo, demo_tables, demo_grounding):
    figure = all_images.plot_grounding(demo_grounding, demo_tables["layers"], demo.run)
    labels = [label.get_text() for label in figure.legends[0].get_texts()]
    groups = ["all sizes", "medium", "large", grounding.ABSENT_WORDS, grounding.OTHER_BOXES]
    assert labels == [*groups, "all patches: no word at all"]
    assert [line.get_label() for line in figure.axes[0].lines[:-1]] == groups
    plt.close(figure)
    best = int(curves.per_image(demo_grounding, "auroc").mean().idxmax())
    at_best = demo_grounding[demo_grounding["layer"] == best]["auroc"]
    figure = all_images.plot_gallery(demo, demo_grounding, best)
    titles = [axis.get_title() + axis.get_title(loc="left") for axis in figure.axes]
    assert len(titles) == 6
    assert f"AUROC {at_best.max():.2f}" in titles[0] and f"AUROC {at_best.min():.2f}" in titles[3]
    plt.close(figure)


def test_without_annotations_nothing_is_claimed(results):
    results = store.Results(results)
    table = grounding.grounding(results.records(), results.run)
    confident = presence.category_confidence(results.records())
    assert table.empty and confident.empty
    assert report_image.report_grounding(results.run, table, confident)[0].startswith(
        "Nothing to report"
    )


def test_patches_that_say_no_word(results):
    """By hand, on the image's positions."""
    results = store.Results(results)
    run, record = results.run, results.record()
    tables = analysis_answers.tabulate(results.records(), run)
    rows = tables["layers"].query("image == @record['name'] and segment == 'image'")
    for no_word, top_ids in zip(rows["no_word"], record["patches"]["top_ids"], strict=True):
        labels = [run["tokens"][i] for i in top_ids[:, 0]]
        by_hand = np.mean([not label.replace("▁", "").isalpha() for label in labels])
        assert no_word == pytest.approx(by_hand)
