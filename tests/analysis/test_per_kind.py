"""Statistics of answers per kind of prompt."""

import itertools

import numpy as np
import pandas as pd
import pytest

from llava_lens.analysis import findings, per_kind, report, stats
from llava_lens.text import count_of

SHAPES = ["circle", "heart", "star"]


def answers_with(kind: str, graded: list[tuple[str, bool | None]]) -> pd.DataFrame:
    """A table of answers: a truth and whether it was met, an image each."""
    rows = [
        {"image": f"{i}.jpg", "kind": kind, "truth": truth, "right": right}
        for i, (truth, right) in enumerate(graded)
    ]
    constant = {"token": 0, "word_at": 0, "layer": 0, "whole_word": True, "settling_layer": 3}
    return pd.DataFrame(rows).astype({"right": object}).assign(**constant, readable_layer=3)


def test_layers_and_grades_by_hand():
    """Two answers in each of 26 images: layers count as their mean, shares are of images."""
    graded = [("dog", right) for right in [True, None] * 12 + [False] * 2]
    answers = answers_with("colour", graded).assign(settling_layer=range(26))
    answers = pd.concat([answers, answers.assign(settling_layer=range(2, 28))])
    row = per_kind.settling_table(answers).loc["colour"]
    ends = stats.interval(np.arange(1, 27), "median")
    assert row.to_dict() == {"value": 13.5, "low": ends[0], "high": ends[1], "n": 26}
    row = per_kind.grades_table(answers).loc["colour"]
    assert row[["images", "answers", "graded", "not_gradable"]].tolist() == [26, 52, 28, 24]
    low, high = stats.interval(np.arange(14) < 12, "share", 28)
    assert row[["right", "right_low", "right_high"]].tolist() == [12 / 14, low, high]


def test_pieces_of_words_are_left_out_where_the_lens_reads_alone():
    answers = answers_with("colour", [("red", True)] * 4)
    answers = answers.assign(whole_word=[True, False] * 2, handed_over=[1.0, 5.0, 1.0, np.nan])
    lens, route = (
        per_kind.settling_table(answers, column).loc["colour", "n"]
        for column in ("readable_layer", "handed_over")
    )
    assert (lens, route) == (2, 3)


def test_right_and_wrong_answers_apart_by_hand():
    table = answers_with("colour", [("red", number < 3) for number in range(5)])
    table = table.assign(layer=5, readable_layer=range(0, 10, 2), question="?", answer="red")
    table = table.assign(whole_word=table.index > 0, leaves_image=1, handed_over=1, mediated=0)
    others = [0, 0.1, 0.2, 0.3, np.nan]
    table = table.assign(probability=0.9, other_probability=others, grey_probability=0.0)
    run = {"layers": [str(layer) for layer in range(11)]}
    piece = table.tail(1).assign(kind="object", whole_word=False)
    text = report.report_answers(run, pd.concat([table, piece]))
    assert "| objects | wrong | 1 | not known | not known |" in text
    assert "| colours | right | 3 | 3 (2 images) | 0.75 (2 images) |" in text
    assert "| colours | wrong | 2 | 7 (no interval) | 0.60 (1 image) |" in text


def test_controls_by_hand():
    """An image without another has no part in what the image adds: a grey one is no other."""
    constant = {"token": 0, "word_at": 0, "whole_word": True, "kind": "colour"}
    columns = {"image": ["a", "a", "b", "b"], "layer": [0, 1, 0, 1]}
    columns["probability"] = [0.1, 0.9, 0.2, 0.7]
    columns["other_probability"] = [0.1, 0.3, np.nan, np.nan]
    columns["grey_probability"] = [0.0, 0.1, 0.0, 0.2]
    answers = pd.DataFrame(columns).assign(**constant)
    row = per_kind.controls_table(answers).loc["colour"]
    assert row[:4].tolist() == pytest.approx([0.8, 0.3, 0.15, 0.6])
    assert np.isnan(row["low"]) and row[6:].tolist() == [2, 1, 2, 1]
    alone = per_kind.controls_table(answers[answers["image"] == "b"]).loc["colour"]
    assert np.isnan(alone["gain"]) and alone["n_gain"] == 0


def test_rates_stand_beside_chance_and_the_majority_answer():
    run = {"layers": ["emb", "1", "2", "3", "4"], "categories": SHAPES}
    said = {
        "relation": [("left", True)] * 3 + [("above", False), ("above", None)],
        "object": [("heart", True)] * 2,
        "presence": [("yes", True), ("no", False), (None, None)],
        "own": [(None, None)],
    }
    table = pd.concat(itertools.starmap(answers_with, said.items()))
    columns = ["probability", "other_probability", "grey_probability"]
    table = table.assign(**dict.fromkeys(columns, 0.5), question="?", answer="!")
    layers = ["leaves_image", "handed_over", "mediated"]
    table = table.assign(**dict.fromkeys(layers, np.nan))
    text = report._kinds_table(run, table, findings.measured(table))
    few = "(no interval)"
    assert "| the arrangement of objects | 5 | 75% (of 4 graded) | 25% | 60% | 0.50 |" in text
    assert f"| objects | 2 | 100% {few} | 33% | 100% |" in text
    assert "| presence | 3 | 50% (of 2 graded) | 50% | 50% |" in text
    assert "| own prompts | 1 | not known | - | - |" in text
    none = table.assign(right=None)
    text = report._kinds_table(run, none, findings.measured(none))
    assert "| objects | 2 | 2 not gradable | 33% | - |" in text


@pytest.mark.parametrize(
    "n, cells",
    [
        (3, ["100% (of 1 graded)", "4 (no interval)", "4 (1 image)"]),
        (24, ["100% (85% to 100%, of 22 graded)", "4 (4 to 4)", "4 (4 to 4, 22 images)"]),
    ],
)
def test_a_cell_says_of_how_many_it_is_where_the_row_has_more(n, cells):
    """Two of the answers are empty: no word, and no grade."""
    table = answers_with("colour", [("red", None)] * 2 + [("red", True)] * (n - 2))
    columns = ["probability", "other_probability", "grey_probability", "leaves_image"]
    table = table.assign(**dict.fromkeys([*columns, "handed_over", "mediated"], 4))
    table = table.assign(readable_layer=4, whole_word=table["right"].eq(True))
    run = {"layers": ["emb", *map(str, range(1, 6))], "categories": []}
    row = report._kinds_table(run, table, findings.measured(table)).splitlines()[-1].split(" | ")
    assert [row[2], row[8], row[-1].removesuffix(" |")] == cells
    assert row[5:8] == [f"4.00 ({count_of(n - 2, 'image')})"] * 3


def test_on_the_demo_the_image_brings_the_answer(demo_tables):
    """With a grey image, and with another one, the answers about objects and colours are about as
    probable as by chance."""
    ends = per_kind.controls_table(demo_tables.answers).loc[["object", "colour", "relation"]]
    assert (ends["probability"] > 0.9).all() and (ends["low"] > 0.5).all()
    assert (ends[["grey_probability", "other_probability"]] < 0.4).all(axis=None)
