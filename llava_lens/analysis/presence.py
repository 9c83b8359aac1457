"""Present against absent categories: the confidence in the patches beside the answers."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from llava_lens.analysis.grading import is_right
from llava_lens.analysis.stats import auroc_by_image, interval
from llava_lens.schema import WAYS

GRADES = {True: 1.0, False: 0.0, None: np.nan}


def category_confidence(records: Iterable[dict]) -> pd.DataFrame:
    """A row per image and watched category, with `present`, `way` and

    - `confidence`: the largest P(word) over all layers and patches
    - `frequency`: the share of images that have the category, in the half of the images that this
      one is not in: what can be said blindly. (Over all others a category would be the rarer the
      more it is here.)
    - `said_yes`: the model's answer when asked about the category, 1 for yes and 0 for no; NaN
      where it was not asked, or its answer was neither

    Source of the confidence: a variant of Jiang et al., arXiv 2410.02762, who take no final norm,
    the softmax over fewer tokens, and every piece of a word.
    """
    rows, images_with, n_images = [], (Counter(), Counter()), [0, 0]
    for number, record in enumerate(records):
        half = number % 2
        n_images[half] += 1
        images_with[half].update({item["category"] for item in record["objects"]})
        said_yes = {
            prompt["categories"][0]: GRADES[is_right("presence", prompt["answer"], "yes")]
            for prompt in record["prompts"]
            if prompt["kind"] == "presence" and prompt["categories"]
        }
        for word in record["words"]:
            category = word["category"]
            confidence = 2.0 ** float(word["log2_probs"].max())
            about = record["name"], category, word["present"], word["way"], 1 - half
            rows.append((*about, confidence, said_yes.get(category, np.nan)))
    columns = ["image", "category", "present", "way", "other_half", "confidence", "said_yes"]
    table = pd.DataFrame(rows, columns=columns)
    keys = zip(table["category"], table.pop("other_half"), strict=True)
    frequency = [images_with[half][category] / max(n_images[half], 1) for category, half in keys]
    return table.assign(frequency=np.array(frequency, dtype=float))


def presence_answers(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `category_confidence` that the model was asked about: its answer `said_yes`
    beside the `confidence` read from the patches."""
    return table.dropna(subset="said_yes")


def presence_areas(table: pd.DataFrame) -> dict[str, tuple[float, np.ndarray]]:
    """AUROCs for present against absent categories, from `category_confidence`, each with its
    `interval` `[2]`; NaN where nothing can be compared.

    - `confidence`
    - `frequency`: of the constant per category
    - `within`: of the confidence for one category at a time (images with it against images without
      it): a constant per category has 0.5 there, whatever it is
    """
    present, images = table["present"].to_numpy(bool), pd.factorize(table["image"])[0]
    values = {name: table[name].to_numpy(float) for name in ("confidence", "frequency")}
    rows = len(table)
    if not rows:
        return dict.fromkeys((*values, "within"), (np.nan, np.full(2, np.nan)))
    by_image = {name: auroc_by_image(each, present, images) for name, each in values.items()}
    strata = pd.factorize(table["category"])[0]
    by_image["within"] = auroc_by_image(values["confidence"], present, images, strata)
    return {name: (each.mean(), interval(each, "share", rows)) for name, each in by_image.items()}


def presence_table(table: pd.DataFrame) -> pd.DataFrame:
    """Of `category_confidence` a row for `all` absent categories, and one by the way (WAYS) they
    were drawn, each beside the present categories of the same images.

    Columns: `images`, `absent`, their number, and of each of `presence_areas` the AUROC, `_low` and
    `_high`; of the model's answers `sensitivity` (present categories to which it says yes) and
    `specificity` (absent ones to which it says no), with `_low` and `_high`, and `asked`, their
    number. Source of the ways: POPE (Li et al., arXiv 2305.10355).
    """
    rows = {}
    for way in ("all", *WAYS):
        of_way = table
        if way != "all":
            of_way = table[table["present"] | (table["way"] == way)]
            of_way = of_way[of_way["image"].isin(of_way["image"][~of_way["present"].astype(bool)])]
        if (
            of_way.empty
            or way != "all"
            and (table["way"] == way).sum() == (table["way"] != "").sum()
        ):
            continue  # nothing, or the same once more
        row = {"images": of_way["image"].nunique(), "absent": (~of_way["present"]).sum()}
        measures = presence_areas(of_way)
        asked = presence_answers(of_way)
        for name, present in (("sensitivity", True), ("specificity", False)):
            rows_of = asked[asked["present"] == present]
            right = (rows_of["said_yes"] == present).groupby(rows_of["image"]).mean()
            ends = interval(right, "share", len(rows_of))
            measures[name] = right.mean() if len(right) else np.nan, ends
        for name, (value, (low, high)) in measures.items():
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows[way] = {**row, "asked": len(asked)}
    return pd.DataFrame.from_dict(rows, orient="index")


def roc_curve(table: pd.DataFrame, column: str) -> np.ndarray:
    """Shares `[2, threshold]` of the absent and of the present categories whose `column` reaches a
    threshold, from the highest threshold down."""
    ordered = table.sort_values(column, ascending=False)
    is_last = ordered[column].ne(ordered[column].shift(-1)).to_numpy()  # ties are one step
    present = ordered["present"].to_numpy(bool)
    counts = np.cumsum([~present, present], axis=1)
    return np.insert(counts[:, is_last] / counts[:, -1:], 0, 0, axis=1)
