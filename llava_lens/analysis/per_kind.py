"""Statistics of answers, a row per kind of prompt."""

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import first_tokens, split_by_kind, whole_words
from llava_lens.analysis.stats import interval


def by_kind(table: pd.DataFrame, row_of) -> pd.DataFrame:
    """A row per kind of prompt that there is: `row_of(its rows)`."""
    rows = {kind: row_of(of_kind) for kind, of_kind in split_by_kind(table).items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def grades_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Per kind of prompt how many answers are right.

    - `images`, `answers`, `graded`, `not_gradable` (the truth is known, the answer says nothing
      that can be graded): numbers
    - `right`: the share of the graded, with its interval `right_low` and `right_high`
    - `majority`: the share of the most frequent truth, which always giving that answer would get
    """

    def row_of(of_kind):
        graded = of_kind.dropna(subset="right").astype({"right": float})
        right = graded.groupby("image")["right"].mean().to_numpy(float)
        low, high = interval(right, "share", len(graded))
        return {
            "images": of_kind["image"].nunique(),
            "answers": len(of_kind),
            "graded": len(graded),
            "not_gradable": of_kind["truth"].notna().sum() - len(graded),
            "right": right.mean() if len(right) else np.nan,
            "right_low": low,
            "right_high": high,
            "majority": of_kind["truth"].value_counts(normalize=True).max(),
        }

    return by_kind(first_tokens(answers), row_of)


BY_THE_LENS = ("settling_layer", "readable_layer")


def settling_table(answers: pd.DataFrame, column: str = "settling_layer") -> pd.DataFrame:
    """Per kind of prompt the median `value` of `column` over `n` images, with its `interval` `low`
    and `high`.

    Several answers of an image count as their mean. Where the lens reads it, pieces of words are
    left out; the route, which is read at the output, needs no word.
    """

    def row_of(of_kind):
        read = of_kind[of_kind["whole_word"].astype(bool)] if column in BY_THE_LENS else of_kind
        layers = read.groupby("image")[column].mean().dropna().to_numpy(float)
        low, high = interval(layers, "median")
        median = np.median(layers) if len(layers) else np.nan
        return {"value": median, "low": low, "high": high, "n": len(layers)}

    return by_kind(first_tokens(answers), row_of)


def controls_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Per kind of prompt P of the answer's word at the last layer, as means over images.

    Columns: `probability`, `other_probability` (with another image), `grey_probability`, and `gain`
    (P minus that with another image) with its `interval` `low` and `high`. `n_...` is the number of
    images behind each: not all have another.
    """
    names = ["probability", "other_probability", "grey_probability", "gain"]

    def row_of(rows):
        of_image = rows.groupby("image")[names].mean().astype(float)
        low, high = interval(of_image["gain"].dropna(), "change")
        counts = of_image.count().add_prefix("n_")
        return {**of_image.mean(), "low": low, "high": high, **counts}

    whole = whole_words(answers)
    last = whole[whole["layer"] == whole["layer"].max()]
    table = by_kind(last.assign(gain=last["probability"] - last["other_probability"]), row_of)
    return table.reindex(columns=[*names, "low", "high", *(f"n_{name}" for name in names)])
