"""Patches against boxes: where in the image a category's word is read."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import first_tokens, per_image, repeat_over_layers
from llava_lens.analysis.stats import auroc
from llava_lens.data.crop import patch_coverage
from llava_lens.schema import NEAREST_EVERY, layer_numbers

# Of an object: below 1 %, below 10 %, and from 10 % of the crop.
SIZES = ["small", "medium", "large"]


def word_probability(record: dict, category: str) -> np.ndarray:
    """P(word) `[layer, patch]` of a watched category, from the full distribution."""
    word = next(word for word in record["words"] if word["category"] == category)
    return 2.0 ** word["log2_probs"].astype(float)


def patches_of(record: dict, run: dict, category: str) -> np.ndarray:
    """Mask `[patch]` of a category's patches, at least half covered by one of its boxes; a box too
    small for that has the patch that it overlaps most. A category with a crowd has none."""
    objects = [item for item in record["objects"] if item["category"] == category]
    if any(item["crowd"] for item in objects):
        return np.zeros(math.prod(run["grid"]), bool)
    coverages = [patch_coverage(item["box"], run) for item in objects]
    # The small number is for rounding: an exact half counts.
    masks = [cover >= min(0.5, cover.max()) - 1e-9 for cover in coverages if cover.max() > 0]
    return np.any(masks, axis=0)


def sink_patches(record: dict) -> np.ndarray | None:
    """Mask `[patch]` of the sinks: the norm of their state is above the mean of the image's patches
    by two standard deviations at more than half of the layers. None where norms were not saved.
    Sources: Darcet et al., arXiv 2309.16588; Fan et al., arXiv 2603.00510."""
    if "norms" not in record["patches"]:
        return None
    norms = record["patches"]["norms"].astype(float)  # [layer, patch]
    bound = norms.mean(axis=1, keepdims=True) + 2 * norms.std(axis=1, keepdims=True)
    return (norms > bound).mean(axis=0) > 0.5


MEASURES = ["auroc", "top1_hit_rate"]  # of a word against a mask
# The end of the names of each lens's columns, and what it reads of a word.
LENSES = {"logit lens": "", "embedding lens": "_embedding"}
VALUES = {"": "log2_probs", "_embedding": "cosines"}
CONTROLS = {"_absent": ", absent words", "_other_image": ", another image's boxes"}
COMPARED_WITH = {  # what would be as high by itself: columns of `Grounding.table`, own and control
    "absent words in the same boxes": ("auroc", "auroc_absent"),
    "the words of other objects of the image": ("auroc_objects", "auroc_objects_swapped"),
    "usual places": ("auroc_places", "auroc_places_swapped"),
}


class Case(NamedTuple):
    """A category that an image has: what is read, and where."""

    image: str
    category: str
    size: str
    word: dict  # of the record's words
    absent: dict | None  # an absent category's
    top1: dict[str, np.ndarray]  # [layer or nearest_layer, patch] by lens, of VALUES
    inside: np.ndarray  # mask [patch]
    sinks: np.ndarray | None  # mask [patch]


def cases_of(record: dict, run: dict) -> list[Case]:
    """The cases of one record. A category that fills the crop, or has no patches, is none. Each
    gets one absent word, in turn: the mean of several would vary less than the own word does, and
    tests suppose a symmetric difference."""
    absent = [word for word in record["words"] if not word["present"]] or [None]
    present = [word for word in record["words"] if word["present"]]
    patches, sinks, found = record["patches"], sink_patches(record), []
    ids = {"": patches["top_ids"], "_embedding": patches.get("embedding_ids")}
    top1 = {lens: of_lens[:, :, 0] for lens, of_lens in ids.items() if of_lens is not None}
    for number, word in enumerate(present):
        category, inside = word["category"], patches_of(record, run, word["category"])
        share = max(item["share"] for item in record["objects"] if item["category"] == category)
        size = SIZES[int(share >= 0.01) + int(share >= 0.1)]
        of_absent = absent[number % len(absent)]
        if inside.any() and not inside.all():
            case = Case(record["name"], category, size, word, of_absent, top1, inside, sinks)
            found.append(case)
    return found


class Grounding:
    """Reads cases, one record after the other, and keeps of most only numbers.

    The control of places reads a word against the patches of its category in the last earlier image
    that has it. The first image of a category waits for the last one's patches.
    """

    def __init__(self, run: dict):
        self.run, self.rows = run, []
        self.masks, self.first_cases = {}, {}  # by category: latest mask, first (row, case)

    def add(self, record: dict) -> None:
        cases = cases_of(record, self.run)
        for number, case in enumerate(cases):
            nowhere, others = np.zeros_like(case.inside), cases[:number] + cases[number + 1 :]
            beside = [other.word for other in others] or [case.absent]
            of_others = np.any([nowhere, *(other.inside for other in others)], axis=0)
            mask = self.masks.get(case.category, nowhere)
            if case.category not in self.masks:
                # Copies, since `top1` has views of all top-k tokens of the record.
                copies = {lens: ids.copy() for lens, ids in case.top1.items()}
                waiting = case._replace(top1=copies)
                self.first_cases[case.category] = len(self.rows), waiting, beside, of_others
            self.masks[case.category] = case.inside
            columns = {
                **_measured(case, case.word, case.inside),
                **_measured(case, case.absent, case.inside, "_absent"),
                **_against_places(case, mask, beside, of_others),
                **_without_sinks(case),
                **_in_two_places(case, (case.inside, of_others), beside, "auroc_objects"),
            }
            self.rows.append((dict(zip(Case._fields[:3], case[:3], strict=True)), columns))

    def table(self) -> pd.DataFrame:
        """How well P(word) tells a category's patches (`patches_of`) from the others: a row per
        image, category that it has, and layer.

        - `size` (SIZES) of its largest object
        - `auroc`: of P(word) in its patches against P(word) in the others
        - `top1_hit_rate`: the share of its patches whose top-1 token is its word
        - `..._absent`: of an absent category's word in the same patches
        - `..._other_image`: of the own word against the patches of the category in another image
        - `auroc_objects`: of P(word) in its patches against those of the image's other objects
        - `auroc_places`: against those of the category in another image, where no other object is
        - `..._swapped`: of the other objects' words in the same two groups; at places without other
          objects of the absent word
        - `..._embedding`: by the embedding lens, so by the word's cosine in place of P(word)
        - `sinks`: how many patches are `sink_patches`; `..._no_sinks`: without them

        A control is NaN where there is no such word, object or image. docs/method.md says what each
        rules out. Sources: AUROC against boxes is this project's; patches that decode to the word
        of their object: Neo et al., arXiv 2410.07149.
        """
        for category, (row, case, *others) in self.first_cases.items():
            if (mask := self.masks[category]) is not case.inside:
                self.rows[row][1].update(_against_places(case, mask, *others))
        if self.rows:
            return repeat_over_layers(self.rows, layer_numbers(self.run))
        return pd.DataFrame(columns=[*Case._fields[:3], "layer"])


def _area(case: Case, word: dict | None, values: str, inside, among=slice(None)) -> np.ndarray:
    """AUROC `[layer]` of a word's `values` (of VALUES) in the patches `inside` `[patch]`, against
    the others of `among`. NaN without such a word, or where one side has no patch."""
    inside = inside[among]
    if word is None or values not in word or inside.all() or not inside.any():
        return np.full(len(case.top1[""]), np.nan)
    return auroc(word[values][:, among], inside)


def _measured(case: Case, word: dict | None, inside: np.ndarray, control="") -> dict:
    """MEASURES `[layer]` by column, of each lens, of a word in the patches `inside`."""
    columns = {}
    for lens, values in VALUES.items():
        area = _area(case, word, values, inside)
        hits = np.full_like(area, np.nan)
        if lens in case.top1 and not np.isnan(area).any():
            is_word = np.isin(case.top1[lens][:, inside], word["token_ids"])
            hits[:: NEAREST_EVERY if lens else 1] = is_word.mean(axis=1)
        columns |= {f"auroc{lens}{control}": area, f"top1_hit_rate{lens}{control}": hits}
    return columns


def _without_sinks(case: Case) -> dict:
    """`sinks` and, by lens, `auroc_no_sinks` and `auroc_absent_no_sinks` `[layer]`."""
    kept, n_sinks = np.zeros_like(case.inside), np.nan
    if case.sinks is not None:
        kept, n_sinks = ~case.sinks, case.sinks.sum()
    columns = {"sinks": np.full(len(case.top1[""]), n_sinks, float)}
    for lens, values in VALUES.items():
        for word, control in ((case.word, ""), (case.absent, "_absent")):
            area = _area(case, word, values, case.inside, kept)
            columns[f"auroc{lens}{control}_no_sinks"] = area
    return columns


def _against_places(case: Case, mask: np.ndarray, beside: list, of_others: np.ndarray) -> dict:
    """What is measured at the patches `mask` of the category in another image; none without one."""
    columns = _measured(case, case.word, mask, "_other_image")
    # A usual place of another object counts for its word: its patches are left out.
    places = case.inside & ~of_others, mask & ~of_others
    for lens, values in VALUES.items():
        columns |= _in_two_places(case, places, beside, f"auroc_places{lens}", values)
    return columns


def _in_two_places(
    case: Case, places: tuple, words: list[dict | None], name: str, values="log2_probs"
) -> dict:
    """AUROC `[layer]` of the own word in the first of two `places` (masks `[patch]`) against the
    second, and the mean of other `words` in the same two. Patches of both count for neither."""
    either = places[0] ^ places[1]
    own, *others = (_area(case, word, values, places[0], either) for word in (case.word, *words))
    swapped = np.mean(others, axis=0)
    return {name: np.where(np.isnan(swapped), np.nan, own), f"{name}_swapped": swapped}


def difference(grounded: pd.DataFrame, own: str, control: str) -> pd.DataFrame:
    """One column of `Grounding.table` minus another `[image, layer]`, of images that have both."""
    above = (grounded[own] - grounded[control]).astype(float)
    return per_image(grounded.assign(above=above).dropna(subset="above"), "above")


def best_layer(grounded: pd.DataFrame) -> int:
    """The layer at which AUROCs of own words are furthest above those of absent words."""
    above = difference(grounded, "auroc", "auroc_absent")
    return int(above.mean().idxmax() if len(above) else grounded["layer"].min())


def best_and_worst(table: pd.DataFrame, layer: int, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `n` rows at a layer with the largest AUROC, and with the smallest, each of an image. Of
    fewer than 2 `n` images each side has a half: a best row is never below a worst one."""
    ordered = table[table["layer"] == layer].sort_values("auroc", ascending=False, kind="stable")
    n = min(n, max(1, table["image"].nunique() // 2))
    best = ordered.drop_duplicates("image").head(n)
    return best, ordered.drop(best.index)[::-1].drop_duplicates("image").head(n)


def cases_to_look_at(grounded: pd.DataFrame, answers: pd.DataFrame, n: int = 3) -> list[str]:
    """Images worth a look: of the first `n` wrong answers, then of `best_and_worst`."""
    first = first_tokens(answers)
    names = first.loc[first["right"].eq(False), "image"].drop_duplicates().head(n).tolist()
    if not grounded.empty:
        names += pd.concat(best_and_worst(grounded, best_layer(grounded), n))["image"].tolist()
    return list(dict.fromkeys(names))
