"""The sentences of the report about places in the image."""

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import per_image
from llava_lens.analysis.presence import presence_table
from llava_lens.analysis.stats import interval, with_interval
from llava_lens.schema import layer_label, layer_numbers
from llava_lens.text import count_of, interval_ends, markdown_table, percent, two_decimals


def report_grounding(run: dict, grounded: pd.DataFrame, confident: pd.DataFrame) -> list[str]:
    """What `grounding` and `category_confidence` tell, as sentences."""
    lines = [] if grounded.empty else where_in_image(run, grounded)
    if confident["present"].nunique() == 2:
        lines.append(_present(presence_table(confident).loc["all"]))
    return lines or ["Nothing to report: no annotated object lies in a part of the images."]


OWN = "An object's own word marks its patches more than words of absent categories do"
PLACE = "An object's word is read where the object is, not only where its category usually is"
THERE = "The patches tell whether a category is there"
CONTROLS = {  # claim, and what the own word in its own boxes is compared with
    "auroc_absent": (OWN, "absent words in the same boxes"),
    "auroc_other_image": (PLACE, "the own word in the boxes of the same category in another image"),
}


def where_in_image(run: dict, grounded: pd.DataFrame) -> list[str]:
    """A sentence per control of `Grounding.table`, and one on what patches decode to."""
    lines = [_above_control(run, grounded, control, *CONTROLS[control]) for control in CONTROLS]
    named = per_image(grounded, "top1_hit_rate").mean()
    most = named.idxmax()
    if not named.max():
        return [*lines, "No patch's top-1 token is its object's word, at any layer."]
    absent = per_image(grounded, "top1_hit_rate_absent")[most].mean()
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
    layer = layer_label(run, layer_numbers(run)[best])
    own_area, other_area = (two_decimals(areas[:, best].mean()) for areas in (own, other))
    return (
        f"{_claim(claim, low > 0)}: at layer {layer}, where the difference is largest, P(word) has "
        f"inside against outside its boxes a mean AUROC of {own_area}, {what} have {other_area}, "
        f"{difference} less on {count_of(len(above), 'image')} (interval for all layers at once)."
    )


def _claim(claim: str, is_shown: bool) -> str:
    return claim if is_shown else f"Not shown: {claim[0].lower()}{claim[1:]}"


def _present(row: pd.Series) -> str:
    text = (
        f"{_claim(THERE, row['within_low'] > 0.5)}: images with it from images without it by the "
        "largest P(word), one category at a time, with an AUROC of "
        f"{_cell(row, 'within', two_decimals)}. Over all categories it is "
        f"{_cell(row, 'confidence', two_decimals)}, and for a constant per category, how many "
        f"images of the other half have it, {two_decimals(row['frequency'])}."
    )
    if row["asked"]:
        yes, no = (_cell(row, name, percent) for name in ("sensitivity", "specificity"))
        text += f" Asked, the model says yes to {yes} of the present and no to {no} of the absent."
    return text


def _cell(row: pd.Series, name: str, show) -> str:
    return with_interval(row[name], interval_ends(row, name), show)


def report_presence(confident: pd.DataFrame) -> str:
    """`presence_table` of `category_confidence`."""
    header = ["absent categories", "images", "AUROC of the largest P(word)", "of a constant"]
    header += ["one category at a time", "says yes to the present", "no to the absent"]
    rows = []
    for sampling, row in presence_table(confident).iterrows():
        areas = [_cell(row, name, two_decimals) for name in ("confidence", "frequency", "within")]
        answers = [_cell(row, name, percent) for name in ("sensitivity", "specificity")]
        rows.append([sampling, f"{row['images']:.0f}", *areas, *answers])
    return markdown_table(header, rows)
