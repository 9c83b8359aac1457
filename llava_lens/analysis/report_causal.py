"""The sentences of the report about the route: the order of kinds, and attention knockout."""

import itertools
from math import comb

import numpy as np
import pandas as pd

from llava_lens.analysis.causal import changes_by_window
from llava_lens.analysis.curves import first_tokens, per_image
from llava_lens.analysis.stats import MIN_IMAGES, interval, peak_range, signed_rank, with_interval
from llava_lens.kinds import KINDS
from llava_lens.schema import OF_OBJECTS
from llava_lens.text import count_of, markdown_table, two_decimals

COMPARED = [name for name, kind in KINDS.items() if kind.in_order]
LEVEL = 0.05 / comb(len(COMPARED), 2)  # Bonferroni over the pairs


def order_of_kinds(answers: pd.DataFrame) -> list[str]:
    """Sentences on which kind of answer is handed to the last position first, one per pair of kinds
    with `in_order`, from `answers_table`.

    Each pair is compared within the images that have both, by the median `handed_over` of the right
    answers of each kind. Wrong answers are left out: they can come late, and a kind that has more
    of them would seem later. Empty where no right answer has a route.
    """
    first = first_tokens(answers)
    known = first[first["right"].eq(True)].dropna(subset="handed_over")
    if known.empty:
        return []
    layers = known.groupby(["image", "kind"])["handed_over"].median().unstack("kind")
    layers = layers.reindex(columns=COMPARED)
    return [_order_of_two(layers[[a, b]].dropna()) for a, b in itertools.combinations(COMPARED, 2)]


def _order_of_two(layers: pd.DataFrame) -> str:
    """The sentence on two kinds, from their layers `[image, kind]`."""
    a, b = (KINDS[kind].title for kind in layers.columns)
    n = len(layers)
    if n < MIN_IMAGES:
        have = f"{count_of(n, 'image')} {'has' if n == 1 else 'have'} right answers about both"
        return f"Not tested, {a} against {b}: {have}, a test needs {MIN_IMAGES}."
    later = (layers.iloc[:, 1] - layers.iloc[:, 0]).to_numpy(float)
    # The direction is the test's: the side with the larger ranks.
    if signed_rank(later, "greater") > 0.5:
        a, b, later = b, a, -later
    middle, p = np.median(later), signed_rank(later)
    claim = f"No order is shown between answers about {a} and about {b}"
    if p < LEVEL and middle > 0:
        claim = f"Answers about {a} are handed over before answers about {b}"
    elif p < LEVEL:
        claim = f"In some images only, answers about {a} are handed over before answers about {b}"
    return (
        f"{claim}: by {count_of(middle, 'layer')} in the median of {n} images, {a} earlier on "
        f"{(later > 0).sum()} and later on {(later < 0).sum()} (p = {p:.2g})."
    )


GRADABLE = [name for name, kind in KINDS.items() if kind.meanings or kind.about_objects]
MOST_P = 0.05 / len(GRADABLE)  # Bonferroni over the kinds that have objects
LEAST_LOSS = 0.01  # of P, more than the control's: what is less can be sure and of no interest


def report_knockout(run: dict, table: pd.DataFrame) -> list[str]:
    """Where answers are taken from their objects' patches, as sentences, from `knockouts`; a kind
    of fewer than MIN_IMAGES images is left out."""
    with_control = table[table["cut"].isin(OF_OBJECTS)]
    of_kinds = ((kind, with_control[with_control["kind"] == kind]) for kind in GRADABLE)
    return [
        _where_taken(run, kind, of_kind)
        for kind, of_kind in of_kinds
        if of_kind["image"].nunique() >= MIN_IMAGES
    ]


def window_of_use(own: np.ndarray, control: np.ndarray) -> tuple[int | None, float]:
    """The window in which the mean losses differ most, None if not sure, and p; from the changes
    `[image, window]` for the object's patches and for the control's.

    It is sure if two things hold. The largest loss over windows is larger for the object's patches
    than for the control's (Wilcoxon, one-sided, within images). In the named window, the `interval`
    of the difference lies above LEAST_LOSS.
    """
    p, more = signed_rank(control.min(axis=1) - own.min(axis=1), "greater"), control - own
    best = int(more.mean(axis=0).argmax())
    is_sure = p < MOST_P and interval(more[:, best])[0] > LEAST_LOSS
    return best if is_sure else None, p


def _where_taken(run: dict, kind: str, table: pd.DataFrame) -> str:
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
    )


AT_ONCE = {  # cuts in all blocks, by header
    "image_last": "last position to all patches",
    "question_last": "last position to the question",
    "image": "text to all patches",
}


def report_cuts(run: dict, table: pd.DataFrame) -> str:
    """The mean change of P(answer) with a cut in all blocks at once, a row per kind of prompt."""
    at_once = table[table["layer"] > run["n_layers"]]
    rows = []
    for kind in filter(set(at_once["kind"]).__contains__, KINDS):
        changes = per_image(at_once[at_once["kind"] == kind], "change", "cut")
        cells = [
            with_interval(changes[cut].mean(), interval(changes[cut]).clip(-1, 1), two_decimals)
            for cut in AT_ONCE
        ]
        rows.append([KINDS[kind].title, f"{len(changes)}", *cells])
    return markdown_table(["asked about", "images", *AT_ONCE.values()], rows) if rows else ""
