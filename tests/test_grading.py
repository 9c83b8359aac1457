"""Grading: what an answer says, whether that is right, and what can't be graded."""

import pandas as pd
import pytest

from llava_lens.analysis import grading

SHAPES = ["circle", "heart", "star"]


@pytest.mark.parametrize(
    "kind, answer, truth, right",
    [
        ("presence", "Yes", "yes", True),
        ("presence", "Yes, there is a dog.", "yes", True),
        ("presence", "No, there is no dog.", "yes", False),
        ("presence", "There is no dog in the image.", "no", True),
        ("presence", "There is not a dog.", "no", True),
        ("presence", "Yes. There is no cat, though.", "yes", True),
        ("presence", "A dog", "yes", None),
        ("presence", "Not sure", "yes", False),
        ("presence", "", "no", None),
        ("presence", "Nothing", "no", None),  # no word of the three
        ("colour", "Red", "red", True),
        ("colour", "The car is red.", "red", True),
        ("colour", "Dark blue", "red", False),
        ("colour", "Red and white", "red", None),
        ("colour", "Grey", "gray", True),
        ("colour", "White", "gray", None),
        ("colour", "Gray", "white", None),
        ("colour", "Black", "white", False),
        ("colour", "Silver", "gray", None),
        ("colour", "Teal", "teal", True),
        ("colour", "Colored", "red", None),  # no "red" within a word
        ("relation", "Left", "left", True),
        ("relation", "On the left.", "left", True),
        ("relation", "To the right", "left", False),
        ("relation", "On top", "above", True),
        ("relation", "Over", "above", True),
        ("relation", "It is beneath the dog", "below", True),
        ("relation", "Under", "above", False),
        ("relation", "Above and to the left", "above", None),
        ("relation", "Next to it", "left", None),
        ("object", "Man", "person", True),
        ("object", "Two women", "person", True),
        ("object", "Dogs", "dog", True),
        ("object", "Hot dog", "dog", False),
        ("object", "Hot dogs", "hot dog", True),
        ("object", "A dog and a cat", "dog", True),
        ("object", "A dog and a cat", "cat", False),
        ("object", "Bus stop", "bus", True),
        ("object", "Train tracks", "train", None),
        ("object", "Teddy bear", "bear", False),
        ("object", "Airplane", "airplane", True),
        ("object", "A passenger jet.", "airplane", True),
        ("object", "Baby elephant", "elephant", True),
        ("object", "Motor bike", "motorcycle", True),
        ("object", "Laptop computer", "laptop", True),
        ("object", "Caterpillar", "cat", None),
        ("object", "A building", "bus", None),
        ("object", "circles", "circle", True),
        ("object", "heart", "circle", False),
        ("own", "Temple.", "temple", True),
        ("own", "A temple", "temple", False),
        ("object", "Temple", "temple", True),
        ("description", "A dog", "dog", False),
    ],
)
def test_is_right(kind, answer, truth, right):
    assert grading.is_right(kind, answer, truth, SHAPES) is right


def answers_of(kind: str, graded: list[tuple[str, bool | None]]) -> pd.DataFrame:
    """A table of first answer tokens: a truth and whether it was met, an image each."""
    rows = [
        {"image": f"{i}.jpg", "kind": kind, "truth": truth, "right": right}
        for i, (truth, right) in enumerate(graded)
    ]
    constant = {"token": 0, "layer": 0, "whole_word": True, "settling_layer": 3}
    return pd.DataFrame(rows).astype({"right": object}).assign(**constant, readable_layer=3)
