"""The sentences of the report about places in the image."""

import numpy as np
import pandas as pd

from llava_lens.analysis.causal import changes_by_window, median_lead, readable_and_used
from llava_lens.analysis.curves import per_image
from llava_lens.analysis.presence import presence_table
from llava_lens.analysis.stats import MIN_IMAGES, interval, peak_range, signed_rank, with_interval
from llava_lens.kinds import KINDS
from llava_lens.schema import OF_OBJECTS, layer_label, layer_numbers
from llava_lens.text import (
    as_code,
    count_of,
    interval_ends,
    markdown_table,
    one_decimal,
    percent,
    two_decimals,
)


def report_grounding(run: dict, grounded: pd.DataFrame, confident: pd.DataFrame) -> list[str]:
    """What `grounding` and `category_confidence` tell, as sentences."""
    lines = [] if grounded.empty else _where(run, grounded)
    if confident["present"].nunique() == 2:
        lines.append(_present(presence_table(confident).loc["all"]))
    return lines or ["Nothing to report: no annotated object lies in a part of the images."]


def _where(run: dict, grounded: pd.DataFrame) -> list[str]:
    controls = {
        "absent": ("An object's own word marks its patches more than words of absent categories "
                   "do", "absent words in the same boxes"),
        "other_image": ("An object's word is read where the object is, not only where its category "
                        "usually is", "the own word in the boxes of the same category in another "
                        "image"),
    }  # fmt: skip
    lines = [
        _above_control(run, grounded, f"auroc_{control}", *texts)
        for control, texts in controls.items()
    ]
    named = per_image(grounded, "named").mean()
    most = named.idxmax()
    if not named.max():
        return [*lines, "No patch's top-1 token is its object's word, at any layer."]
    absent = per_image(grounded, "named_absent")[most].mean()
    beside = "" if np.isnan(absent) else f", an absent category's on {percent(absent)}"
    return [
        *lines,
        f"Of an object's patches, the top-1 token is its word on {percent(named[most])} at layer "
        f"{layer_label(run, most)}, where that is most{beside}.",
    ]


def _above_control(run: dict, grounded: pd.DataFrame, control: str, claim: str, what: str) -> str:
    """The sentence that compares AUROCs with a control of `grounding`, at the layer at which they
    differ most; the interval allows for that choice."""
    known = grounded.dropna(subset=control)
    if known.empty:
        return f"There are no {what} to compare with."
    own, other = (per_image(known, column).to_numpy() for column in ("auroc", control))
    above = own - other
    best = above.mean(axis=0).argmax()
    low, high = interval(above, n_chosen_from=above.shape[1])[:, best]
    difference = with_interval(above[:, best].mean(), (low, high), two_decimals)
    if not low > 0:
        claim = f"Not shown: {claim[0].lower()}{claim[1:]}"
    layer = layer_label(run, layer_numbers(run)[best])
    return (
        f"{claim}: at layer {layer}, where the difference is largest, P(word) has inside against "
        "outside its boxes a mean AUROC of "
        f"{two_decimals(own[:, best].mean())}, {what} have {two_decimals(other[:, best].mean())}, "
        f"{difference} less on {count_of(len(above), 'image')} (interval for all layers at once)."
    )


def _present(row: pd.Series) -> str:
    within = with_interval(row["within"], interval_ends(row, "within"), two_decimals)
    known = row["within_low"] > 0.5
    claim = (
        "The patches tell whether a category is there"
        if known
        else "Not shown: the patches tell whether a category is there"
    )
    text = (
        f"{claim}: images with it from images without it by the largest P(word), one category at a "
        f"time, with an AUROC of {within}. Over all categories it is "
        f"{with_interval(row['confidence'], interval_ends(row, 'confidence'), two_decimals)}, "
        "and for a constant per category, how many images of the other half have it, "
        f"{two_decimals(row['frequency'])}."
    )
    if row["asked"]:
        yes, no = (
            with_interval(row[name], interval_ends(row, name), percent)
            for name in ("sensitivity", "specificity")
        )
        text += f" Asked, the model says yes to {yes} of the present and no to {no} of the absent."
    return text


MOST_P = 0.05 / 4  # Bonferroni over the four kinds that have objects
LEAST_LOSS = 0.01  # of P, more than the control's: what is less can be sure and of no interest


def report_knockout(run: dict, table: pd.DataFrame, answers: pd.DataFrame) -> list[str]:
    """Where answers are taken from their objects' patches, as sentences, from `knockouts` and
    `answers` of `tabulate`; a kind of fewer than MIN_IMAGES images is left out.

    Which window is named is up to `window_of_use`.
    """
    with_control = table[table["way"].isin(OF_OBJECTS)]
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
    own, control = (changes_by_window(table, run, way).to_numpy() for way in OF_OBJECTS)
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


def report_presence(confident: pd.DataFrame) -> str:
    """`presence_table` of `category_confidence`."""
    header = ["absent categories", "images", "AUROC of the largest P(word)", "of a constant"]
    header += ["one category at a time", "says yes to the present", "no to the absent"]
    rows = [
        [
            way,
            f"{row['images']:.0f}",
            *(with_interval(row[name], interval_ends(row, name), two_decimals) for name in
              ("confidence", "frequency", "within")),
            *(with_interval(row[name], interval_ends(row, name), percent) for name in
              ("sensitivity", "specificity")),
        ]
        for way, row in presence_table(confident).iterrows()
    ]  # fmt: skip
    return markdown_table(header, rows)


def report_categories(table: pd.DataFrame, n: int = 10) -> str:
    """The `n` first and the `n` last rows of `categories_table`."""
    shown = table if len(table) <= 2 * n else pd.concat([table.head(n), table.tail(n)])
    header = ["category", "images", "AUROC in its boxes", "above absent words", "answers right"]
    rows = [
        [
            as_code(category),
            f"{row['images']:.0f}",
            two_decimals(row["auroc"]),
            "not known" if np.isnan(row["above_absent"]) else two_decimals(row["above_absent"]),
            f"{percent(row['right'])} of {row['graded']:.0f}" if row["graded"] else "-",
        ]
        for category, row in shown.iterrows()
    ]
    return markdown_table(header, rows)
