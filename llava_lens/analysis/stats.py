"""The statistics of claims: intervals, tests, outcomes, the layer at which a curve has risen."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import binom, norm, t, wilcoxon

TINY = 2.0**-126  # the smallest float32 probability, for logarithms
LEAST_LIKELY = 0.1  # P(word) at the last layer, below which an answer is readable nowhere


def stays_from(holds: np.ndarray) -> np.ndarray:
    """The first position on the layer axis `[...]` from which on `holds` `[layer, ...]` stays true
    to the end; one past the last if it is not true even there."""
    return len(holds) - np.cumprod(holds[::-1], axis=0).sum(axis=0)


def best_rival(top_ids: np.ndarray, top_probs: np.ndarray, word_ids: list[int]) -> np.ndarray:
    """The largest probability `[...]` of a token that does not spell the word, from the top-k
    `[..., k]`. Where these hold none (a word has four spellings at most), it is the last of them:
    the rival has at most that."""
    spells = np.isin(top_ids, word_ids)
    return np.where(spells.all(-1), top_probs[..., -1], np.where(spells, 0, top_probs).max(-1))


def readable_layer(margin: np.ndarray, prob: np.ndarray) -> np.ndarray:
    """The first layer position `[...]` from which on at least half of the final margin stays, from
    `margin` (log P(word) minus log P(best rival)) and `prob` (P(word)), both `[layer, ...]`.

    One past the last (never) if the final margin is not positive, or P(word) ends below
    LEAST_LIKELY. Kinds of question can't be compared by it (docs/method.md).
    """
    is_read = (margin[-1] > 0) & (prob[-1] >= LEAST_LIKELY)
    return stays_from((margin >= margin[-1] / 2) & is_read)


SHOWN, NOT_SHOWN, UNDECIDED = "shown", "not shown", "undecided"
NOT_TESTED, MEASURED = "not tested", "measured"


def finding(claim: str, about: str, outcome: str, sentence: str = "", **numbers) -> dict:
    """A claim, named as in docs/claims.md. `numbers`: `value`, `low`, `high`, `n` (images), `p`."""
    known = dict.fromkeys(("value", "low", "high", "n", "p")) | numbers
    known = {name: None if pd.isna(value) else float(value) for name, value in known.items()}
    known["n"] = None if known["n"] is None else int(known["n"])
    return {"claim": claim, "about": about, "outcome": outcome, **known, "sentence": sentence}


MIN_IMAGES = 12  # for an interval or a test
# For the interval of a change of P. Where one image in ten changes, 28 % of samples of twelve have
# none that does, and an interval without length.
MIN_IMAGES_OF_CHANGE = 24


def interval(
    values: np.ndarray, of: str = "mean", n_rows: int | None = None, n_chosen_from: int = 1
) -> np.ndarray:
    """The 95 % interval over images `[2, ...]` from a value per image `[image, ...]`; NaN below
    MIN_IMAGES.

    - of a `mean`: Student's t; for one that was chosen as the largest of `n_chosen_from`, those of
      all at once (Bonferroni)
    - of a `change` of P: the same, within -1 and 1; NaN below MIN_IMAGES_OF_CHANGE
    - of a `median`: order statistics, which suppose nothing about the distribution
    - of a `share` or an AUROC (`auroc_by_image`), which are near 0 or 1 without an end there:
      Wilson's (1927), with an effective sample size from the variance between images (Korn and
      Graubard, 1998). That size is at most `n_rows`, the number of rows behind the values
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < (MIN_IMAGES_OF_CHANGE if of == "change" else MIN_IMAGES):
        return np.full((2, *values.shape[1:]), np.nan)
    if of == "median":
        outside, ordered = int(binom.ppf(0.025, n, 0.5)), np.sort(values, axis=0)
        return np.stack([ordered[outside - 1], ordered[n - outside]])
    mean, variance = values.mean(axis=0), values.var(axis=0)
    if of in ("mean", "change"):
        reach = t.ppf(1 - 0.025 / n_chosen_from, n - 1) * np.sqrt(variance / (n - 1))
        ends = np.stack([mean - reach, mean + reach])
        return ends if of == "mean" else ends.clip(-1, 1)
    mean, z = mean.clip(0, 1), norm.ppf(0.975)
    within = np.where(variance > 0, mean * (1 - mean), 1)
    drawn = np.minimum(n * within / np.where(variance > 0, variance, 1), n_rows or n)
    drawn = np.where((mean == 0) | (mean == 1), n, drawn)
    middle, scale = mean + z**2 / (2 * drawn), 1 + z**2 / drawn
    reach = z * np.sqrt(mean * (1 - mean) / drawn + (z / (2 * drawn)) ** 2)
    return np.stack([middle - reach, middle + reach]) / scale


