"""Patches against boxes: where in the image a category's word is read.

Holds P(word) in and outside the boxes with its controls, and the confidence that a category is
there beside the model's answers. Like `lens_tables` it is given records and makes tables; it knows
nothing of sentences and figures.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from lens_format import (
    WAYS,
)
from lens_stats import (
    auroc,
    auroc_by_image,
    interval,
)
from lens_tables import (
    first_tokens,
    is_right,
    layer_curve,
    layer_numbers,
    per_image,
    per_layer,
)
from lens_utils import (
    patch_coverage,
)

__all__ = [
    "SIZES", "ALL_SIZES", "OTHER_BOXES", "ABSENT_WORDS", "NO_WORD", "word_probability",
    "patches_of", "grounding", "grounding_curves", "best_layer", "cases", "best_and_worst",
    "categories_table", "category_confidence", "presence_answers", "presence_areas",
    "presence_table", "roc_curve",
]  # fmt: skip

# ---- Against the annotations -------------------------------------------------------------------

# Of an object: below 1 %, below 10 %, and from 10 % of the crop.
SIZES = ["small", "medium", "large"]
# The other groups of `grounding_curves`.
ALL_SIZES = "all sizes"
ABSENT_WORDS = "control: absent words, same boxes"
OTHER_BOXES = "control: own word, another image's boxes"
NO_WORD = "all patches: no word at all"


def word_probability(record: dict, category: str) -> np.ndarray:
    """P(word) `[layer, patch]` of a watched category, from the full distribution."""
    word = next(word for word in record["words"] if word["category"] == category)
    return 2.0 ** word["log2_probs"].astype(float)


def patches_of(record: dict, run: dict, category: str) -> np.ndarray:
    """Mask `[grid * grid]` of a category's patches: those at least half covered by one of its boxes
    (crowd regions too); a box too small for that gets the patch that it overlaps most."""
    coverages = [
        patch_coverage(item["box"], run["grid"], run["image_size"])
        for item in record["objects"]
        if item["category"] == category
    ]
    # The small number is for rounding: an exact half counts.
    masks = [cover >= min(0.5, cover.max()) - 1e-9 for cover in coverages if cover.max() > 0]
    return np.any(masks, axis=0)


READ = ["auroc", "named"]  # of a word against a mask


def grounding(records: Iterable[dict], run: dict) -> pd.DataFrame:
    """How well P(word) tells a category's patches (`patches_of`) from the others: a row per image,
    category that it has, and layer. A category that fills the crop is left out.

    - `size` (SIZES) of its largest object
    - `auroc`: of P(word) in its patches against P(word) in the others
    - `named`: the share of its patches whose top-1 token is its word
    - `auroc_absent`, `named_absent`: the main control, the word of a category that the image does
      not have, in the same patches; NaN where none is watched. What it has above 0.5 any word would
      have on any object. (One for each, in turn, not their mean, so that where the two are alike
      their difference is symmetric, as tests of it suppose.)
    - `auroc_other_image`, `named_other_image`: the control of places, the own word against the
      boxes of the same category in the image before that has it, for the first in the last one;
      NaN where no other image has it. What it has above 0.5 comes from usual places

    Sources: AUROC against boxes is this project's; patches that decode to the word of their object:
    Neo et al., arXiv 2410.07149.
    """
    names = [f"{name}{control}" for control in ("", "_absent", "_other_image") for name in READ]
    rows, masks, firsts = [], {}, {}
    for record in records:
        absent = [word for word in record["words"] if not word["present"]]
        present = [word for word in record["words"] if word["present"]]
        for number, word in enumerate(present):
            category, inside = word["category"], patches_of(record, run, word["category"])
            if inside.all():
                continue
            share = max(o["share"] for o in record["objects"] if o["category"] == category)
            size = SIZES[int(share >= 0.01) + int(share >= 0.1)]
            about = {"image": record["name"], "category": category, "size": size}
            top1 = record["patches"]["top_ids"][:, :, 0]
            control = other = [np.full(len(run["layers"]), np.nan)] * 2
            if absent:
                control = _against(absent[number % len(absent)], top1, inside)
            if category in masks:
                other = _against(word, top1, masks[category])
            else:
                firsts[category] = len(rows), word, top1
            values = [*_against(word, top1, inside), *control, *other]
            rows.append((about, dict(zip(names, values, strict=True))))
            masks[category] = inside
    for category, (row, word, top1) in firsts.items():
        if sum(about["category"] == category for about, _ in rows) > 1:
            rows[row][1].update(zip(names[4:], _against(word, top1, masks[category]), strict=True))
    if rows:
        return per_layer(rows, layer_numbers(run))
    return pd.DataFrame(columns=["image", "category", "size", "layer", *names])


def _against(word: dict, top1: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of P(word) in the patches of `mask`, and their share named (`top1` is a token of the
    word), `[layer]`."""
    is_named = np.isin(top1, word["token_ids"])
    return auroc(word["log2_probs"], mask), is_named[:, mask].mean(axis=1)


