"""Present against absent categories: the confidence in the patches beside the answers."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from llava_lens import kinds
from llava_lens.analysis import curves, findings, presence, report
from tests.analysis.made import GRID, LAYERS, confidence_of, make_record, planted


def test_present_or_absent():
    """The largest over layers and patches; AUROC against scikit-learn; its interval holds it and
    narrows with the number of images."""
    table = confidence_of(planted(24))
    assert table["confidence"].tolist() == [0.5, 2.0**-7] * 24
    value, (low, high) = presence.presence_areas(table)["confidence"]
    assert value == high == 1 and 0.8 < low < 0.9
    # All images have the one and none the other: a constant tells as much.
    assert presence.presence_areas(table)["frequency"][0] == 1
    assert np.isnan(presence.presence_areas(table)["within"][0])
    rng = np.random.default_rng(0)
    columns = {"image": [f"{i // 4}" for i in range(400)], "present": [True, False] * 200}
    columns["category"] = rng.integers(0, 5, 400)
    columns["confidence"] = rng.random(400) + [0.3, 0] * 200
    table = pd.DataFrame(columns).assign(frequency=rng.random(400))
    value, (low, high) = presence.presence_areas(table)["confidence"]
    expected = sklearn.metrics.roc_auc_score(table["present"], table["confidence"])
    assert value == pytest.approx(expected) and low < value < high
    _, (few_low, few_high) = presence.presence_areas(table.head(60))["confidence"]
    assert high - low < few_high - few_low
    assert np.isnan(presence.presence_areas(table.head(44))["confidence"][1]).all()
    one_kind, ends = presence.presence_areas(table[table["present"]])["confidence"]
    assert np.isnan(one_kind) and np.isnan(ends).all()


def test_the_frequency_is_that_of_the_other_half_of_the_images():
    dog, nowhere = [("dog", (0.0, 0.0, 9.0, 9.0))], np.zeros((len(LAYERS), GRID**2))
    records = [
        make_record(str(number), boxes, {"dog": nowhere}, absent=[] if boxes else ["dog"])
        for number, boxes in enumerate([dog, dog, [], dog])
    ]
    assert confidence_of(records)["frequency"].tolist() == [1, 0.5, 1, 0.5]


@pytest.mark.parametrize(
    "sampling, n_images, expected",
    [
        ("random", 24, "Not known within images: too few have absent categories of the same"),
        ("adversarial", 1, "Not known within images: too few"),
        ("adversarial", 24, "Within 24 images, P(word) of what is there is 2 (2 to 2) times that"),
    ],
)
def test_what_is_not_known_is_no_number_of_times(sampling, n_images, expected):
    rows = [
        {"image": f"{image}", "category": name, "present": (image + number) % 2 == 0}
        for image in range(n_images)
        for number, name in enumerate(["dog", "cat"])
    ]
    table = pd.DataFrame(rows).assign(frequency=0.5, said_yes=np.nan)
    table["absent_sampling"] = np.where(table["present"], "", sampling)
    table["confidence"] = np.where(table["present"], 0.5, 0.25)
    (found,) = findings.present_or_absent(table)
    assert expected in found["sentence"]
    assert "known times" not in found["sentence"] and "Theirs" not in found["sentence"]


def test_presence_answers(demo_tables):
    asked = curves.first_tokens(demo_tables.answers).query("kind == 'presence'")
    answers = demo_tables.confident.dropna(subset="said_yes")
    assert len(answers) == len(asked) == 48 and answers["present"].sum() == 24
    right = (answers["said_yes"] == 1) == answers["present"]
    assert right.mean() == pytest.approx(asked["right"].astype(float).mean())
    questions = answers["category"].map(lambda name: kinds.question_of("presence", category=name))
    said = zip(answers["image"], questions, answers["said_yes"] == 1, strict=True)
    yes = asked["answer"].str.lower() == "yes"
    assert sorted(said) == sorted(zip(asked["image"], asked["question"], yes, strict=True))
    rows = answers.groupby("present")["said_yes"].mean()
    row = presence.presence_table(demo_tables.confident).loc["all"]
    assert row["sensitivity"] == pytest.approx(rows[True])
    assert row["specificity"] == pytest.approx(1 - rows[False])
    n = answers.loc[answers["absent_sampling"] == "random", "image"].nunique()
    assert f"| 100% ({n} images) |\n" in report.report_presence(demo_tables.confident)


def test_accuracy_and_auroc_are_given_by_way():
    """By hand: two images, the adversarial category of the second is taken for present."""
    first = [(True, "", 0.9, 1), (False, "random", 0.1, 0), (False, "popular", 0.2, np.nan)]
    second = [(True, "", 0.5, 1), (False, "adversarial", 0.7, 1)]
    rows = [(name, *row) for name in "ac" for row in first]
    rows += [(name, *row) for name in "bd" for row in second]
    columns = ["image", "present", "absent_sampling", "confidence", "said_yes"]
    table = pd.DataFrame(rows, columns=columns).assign(frequency=0.5, category="dog")
    table = presence.presence_table(table)
    by_way = table["confidence"].drop("all").to_dict()
    assert by_way == {"random": 1.0, "popular": 1.0, "adversarial": 0.0}
    assert table["sensitivity_n"].tolist() == [4, 2, 2, 2]
    assert table["specificity_n"].tolist() == [4, 2, 0, 2]
    assert table["sensitivity"].eq(1).all() and table["specificity"]["adversarial"] == 0
    assert table["specificity"]["random"] == 1 and np.isnan(table["specificity"]["popular"])


def test_an_answer_that_is_neither_yes_nor_no_is_no_answer():
    word = {"present": True, "absent_sampling": "", "log2_probs": np.zeros((1, 1), np.float16)}
    said = {"dog": "Yes, a dog.", "cat": "No", "cow": "Perhaps"}
    prompts = [{"kind": "presence", "categories": [n], "answer": text} for n, text in said.items()]
    words = [{"category": category, **word} for category in said]
    table = confidence_of([{"name": "a.jpg", "prompts": prompts, "words": words, "objects": []}])
    assert table["said_yes"].tolist()[:2] == [1, 0] and np.isnan(table["said_yes"][2])
