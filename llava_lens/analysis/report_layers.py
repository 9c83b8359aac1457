"""The sentences of the report about layers in general."""

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import bias_curve, per_image
from llava_lens.analysis.stats import MIN_IMAGES, peak_range
from llava_lens.schema import SEGMENTS, layer_label
from llava_lens.text import one_decimal


def report_changes(run: dict, layers: pd.DataFrame) -> str:
    """Where predictions change most, from `layers` of `tabulate`."""
    sentences = []
    for segment in filter(set(layers["segment"]).__contains__, SEGMENTS):
        of_segment = layers[layers["segment"] == segment]
        change = per_image(of_segment, "jsd_prev").dropna(axis=1, how="all")
        distance = per_image(of_segment, "jsd_final").mean()
        name = f"{segment.capitalize()} positions"
        if segment == "answer":
            name = "Positions of the answer's own tokens (about what follows them)"
        peak, numbers = peak_range(change.to_numpy()), change.columns
        text = f"{name} have no clear peak of change"
        if peak is not None:
            first, last = (layer_label(run, numbers[at]) for at in peak)
            at = f"layer {first}" if first == last else f"some layer from {first} to {last}"
            text = f"{name} change most at {at}, by {change.mean().max():.2f} bits"
        elif len(change) < MIN_IMAGES:
            text = f"{name}: too few images to tell a peak of change"
        end = "are nowhere more than 0.1 bits from the output"
        if (distance > 0.1).any():
            far = layer_label(run, distance.index[distance > 0.1].max())
            end = f"are last more than 0.1 bits from the output at layer {far}"
        sentences.append(f"{text}, and {end}.")
    return "\n".join(f"- {sentence}" for sentence in sentences)


def report_limits(run: dict, mean_probability: np.ndarray) -> list[str]:
    sentences = []
    curve = bias_curve(mean_probability, run)
    of_prompt = curve[curve["segment"] == "prompt"].set_index("layer")["bias"]
    far = of_prompt.index[of_prompt > 1]
    if len(far):
        sentences.append(
            "The lens has a bias of its own: over the prompt's positions its mean distribution is "
            f"more than 1 bit (Kullback-Leibler) from the last layer's up to layer "
            f"{layer_label(run, far.max())}, and {one_decimal(of_prompt.max())} bits at most. A "
            "token read there may be what the lens reads from anything: only a difference from a "
            "control at the same layer tells something, and what can't be read may be there."
        )
    return sentences