def grounding_curves(table: pd.DataFrame, layers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`auroc` and `named` of `grounding` as curves (`layer_curve`) by `size`.

    Groups: SIZES, ALL_SIZES, the controls ABSENT_WORDS and OTHER_BOXES and, among `named`, NO_WORD:
    the share of all patches that decode to no word, from `layers` of `tabulate`.
    """
    groups = [table, table.assign(size=ALL_SIZES)]
    for name, control in ((ABSENT_WORDS, "absent"), (OTHER_BOXES, "other_image")):
        of_control = {column: table[f"{column}_{control}"] for column in READ}
        groups.append(table.assign(size=name, **of_control).dropna(subset="auroc"))
    patches = layers[layers["segment"] == "image"]
    no_word = patches.assign(size=NO_WORD, named=patches["no_word"])
    rows = pd.concat(groups)
    return {
        "auroc": layer_curve(rows, "auroc", "size"),
        "named": layer_curve(pd.concat([rows, no_word]), "named", "size"),
    }


def categories_table(table: pd.DataFrame, layer: int, answers: pd.DataFrame) -> pd.DataFrame:
    """A row per category of `grounding` at a layer number, from the largest to the smallest AUROC
    above the absent words': `images`, `auroc`, `above_absent`, and of the graded answers to
    questions about it `graded`, their number, and `right`, the share."""
    at_layer = table[table["layer"] == layer]
    at_layer = at_layer.assign(above_absent=at_layer["auroc"] - at_layer["auroc_absent"])
    by_category = at_layer.groupby("category")
    rows = by_category[["auroc", "above_absent"]].mean()
    rows.insert(0, "images", by_category["image"].nunique())
    first = first_tokens(answers).dropna(subset="right")
    about = first.explode("categories").astype({"right": float}).groupby("categories")["right"]
    rows["graded"] = about.size().reindex(rows.index).fillna(0).astype(int)
    rows["right"] = about.mean().reindex(rows.index)
    return rows.sort_values("above_absent", ascending=False, kind="stable")


def best_layer(grounded: pd.DataFrame) -> int:
    """The layer at which AUROCs of own words are furthest above those of absent words."""
    above = grounded.assign(above=grounded["auroc"] - grounded["auroc_absent"])
    return int(per_image(above, "above").mean().fillna(0).idxmax())


def cases(grounded: pd.DataFrame, answers: pd.DataFrame, n: int = 3) -> list[str]:
    """Names of images worth a look: of the `n` best and the `n` worst cases at the best layer, and
    of the first `n` wrong answers (`answers` of `tabulate`)."""
    first = first_tokens(answers)
    names = first.loc[first["right"].eq(False), "image"].drop_duplicates().head(n).tolist()
    if not grounded.empty:
        best_and_worst_cases = best_and_worst(grounded, best_layer(grounded), n)
        names += pd.concat(best_and_worst_cases)["image"].tolist()
    return list(dict.fromkeys(names))


def best_and_worst(table: pd.DataFrame, layer: int, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `n` rows of `grounding` at a layer with the largest AUROC and the `n` with the smallest,
    each of another image."""
    ordered = table[table["layer"] == layer].sort_values("auroc", ascending=False, kind="stable")
    best = ordered.drop_duplicates("image").head(n)
    return best, ordered.drop(best.index)[::-1].drop_duplicates("image").head(n)


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
