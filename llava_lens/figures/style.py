"""What all figures share: fonts, colours, axes."""

from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.colors import ListedColormap

from llava_lens.schema import UNIT, layer_numbers
from llava_lens.text import printable

# Fonts that can draw what matplotlib's own DejaVu Sans cannot; taken where the machine has them.
WIDE_FONTS = ["Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei"]
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.6"  # of the colour-blind palette
MARKERS = "osD^vPX*<>"  # by group, as the palette's ten colours
# Over a photograph: what is hardly probable is hardly seen.
OVERLAY = ListedColormap(plt.get_cmap("viridis")(np.linspace(0, 1, 256)), "overlay")
OVERLAY.colors[:, 3] = np.linspace(0, 0.85, 256)
OVERLAY.colors[:, 3] = np.linspace(0, 0.85, 256)
SERIES = {  # of a record's readings: title, and label of the axis or colours
    "jsd_prev": ("Jensen-Shannon divergence to the previous layer", f"JSD ({UNIT})"),
    "jsd_final": ("Jensen-Shannon divergence to the last layer", f"JSD ({UNIT})"),
    "entropy": ("Entropy", f"entropy ({UNIT})"),
}


@cache
def _drawable() -> tuple[list[str], frozenset[int]]:
    """The fonts to draw tokens with, and the code points that they have."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans"] + [name for name in WIDE_FONTS if name in installed]
    charmaps = [font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in fonts]
    return fonts, frozenset().union(*charmaps)


def _drawn(text: str, length: int | None = None) -> str:
    """`text` as figures show it (`printable`)."""
    return printable(text, length, _drawable()[1])


def use_style() -> None:
    """Set the one style of all figures: fonts that draw the vocabulary, notebook width, and a
    colour map that survives print and colour-blindness."""
    pd.set_option("display.html.use_mathjax", False)  # a token may hold a `$`
    pd.set_option("styler.html.mathjax", False)
    plt.rc("font", family=_drawable()[0], size=9)
    plt.rc("axes", titlesize=10, titlelocation="left")
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("figure", dpi=100)
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("image", cmap="viridis")


def save_figure(figure, output, name: str) -> None:
    """Save a figure as `figures/<name>.png` under `output`."""
    path = Path(output) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _layer_ticks(run: dict) -> np.ndarray:
    """The positions on the layer axis to label: all of a small model's, every fourth and the last
    of a large one's."""
    last = len(run["layers"]) - 1
    return np.unique(np.append(np.arange(0, last, 1 if last <= 12 else 4), last))


def _layer_axis(axis, run: dict) -> None:
    """Make the x axis one of layer numbers."""
    numbers, ticks = layer_numbers(run), _layer_ticks(run)
    axis.set_xticks(numbers[ticks], [run["layers"][position] for position in ticks])
    axis.set(xlabel="layer", xlim=(numbers[0] - 0.5, numbers[-1] + 0.5))


def _layer_curves(axis, run: dict, curve: pd.DataFrame, by: str, order: list[str]) -> None:
    """Draw `layer_curve`, a line per group with its band. A group's colour and marker depend on its
    place in `order` alone."""
    for group in filter(set(curve[by]).__contains__, order):
        rows, colour = curve[curve[by] == group], _colour_of(group, order)
        look = {"color": colour, "marker": MARKERS[order.index(group)], "markersize": 4}
        axis.plot(rows["layer"], rows["mean"], label=group, linewidth=1.5, **look)
        if (rows := rows.dropna(subset="low")).size:
            band = rows["layer"], rows["low"].astype(float), rows["high"].astype(float)
            axis.fill_between(*band, color=colour, alpha=0.2, linewidth=0)
    _layer_axis(axis, run)


def _colour_of(group: str, order: list[str]):
    return sns.color_palette("colorblind")[order.index(group)]


def _legend_below(figure, axis, columns: int = 6) -> None:
    """One legend for all panels, where it covers no data."""
    look = {"loc": "outside lower center", "ncols": columns, "fontsize": 8, "frameon": False}
    figure.legend(*axis.get_legend_handles_labels(), **look)


def _panels(kinds: list[str], height: float, columns: int):
    """A figure with a panel per kind of prompt, `columns` in a row, and its axes."""
    rows = -(-len(kinds) // columns)
    size = (10, rows * height + 0.6)
    figure, axes = plt.subplots(rows, columns, squeeze=False, sharey=True, figsize=size)
    for axis, kind in zip(axes.flat, kinds, strict=False):
        axis.set_title(kind)
    for axis in axes.flat[len(kinds) :]:
        axis.set_axis_off()
    return figure, axes.flat[: len(kinds)]
