"""Patches against boxes: where in the image a category's word is read."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import first_tokens, layer_curve, per_image, per_layer
from llava_lens.analysis.stats import auroc
from llava_lens.data.crop import patch_coverage
from llava_lens.schema import layer_numbers

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
    """Mask `[grid * grid]` of a category's patches, at least half covered by one of its boxes.

    A box too small for that gets the patch that it overlaps most. Which patches of a crowd region
    hold the category is not known, so a category with one has no patches in the image.
    """
    objects = [item for item in record["objects"] if item["category"] == category]
    if any(item["crowd"] for item in objects):
        return np.zeros(run["grid"] ** 2, bool)
    coverages = [patch_coverage(item["box"], run["grid"], run["image_size"]) for item in objects]
    # The small number is for rounding: an exact half counts.
    masks = [cover >= min(0.5, cover.max()) - 1e-9 for cover in coverages if cover.max() > 0]
    return np.any(masks, axis=0)


READ = ["auroc", "named"]  # of a word against a mask


def grounding(records: Iterable[dict], run: dict) -> pd.DataFrame:
    """How well P(word) tells a category's patches (`patches_of`) from the others: a row per image,
    category that it has, and layer. A category that fills the crop, or has no patches, is left
    out.

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
            if inside.all() or not inside.any():
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
