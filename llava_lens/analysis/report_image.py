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


def where_in_image(run: dict, grounded: pd.DataFrame) -> list[str]:
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
