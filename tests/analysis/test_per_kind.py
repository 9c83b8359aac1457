"""Statistics of answers per kind of prompt."""

import numpy as np
import pandas as pd
import pytest

from llava_lens.analysis import per_kind, report_answers

SHAPES = ["circle", "heart", "star"]


def answers_with(kind: str, graded: list[tuple[str, bool | None]]) -> pd.DataFrame:
    """A table of answers: a truth and whether it was met, an image each."""
    columns = {"image": [f"{i}.jpg" for i in range(len(graded))], "kind": kind}
    columns |= dict(zip(("truth", "right"), map(list, zip(*graded, strict=True)), strict=True))
    constant = {"token": 0, "word_at": 0, "layer": 0, "whole_word": True, "settling_layer": 3}
    return pd.DataFrame(columns).astype({"right": object}).assign(**constant, readable_layer=3)


def test_settling_table():
    """By hand; the interval narrows with the number of images and does not exist below twelve."""
    rng = np.random.default_rng(0)

    def table(n):
        graded = [("dog", right) for right in [True, None] * (n // 2) + [False] * (n % 2)]
        answers = answers_with("colour", graded).assign(settling_layer=rng.integers(2, 9, n))
        return answers, per_kind.settling_table(answers).loc["colour"]

    answers, many = table(400)
    _, few = table(13)
    _, eleven = table(11)
    assert many["median"] == answers["settling_layer"].median() and many["images"] == 400
    assert many["graded"] == 200 and many["right"] == 1
    assert many["low"] <= many["median"] <= many["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]
    assert np.isnan(eleven["low"]) and eleven["graded"] == 6 and eleven["not_gradable"] == 5


def test_pieces_of_words_are_left_out_where_the_lens_reads_alone():
    answers = answers_with("colour", [("red", True)] * 4)
    answers = answers.assign(whole_word=[True, False] * 2, handed_over=[1.0, 5.0, 1.0, np.nan])
    lens, route = (
        per_kind.settling_table(answers, column).loc["colour", "n_images_with_layer"]
        for column in ("readable_layer", "handed_over")
    )
    assert (lens, route) == (2, 3)


def test_right_and_wrong_answers_apart_by_hand():
    image = np.arange(5)
    constant = {"kind": "colour", "whole_word": True, "token": 0, "word_at": 0, "layer": 5}
    columns = {"image": image, "right": image < 3, "readable_layer": 2 * image, "probability": 0.9}
    columns |= {"other_probability": 0.1 * image, "grey_probability": 0.0}
    table = per_kind.right_and_wrong(pd.DataFrame(constant | columns)).set_index("right")
    assert table.loc[True, ["images", "readable_layer"]].tolist() == [3, 2]
    assert table.loc[False, ["images", "readable_layer"]].tolist() == [2, 7]
    assert table["gain"].to_dict() == pytest.approx({True: 0.8, False: 0.55})


def test_controls_by_hand():
    columns = {
        "image": [*"aabb"], "layer": [0, 1, 0, 1], "probability": [0.1, 0.9, 0.2, 0.7],
        "other_probability": [0.1, 0.3, np.nan, np.nan], "grey_probability": [0.0, 0.1, 0.0, 0.2],
    }  # fmt: skip
    constant = {"token": 0, "word_at": 0, "whole_word": True, "kind": "colour"}
    answers = pd.DataFrame(columns).assign(**constant)
    row = per_kind.controls_table(answers).loc["colour"]
    assert row[:4].tolist() == pytest.approx([0.8, 0.3, 0.15, (0.6 + 0.5) / 2])
    assert np.isnan(row["low"])


def test_what_cant_be_graded_is_counted_and_never_wrong():
    graded = [("left", True), ("left", False), ("left", None), ("above", None), (None, None)]
    row = per_kind.settling_table(answers_with("relation", graded)).loc["relation"]
    assert (row["answers"], row["graded"], row["not_gradable"]) == (5, 2, 2)
    assert row["right"] == 0.5 and row["majority"] == 0.75


def test_rates_stand_beside_chance_and_the_majority_answer():
    run = {"layers": ["emb", "1", "2", "3", "4"], "categories": SHAPES}
    relations = [("left", True)] * 3 + [("above", False), ("above", None)]
    graded = {"relation": relations, "object": [("heart", True)] * 2, "own": [(None, None)]}
    graded["presence"] = [("yes", True), ("no", False)]
    table = pd.concat([answers_with(*each) for each in graded.items()])
    columns = ["probability", "other_probability", "grey_probability"]
    table = table.assign(**dict.fromkeys(columns, 0.5), question="?", answer="!")
    text = report_answers.report_answers(run, table)
    few = "(too few images for an interval)"
    assert f"75% {few} of 4, 1 not gradable | 25% | 60% |" in text
    assert f"| objects | 100% {few} of 2 | 33% | 100% |" in text
    assert f"| presence | 50% {few} of 2 | 50% | 50% |" in text
    assert "| own prompts | not known | - | - |" in text


def test_on_the_demo_the_image_brings_the_answer(demo_tables):
    """With a grey image, and with another one, the answers about objects and colours are about as
    probable as by chance."""
    ends = per_kind.controls_table(demo_tables.answers).loc[["object", "colour", "relation"]]
    assert (ends["probability"] > 0.9).all() and (ends["low"] > 0.5).all()
    assert (ends[["grey_probability", "other_probability"]] < 0.4).all(axis=None)
