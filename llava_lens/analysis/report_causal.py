"""The sentences of the report about order and attention knockout."""

import itertools
from math import comb

import numpy as np
import pandas as pd

from llava_lens.analysis.causal import changes_by_window, median_lead, readable_and_used
from llava_lens.analysis.stats import MIN_IMAGES, interval, peak_range, signed_rank, with_interval
from llava_lens.kinds import KINDS
from llava_lens.schema import OF_OBJECTS
from llava_lens.text import count_of, number_of_layers, one_decimal, two_decimals

COMPARED = [name for name, kind in KINDS.items() if kind.in_order]
LEVEL = 0.05 / comb(len(COMPARED), 2)  # Bonferroni over the pairs
SCALES = {"drawn_layer": "by odds", "drawn_layer_by_probability": "by probability"}


def order_of_kinds(first: pd.DataFrame) -> list[str]:
    """Sentences on which of colour, object and relation is drawn from the image first, from a row
    per prompt with its layers of SCALES.

    Each pair of kinds is compared within the images that have both, the first answer of each that
    has such a layer. Empty for fewer than two kinds.
    """
    if len(set(COMPARED) & set(first["kind"])) < 2:
        return []
    drawn = first.dropna(subset=list(SCALES)).drop_duplicates(["image", "kind"])
    layers = {
        scale: drawn.pivot(index="image", columns="kind", values=scale).reindex(columns=COMPARED)
        for scale in SCALES
    }
    return [
        _order_of_two(*(table[[a, b]].dropna().astype(float) for table in layers.values()))
        for a, b in itertools.combinations(COMPARED, 2)
    ]


def _order_of_two(by_odds: pd.DataFrame, by_probability: pd.DataFrame) -> str:
    """The sentence on two kinds, from their layers `[image, kind]` on both scales."""
    a, b = (KINDS[kind].title for kind in by_odds.columns)
    n, have_both = len(by_odds), "draw both from the image"
    if n < MIN_IMAGES:
        have_both = have_both.replace("draw", "draws", int(n == 1))
        return f"{a.capitalize()} and {b}: {count_of(n, 'image')} {have_both}, too few for a test."
    later = np.stack([(table.iloc[:, 1] - table.iloc[:, 0]) for table in (by_odds, by_probability)])
    p = [signed_rank(each) for each in later]
    # The direction is that of the test: which side has the larger ranks.
    signs = [np.sign(0.5 - signed_rank(each, "greater")) for each in later]
    if signs[0] < 0:
        a, b, later = b, a, -later
    claimed = max(p) < LEVEL and signs[0] == signs[1]
    claim = (
        f"Answers about {a} are drawn from the image before answers about {b}"
        if claimed
        else f"No order is shown between answers about {a} and about {b}"
    )
    by_scale = []
    for each, p_of_scale, scale in zip(later, p, SCALES.values(), strict=True):
        low, middle, high = np.percentile(each, [25, 50, 75])
        quartiles = f"quartiles {one_decimal(low)} and {one_decimal(high)}"
        by_scale.append(f"{number_of_layers(middle)} {scale} ({quartiles}, p = {p_of_scale:.2g})")
    return (
        f"{claim}: of {n} images, {a} earlier on {(later[0] > 0).sum()} and later on "
        f"{(later[0] < 0).sum()} by odds; in the median by {' and '.join(by_scale)}."
    )


MOST_P = 0.05 / 4  # Bonferroni over the four kinds that have objects
LEAST_LOSS = 0.01  # of P, more than the control's: what is less can be sure and of no interest


def report_knockout(run: dict, table: pd.DataFrame, answers: pd.DataFrame) -> list[str]:
    """Where answers are taken from their objects' patches, as sentences, from `knockouts` and
    `answers` of `tabulate`; a kind of fewer than MIN_IMAGES images is left out.

    Which window is named is up to `window_of_use`.
    """
    with_control = table[table["cut"].isin(OF_OBJECTS)]
    return [
        line
        for kind in KINDS
        if (line := _where_taken(run, kind, with_control[with_control["kind"] == kind], answers))
    ]


def window_of_use(own: np.ndarray, control: np.ndarray) -> tuple[int | None, float]:
    """The number of the window in which answers are taken from their object's patches, None where
    that is not sure, and p; from the changes `[image, window]` for these patches and the control's.

    It is the one in which the means differ most. Sure is it if an image's largest loss over the
    windows is larger for the object's patches than for the control's (Wilcoxon's signed-rank test,
    one-sided), and if the difference's `interval` in that window lies above LEAST_LOSS.
    """
    p, more = signed_rank(control.min(axis=1) - own.min(axis=1), "greater"), control - own
    best = int(more.mean(axis=0).argmax())
    is_sure = p < MOST_P and interval(more[:, best])[0] > LEAST_LOSS
    return best if is_sure else None, p


def _where_taken(run: dict, kind: str, table: pd.DataFrame, answers: pd.DataFrame) -> str:
    if table["image"].nunique() < MIN_IMAGES:
        return ""
    own, control = (changes_by_window(table, run, cut).to_numpy() for cut in OF_OBJECTS)
    best, p = window_of_use(own, control)
    on = f"Asked about {KINDS[kind].title}, {len(own)} images"
    if best is None:
        return (
            f"{on}: no window of blocks is found in which P(answer) surely falls by {LEAST_LOSS} "
            f"more without the object's patches than without as many other patches (p = {p:.2g})."
        )
    windows, peak = run["knockout_windows"], peak_range(control - own)
    where = "{} to {}".format(*windows[best])
    if peak is None:
        where += " (no window stands out)"
    elif peak[0] != peak[1]:
        where += f" (some window from block {windows[peak[0]][0]} to {windows[peak[1]][1]})"
    losses = (-changes[:, best] for changes in (own, control))
    by, by_control = (
        with_interval(loss.mean(), interval(loss).clip(-1, 1), two_decimals) for loss in losses
    )
    return (
        f"{on}: without the object's patches P(answer) falls most in blocks {where}, by {by}, and "
        f"without as many other patches by {by_control} (p = {p:.2g})."
        f"{_before_readable(table, answers, run)}"
    )


def _before_readable(table: pd.DataFrame, answers: pd.DataFrame, run: dict) -> str:
    """The sentence on `readable_and_used` of one kind; empty for too few images."""
    used = readable_and_used(table, answers, run)
    n_images, (middle, ends, p) = used["image"].nunique(), median_lead(used)
    if n_images < MIN_IMAGES:
        return ""
    order = "before" if middle > 0 else "after"
    if p >= MOST_P or middle == 0:
        order = "in no sure order to"
    by = with_interval(middle, ends, one_decimal)
    return (
        f" That window lies {order} the layer from which the answer is readable, by {by} layers "
        f"from its centre in the median of {n_images} images whose answer falls more than any "
        f"control's changes (p = {p:.2g})."
    )
