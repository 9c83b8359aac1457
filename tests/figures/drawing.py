"""What the tests of figures share."""

import warnings

import matplotlib.pyplot as plt
import numpy as np

from llava_lens.figures import style

NASTY = ["$x^2$", "</b>", "▁狗", "Привет", "\u200b", "\t", "<0x0A>", "🙂", "▁$", "a" * 40]


def watch(record, **present):
    """Give a record words to watch, with random probabilities, and return these by category."""
    rng, shape = np.random.default_rng(0), record["patches"]["entropy"].shape
    log2_probs = {category: -rng.integers(0, 20, shape).astype("f2") for category in present}
    record["words"] = [
        {"category": category, "present": is_present, "log2_probs": log2_probs[category]}
        for category, is_present in present.items()
    ]
    return {category: 2.0 ** log2.astype(float) for category, log2 in log2_probs.items()}


def drawn_without_warnings(*plots) -> None:
    """Draw figures; a missing glyph is a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # Between matplotlib and what it builds on.
        warnings.filterwarnings("ignore", message=".*deprecated")
        style.use_style()
        for plot in plots:
            figure = plot()
            figure.canvas.draw()
            plt.close(figure)


def title_of(axis) -> str:
    return axis.get_title(loc="left") + axis.get_title()


def labels_of(axis) -> list[str]:
    """Those of the ticks of an x or y axis."""
    return [label.get_text() for label in axis.get_ticklabels()]


def overlap(texts) -> bool:
    """Whether one of `texts`, from left to right, is on the next one, once they are drawn."""
    boxes = [text.get_window_extent() for text in texts]
    return any(one.x1 >= other.x0 for one, other in zip(boxes, boxes[1:], strict=False))
