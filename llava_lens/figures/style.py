"""What all figures share: fonts, colours, layer axes, curves."""

import io
import textwrap
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from PIL import ImageDraw, ImageFont, ImageOps

from llava_lens.files import inside, write_whole
from llava_lens.schema import layer_label, layer_numbers, weights_label
from llava_lens.text import printable

# Fonts that can draw what matplotlib's own DejaVu Sans cannot; taken where the machine has them.
WIDE_FONTS = ["Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei"]
# Of Okabe and Ito's palette, whose colours colour-blind people can tell apart.
BLUE, ORANGE, GREEN, YELLOW, PURPLE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7"
GREY = "0.6"
DPI, FOOT = 150, 26  # of saved figures, which are 10 inches wide; pixels below for the model
# Ten of each; the palette's sixth colour is like its second, so it comes late.
COLOURS = [sns.color_palette("colorblind")[at] for at in (0, 1, 2, 3, 4, 9, 7, 8, 5, 6)]
MARKERS = "osD^vPX*<>"
# Over a photograph: what is hardly probable is hardly seen.
OVERLAY = ListedColormap(plt.get_cmap("viridis")(np.linspace(0, 1, 256)), "overlay")
OVERLAY.colors[:, 3] = np.linspace(0, 0.85, 256)
SERIES_TITLES = {  # of a record's readings: title, and label of an axis
    "jsd_prev": ("JSD to the previous layer", "JSD (bits)"),
    "jsd_final": ("JSD to the last layer", "JSD (bits)"),
    "entropy": ("Entropy", "entropy (bits)"),
}


@cache
def _drawable() -> tuple[list[str], frozenset[int], list]:
    """The fonts to draw tokens with, the code points that they have, and a measure of each."""
    fonts = ["DejaVu Sans"] + [name for name in WIDE_FONTS if name in font_manager.get_font_names()]
    paths = [font_manager.findfont(name) for name in fonts]
    charmaps = [font_manager.get_font(path).get_charmap() for path in paths]
    return fonts, frozenset().union(*charmaps), [ImageFont.truetype(path, 100) for path in paths]


def drawn(text: str, length: int | None = None) -> str:
    """`text` as figures show it: `printable` with this machine's fonts, cut to `length`."""
    return printable(text, length, _drawable()[1])


def width_of(text: str) -> float:
    """How wide text is drawn, in units of the font's size: `W` is wider than `i`."""
    return max(font.getlength(line) for line in text.split("\n") for font in _drawable()[2]) / 100


def title_of(text: str, length: int) -> str:
    """`text` as figures show it, with its spaces, cut to `length`: long titles widen a figure."""
    shown = " ".join(drawn(word) for word in text[:1000].split())
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def use_style() -> None:
    """Set the one style of all figures; its colour map survives print and colour-blindness."""
    pd.set_option("display.html.use_mathjax", False)  # a token may hold a `$`
    pd.set_option("styler.html.mathjax", False)
    plt.rc("font", family=_drawable()[0], size=9)
    plt.rc("axes", titlesize=10, titlelocation="left")
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("lines", markersize=4)
    plt.rc("figure", dpi=100, **{"constrained_layout.use": True})
    plt.rc("image", cmap="viridis")


