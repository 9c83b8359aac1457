"""Present against absent categories: the confidence in the patches beside the answers."""

from collections import Counter

import numpy as np
import pandas as pd

from llava_lens.analysis.grading import is_right
from llava_lens.analysis.stats import auroc_by_image, interval
from llava_lens.schema import ABSENT_SAMPLINGS


def watched_of(record: dict) -> tuple[set[str], list[dict]]:
    """For `category_confidence`: the categories of an image, and a row per watched category."""
    said_yes = {
        prompt["categories"][0]: is_right("presence", prompt["answer"], "yes")
        for prompt in record["prompts"]
        if prompt["kind"] == "presence" and prompt["categories"]
    }
    rows = [
        {
            "image": record["name"],
            **{name: word[name] for name in ("category", "present", "absent_sampling")},
            "confidence": 2.0 ** float(word["log2_probs"].max()),
            "said_yes": said_yes.get(word["category"]),
        }
        for word in record["words"]
    ]
    return {item["category"] for item in record["objects"]}, rows


def category_confidence(images: list[tuple[set, list]]) -> pd.DataFrame:
    """From the `watched_of` all records a row per image and watched category.

    - `confidence`: the largest P(word) over all layers and patches, a variant of Jiang et al.'s
      (arXiv 2410.02762; docs/method.md)
    - `frequency`: what can be said blindly, the share of images that have the category, in the
      half that this one is not in. Over all others it would be smaller where it is here
    - `said_yes`: the model's answer when asked, 1 for yes and 0 for no; NaN for none or neither
    """
    halves = images[::2], images[1::2]
    images_with = [Counter(name for seen, _ in half for name in seen) for half in halves]
    rows = []
    for number, (_, of_image) in enumerate(images):
        other = 1 - number % 2
        for row in of_image:
            share = images_with[other][row["category"]] / max(len(halves[other]), 1)
            rows.append({**row, "frequency": share})
    columns = ["image", "category", "present", "absent_sampling", "confidence", "said_yes"]
    return pd.DataFrame(rows, columns=[*columns, "frequency"]).astype({"said_yes": float})


def presence_areas(table: pd.DataFrame) -> dict[str, tuple[float, np.ndarray]]:
    """AUROCs for present against absent categories, from `category_confidence`, each with its
    `interval` `[2]`: of the `confidence`, of the `frequency`, and of the confidence `within` one
    category at a time, where any constant per category has 0.5. NaN where nothing is compared."""
    names = {"confidence": "confidence", "frequency": "frequency", "within": "confidence"}
    present, images = table["present"].to_numpy(bool), pd.factorize(table["image"])[0]
    areas = {}
    for name, column in names.items():
        strata = pd.factorize(table["category"])[0] if name == "within" else None
        values = auroc_by_image(table[column].to_numpy(float), present, images, strata)
        areas[name] = values.mean(), interval(values, "share", len(table))
    return areas


def within_images(table: pd.DataFrame) -> tuple[int, pd.DataFrame]:
    """How many images have what is compared, and in doublings of `confidence` `above` and `scene`,
    each as values whose mean it is and whose `interval` is its own.

    `above`: what is there above the absent categories that often stand beside it (adversarial: the
    same scene). `scene`: these above the randomly drawn. From each confidence the mean of its
    category where it is absent, in other images, is taken: categories differ whatever the image
    shows. That mean ties images to each other, so the values are the jackknife's, over up to 24
    groups of images.
    """
    image, category = (pd.factorize(table[name])[0] for name in ("image", "category"))
    logs, sampling = np.log2(table["confidence"].to_numpy(float)), table["absent_sampling"]
    is_absent = ~table["present"].to_numpy(bool)
    side = np.select([~is_absent, sampling == "adversarial", sampling == "random"], [0, 1, 2], 3)

    def differences(kept: np.ndarray) -> pd.DataFrame:  # per image, of the rows that are kept
        counted = kept & is_absent
        sums, counts = (np.bincount(category, each)[category] for each in (counted * logs, counted))
        counts = counts - counted  # without the row itself
        usual = (sums - counted * logs) / np.where(counts > 0, counts, np.nan)
        read = kept & (counts > 0)
        at = 4 * image[read] + side[read]
        sums, counts = (
            np.bincount(at, each, 4 * image.max() + 4) for each in ((logs - usual)[read], None)
        )
        means = (sums / np.where(counts > 0, counts, np.nan)).reshape(-1, 4)  # [image, side]
        return pd.DataFrame(
            {"above": means[:, 0] - means[:, 1], "scene": means[:, 1] - means[:, 2]}
        )

    of_image, groups = differences(np.ones(len(image), bool)), image % 24
    means, n_groups = of_image.mean(), groups.max() + 1
    without = pd.DataFrame([differences(groups != each).mean() for each in range(n_groups)])
    values = means - (n_groups - 1) * (without - without.mean())
    return int(of_image["above"].notna().sum()), values


def presence_table(table: pd.DataFrame) -> pd.DataFrame:
    """Of `category_confidence` a row for `all` absent categories, and one per way of drawing them
    (ABSENT_SAMPLINGS; POPE, Li et al., arXiv 2305.10355), each beside the present categories of the
    same images.

    Columns: `images`; each of `presence_areas`; of the answers yes or no `sensitivity` (yes to the
    present) and `specificity` (no to the absent), each over `_n` images. All have `_low`, `_high`.
    """
    present, drawn = table["present"].astype(bool), table["absent_sampling"]
    groups = {"all": table} if len(table) else {}
    for sampling in ABSENT_SAMPLINGS:
        is_drawn = drawn == sampling
        # A row of its own neither where none was drawn so, nor where all were: that is `all`.
        if 0 < is_drawn.sum() < (~present).sum():
            of_images = table["image"].isin(table["image"][is_drawn])
            groups[sampling] = table[of_images & (present | is_drawn)]
    return pd.DataFrame.from_dict(
        {name: _presence_row(group) for name, group in groups.items()}, orient="index"
    )


def _presence_row(table: pd.DataFrame) -> dict[str, float]:
    """One row of `presence_table`."""
    measures, asked = presence_areas(table), table.dropna(subset="said_yes")
    row = {"images": table["image"].nunique()}
    for name, present in (("sensitivity", True), ("specificity", False)):
        rows = asked[asked["present"] == present]
        right = (rows["said_yes"] == present).groupby(rows["image"]).mean()
        share = right.mean() if len(right) else np.nan
        measures[name] = share, interval(right, "share", len(rows))
        row[f"{name}_n"] = len(right)
    for name, (value, (low, high)) in measures.items():
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return row


def roc_curve(table: pd.DataFrame, column: str) -> np.ndarray:
    """Shares `[2, threshold]` of the absent and of the present categories whose `column` reaches a
    threshold, from the highest threshold down."""
    ordered = table.sort_values(column, ascending=False)
    is_last = ordered[column].ne(ordered[column].shift(-1)).to_numpy()  # ties are one step
    present = ordered["present"].to_numpy(bool)
    counts = np.cumsum([~present, present], axis=1)
    return np.insert(counts[:, is_last] / counts[:, -1:], 0, 0, axis=1)