def with_interval(value: float, ends: np.ndarray, show: Callable[[float], str], of="") -> str:
    """`6 (5 to 7)`: a statistic with its `interval`, each written by `show`. Too few images have
    no interval. What it is `of` stands there too: `6 (5 to 7, 20 images)`, `6 (1 image)`."""
    if np.isnan(value):
        return "not known"
    low, high = ends
    between = "" if np.isnan(low) else f"{show(low)} to {show(high)}"
    return f"{show(value)} ({', '.join(filter(None, [between, of])) or 'no interval'})"


def signed_rank(differences: np.ndarray, alternative: str = "two-sided") -> float:
    """p of Wilcoxon's signed-rank test that differences are symmetric about 0; 1 if all are 0."""
    if not np.any(differences):
        return 1.0
    sizes = np.unique(np.abs(differences))
    # With ties or zeros scipy would go through all signs of up to 13 images, which takes a second.
    has_ties = len(sizes) < len(differences) or sizes[0] == 0
    method = "asymptotic" if has_ties else "auto"
    return wilcoxon(
        differences, zero_method="zsplit", alternative=alternative, method=method
    ).pvalue


def peak_range(values: np.ndarray, widest: float = 0.5) -> tuple[int, int] | None:
    """The first and last position of a peak of the mean of `values` `[image, layer]`, None without
    a clear one.

    The range holds every position whose mean is not surely below the largest (paired t, Bonferroni
    over positions). So it holds the true peak in 95 % of samples. Not clear: the range is more than
    the share `widest` of all positions, or there are fewer than MIN_IMAGES images.
    """
    n, n_layers = values.shape
    if n < MIN_IMAGES:
        return None
    below = values[:, [values.mean(axis=0).argmax()]] - values
    reach = t.ppf(1 - 0.05 / n_layers, n - 1) * below.std(axis=0, ddof=1) / np.sqrt(n)
    held = np.flatnonzero(below.mean(axis=0) <= reach)
    first, last = int(held[0]), int(held[-1])
    return (first, last) if last - first + 1 <= widest * n_layers else None


def auroc(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The chance `[...]` that a value inside is larger than one outside (ties count half), from
    `values` `[..., n]` and the mask `inside` `[n]`. Source: Mann and Whitney's U (1947)."""
    own, others = (
        values[..., mask].astype(float).reshape(-1, mask.sum()) for mask in (inside, ~inside)
    )
    others.sort(axis=-1)
    won = [  # row by row: four times faster than scipy's ranks
        np.searchsorted(row, of_row, side).sum()
        for row, of_row in zip(others, own, strict=True)
        for side in ("left", "right")
    ]
    return np.reshape(won, (*values.shape[:-1], 2)).mean(-1) / (own.shape[1] * others.shape[1])


def auroc_by_image(
    values: np.ndarray, inside: np.ndarray, images: np.ndarray, strata: np.ndarray | None = None
) -> np.ndarray:
    """A value per image whose mean is the AUROC of `values` `[n]` for the mask `inside` `[n]`: for
    `interval`, as a share.

    `images` `[n]` are numbers from 0. With `strata` `[n]` only values of one stratum are compared.
    They are the jackknife's pseudo-values (Tukey, 1958), with the mean moved to the area itself.
    All NaN where nothing can be compared, or all that can has one image in it.
    """
    strata = np.zeros(len(values)) if strata is None else strata
    # wins, pairs: comparisons that involve an image; shared_*: those with both sides in that image.
    wins, pairs, shared_wins, shared_pairs = np.zeros((4, images.max() + 1))
    for stratum in np.unique(strata):
        is_in, is_out = (strata == stratum) & inside, (strata == stratum) & ~inside
        for own, other, sign in ((is_in, is_out, 1), (is_out, is_in, -1)):
            many = np.sort(sign * values[other])
            won = [np.searchsorted(many, sign * values[own], side) for side in ("left", "right")]
            np.add.at(wins, images[own], np.mean(won, axis=0))
            np.add.at(pairs, images[own], len(many))
        for image in np.intersect1d(images[is_in], images[is_out]):
            of_image = images == image  # its own pairs were counted twice
            more = np.subtract.outer(values[is_in & of_image], values[is_out & of_image])
            shared_wins[image] += (more > 0).sum() + (more == 0).sum() / 2
            shared_pairs[image] += more.size
    # Of a pair of two images each counts the win in; one within an image is there twice too.
    all_wins, all_pairs = wins.sum() / 2, pairs.sum() / 2
    wins, pairs, n = wins - shared_wins, pairs - shared_pairs, len(wins)
    if n < 2 or (pairs >= all_pairs).any():
        return np.full(n, np.nan)
    area, without = all_wins / all_pairs, (all_wins - wins) / (all_pairs - pairs)
    return area - (n - 1) * (without - without.mean())
