"""Statistics of answers, a row per kind of prompt."""

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import control_of, first_tokens, whole_words
from llava_lens.analysis.stats import interval
from llava_lens.kinds import KINDS


def by_kind(table: pd.DataFrame, row_of) -> pd.DataFrame:
    """A row per kind of prompt that there is: `row_of(its rows)`."""
    kinds = filter(set(table["kind"]).__contains__, KINDS)
    return pd.DataFrame.from_dict(
        {kind: row_of(table[table["kind"] == kind]) for kind in kinds}, orient="index"
    )


BY_THE_LENS = ("settling_layer", "readable_layer")


def settling_table(answers: pd.DataFrame, column: str = "settling_layer") -> pd.DataFrame:
    """Per kind of prompt how many answers are right, and at which layer they are read.

    - `images`, `answers`, `graded`, `not_gradable` (the truth is known, the answer says nothing
      that can be graded): numbers
    - `right`: the share of the graded, with its interval `right_low` and `right_high`
    - `majority`: the share of the most frequent truth, which always giving that answer would get
    - `median`, `low`, `high`: of `column` over `n_images_with_layer` images, with its `interval`.
      Several answers of an image count as their mean. Where the lens reads it, pieces of words are
      left out; the route, which is read at the output, needs no word
    """

    def row_of(of_kind):
        read = of_kind[of_kind["whole_word"].astype(bool)] if column in BY_THE_LENS else of_kind
        layers = read.groupby("image")[column].mean().dropna().to_numpy(float)
        graded = of_kind.dropna(subset="right").astype({"right": float})
        right = graded.groupby("image")["right"].mean().to_numpy(float)
        low, high = interval(layers, "median")
        right_low, right_high = interval(right, "share", len(graded))
        return {
            "images": of_kind["image"].nunique(),
            "answers": len(of_kind),
            "graded": len(graded),
            "not_gradable": of_kind["truth"].notna().sum() - len(graded),
            "right": right.mean() if len(right) else np.nan,
            "right_low": right_low,
            "right_high": right_high,
            "majority": of_kind["truth"].value_counts(normalize=True).max(),
            "n_images_with_layer": len(layers),
            "median": np.median(layers) if len(layers) else np.nan,
            "low": low,
            "high": high,
        }

    return by_kind(first_tokens(answers), row_of)


def controls_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Per kind of prompt P of the answer's word at the last layer, as means over `images`.

    Columns: `probability`, `other_probability` (with another image; NaN where there is none),
    `grey_probability`, and `gain` (P minus that with another image, without one with a grey one)
    with its `interval` `low` and `high`.
    """
    names = ["probability", "other_probability", "grey_probability", "gain"]

    def row_of(rows):
        of_image = rows.groupby("image")[names].mean().astype(float)
        low, high = interval(of_image["gain"], "change")
        return {**of_image.mean(), "low": low, "high": high, "images": len(of_image)}

    whole = whole_words(answers)
    last = whole[whole["layer"] == whole["layer"].max()]
    table = by_kind(last.assign(gain=last["probability"] - control_of(last, "probability")), row_of)
    return table.reindex(columns=[*names, "low", "high", "images"])