def save_figure(folder, run: dict, figure, name: str) -> Image:
    """Save a figure as `figures/<name>.png` under `folder`, close it, and return the saved picture
    with its alternative text, for a notebook to show. Below it stands the model that was read."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = _with_model(PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())), run)
    if not any(axis.images for axis in figure.axes):
        # A third of the bytes. Curves look the same; in a colour scale it would make steps.
        pixels = pixels.quantize(method=PIL.Image.Quantize.MAXCOVERAGE)
    picture = displayed(pixels, alternative(figure))
    plt.close(figure)
    write_whole(inside(folder, "figures") / f"{name}.png", picture.data)
    return picture


def _with_model(pixels: PIL.Image.Image, run: dict) -> PIL.Image.Image:
    """The picture with a strip below it, of FOOT pixels: no legend is in the way there."""
    model = title_of(f"{run['model']} ({weights_label(run)})", 100)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 15)
    picture = ImageOps.expand(pixels.convert("RGB"), (0, 0, 0, FOOT), "white")
    place = picture.width - 8, picture.height - 6
    ImageDraw.Draw(picture).text(place, model, "#666666", font, anchor="rs")
    return picture


def displayed(pixels: PIL.Image.Image, alt: str) -> Image:
    """A picture for a notebook to show, at most 1,000 pixels wide; `alt` is read aloud."""
    png = io.BytesIO()
    pixels.save(png, "PNG", dpi=(DPI, DPI))
    return Image(png.getvalue(), width=min(pixels.width, 1000), alt=alt)


def alternative(figure) -> str:
    """What a figure shows, from its titles, its axes and their legend: its alternative text."""
    axes = figure.axes
    legends = [*figure.legends, *filter(None, (axis.get_legend() for axis in axes))]
    parts = {
        "": [figure.get_suptitle(), *(axis.get_title("left") for axis in axes)],
        "Axes and colours: ": [of() for axis in axes for of in (axis.get_xlabel, axis.get_ylabel)],
        "Shown: ": [text.get_text() for legend in legends for text in legend.get_texts()],
    }
    sentences = []
    for start, texts in parts.items():  # each text once and in one line
        once = dict.fromkeys(" ".join(text.split()) for text in texts if text)
        sentences += [start + "; ".join(once)] if once else []
    return textwrap.shorten(". ".join(sentences), 500, placeholder=" …")


def layer_ticks(run: dict) -> np.ndarray:
    """The positions on the layer axis to label: all of up to 13, else some ten and the last. A
    position is not a layer's number where not every layer was read."""
    last = len(run["layers"]) - 1
    step = 1 if last <= 12 else 4 * -(-last // 48)
    ticks = np.arange(0, last, step)
    return np.append(ticks[last - ticks >= step / 2], last)  # a nearer label would touch the last's


def layer_axis(axis, run: dict, with_never: bool = False) -> None:
    """Make the x axis one of layer numbers; one past the last is `never`."""
    numbers = layer_numbers(run)
    ticks, end = numbers[layer_ticks(run)], numbers[-1]
    if with_never:
        end += 1
        ticks = np.append(ticks[end - ticks > end / 8], end)  # others have no room beside it
    axis.set_xticks(ticks, [layer_label(run, tick) for tick in ticks])
    axis.set(xlabel="layer", xlim=(numbers[0] - 0.5, end + 0.5))


def draw_curve(axis, curve: pd.DataFrame, color, **line) -> None:
    """Draw one group of `layer_curve`: its mean as a line, its interval as a band."""
    axis.plot(curve["layer"], curve["mean"], color=color, linewidth=1.5, **line)
    known = curve.dropna(subset="low").astype({"low": float, "high": float})
    if len(known):
        axis.fill_between("layer", "low", "high", data=known, color=color, alpha=0.2, linewidth=0)


def look_of(group: str, order: list[str]) -> dict:
    """Colour and marker by the place in `order` alone. After ten both begin again, the marker a
    place later: a hundred groups look different."""
    rounds, place = divmod(order.index(group), 10)
    return {"color": COLOURS[place], "marker": MARKERS[(place + rounds) % 10]}


def draw_layer_curves(axis, run: dict, curves: pd.DataFrame, by: str, order: list[str]) -> None:
    """Draw `layer_curve` with all its groups, each as `look_of` says."""
    for group in filter(set(curves[by]).__contains__, order):
        draw_curve(axis, curves[curves[by] == group], **look_of(group, order), label=group)
    layer_axis(axis, run)


def legend_below(figure, axis, columns: int = 7) -> None:
    """One legend for all panels, where it covers no data: the labels of `axis`."""
    place = {"loc": "outside lower center", "ncols": columns, "fontsize": 8, "frameon": False}
    figure.legend(*axis.get_legend_handles_labels(), **place)


def panels(n: int, height: float, ylabel: str):
    """A figure of `n` panels with one y axis, three in a row (four: two by two); and its axes."""
    columns = 2 if n in (2, 4) else 3
    rows = -(-n // columns)
    size = (10, rows * height + 0.6)
    figure, axes = plt.subplots(rows, columns, squeeze=False, sharey=True, figsize=size)
    for axis in axes.flat[n:]:
        axis.set_axis_off()
    plt.setp(axes[:, 0], ylabel=ylabel)
    return figure, axes.flat[:n]
