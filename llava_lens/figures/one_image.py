"""Figures of one image."""

import textwrap

import matplotlib.patches
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patheffects import withStroke

from llava_lens.analysis.curves import first_tokens
from llava_lens.analysis.grounding import word_probability
from llava_lens.data.crop import open_crop
from llava_lens.figures.style import GREY, ORANGE, OVERLAY, SERIES_TITLES, drawn, layer_ticks
from llava_lens.words import without_space

MOST_POSITIONS, MOST_BOXES = 64, 100  # drawn in one figure
PANEL_COLUMNS = 14  # token columns that are legible side by side at notebook width
# A larger grid is drawn in panels of half the width, and names tokens of this probability only.
LARGE_GRID, LEAST_NAMED = 12, 0.05


def table_of_answers(answers: pd.DataFrame, image: str):
    """The questions of one image with their answers and layers, from `answers_table`, as a styled
    table; at most 50 rows, and of each text the start."""
    names = {"settling_layer": "settles", "readable_layer": "readable", "leaves_image": "leaves"}
    names |= {"handed_over": "handed over", "mediated": "mediated"}
    columns = ["prompt", "kind", "question", "answer", "truth", "right", *names]
    rows = first_tokens(answers)[lambda table: table["image"] == image].head(50)[columns]
    rows = rows.map(lambda cell: cell[:500] if type(cell) is str else cell).rename(columns=names)
    styled = rows.style.format(escape="html", precision=0, na_rep="-").hide(axis="index")
    styled = styled.format(precision=2, na_rep="-", subset=["mediated"])
    return styled.set_properties(**{"text-align": "left"})


def large_crop(record: dict, side: int = 336):
    """The image as the model saw it, large enough to look at."""
    return open_crop(record).resize((side, side))


def title_of(text: str, length: int) -> str:
    """`text` as figures show it, with its spaces, cut to `length`: long titles widen a figure."""
    shown = " ".join(drawn(word) for word in text[:1000].split())
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def plot_top1(run: dict, prompt: dict):
    """Heatmap layers x text positions of the probability of the lens's top-1 token, which stands in
    the cell."""
    ids, probs = (prompt["readings"][name][:, :, 0] for name in ("top_ids", "top_probs"))
    title = "Top-1 token per layer and position"
    return _text_heatmap(run, prompt, probs, title, ("probability", 1), ids)


def plot_series(run: dict, prompt: dict, series: str):
    """Heatmap layers x text positions of one of SERIES_TITLES, in bits. The scale ends at the
    largest possible value: 1 for JSD, log2 of the vocabulary's size for entropy."""
    title, label = SERIES_TITLES[series]
    largest = np.log2(len(run["tokens"])) if series == "entropy" else 1
    return _text_heatmap(run, prompt, prompt["readings"][series], title, (label, largest))


def _text_heatmap(run: dict, prompt: dict, values, title: str, scale, ids=None):
    """Heatmap of `values` `[layer, pos]` over the last text positions, wrapped into panels, with
    the tokens `ids` `[layer, pos]` in it. `scale` is the label of the colours and their end."""
    n_pos, n_layers = len(prompt["token_ids"]), len(run["layers"])
    # Of many layers fewer positions, so that a figure takes seconds.
    n_shown = min(n_pos, MOST_POSITIONS, 4000 // n_layers)
    title += ": " if n_shown == n_pos else f": last {n_shown} of {n_pos:,} positions\n"
    question = title_of(prompt["question"].strip().splitlines()[0], 70)
    title += f"{question} \u2192 {title_of(prompt['answer'], 30)}"
    n_panels = -(-n_shown // PANEL_COLUMNS)
    columns = -(-n_shown // n_panels)  # panels of nearly one width
    height = n_panels * ((0.13 if ids is None else 0.2) * n_layers + 1.2)
    figure, axes = plt.subplots(n_panels, squeeze=False, figsize=(10, height))
    heat = {"cmap": "viridis", "vmin": 0, "vmax": scale[1], "fmt": ""}
    heat |= {"annot_kws": {"size": 7, "parse_math": False}}
    heat |= {"cbar_kws": {"label": scale[0], "pad": 0.01}}
    cell = np.vectorize(lambda i: drawn(run["tokens"][i], 9), otypes=[object])
    ticks = layer_ticks(run)
    for panel, axis in enumerate(axes[:, 0]):
        first = n_pos - n_shown + panel * columns
        positions = np.arange(first, min(first + columns, n_pos))
        cells = False if ids is None else cell(ids[:, positions])
        sns.heatmap(values[:, positions], ax=axis, annot=cells, **heat)
        _token_axis(axis, run, prompt, positions)
        axis.set_yticks(ticks + 0.5, [run["layers"][position] for position in ticks], rotation=0)
        axis.set(xlim=(0, columns), ylim=(0, n_layers), ylabel="layer")
    axes[-1, 0].set_xlabel("input token at the position (bold: the answer, fed back)")
    axes[0, 0].set_title(textwrap.fill(title, 110), parse_math=False)
    return figure


def _token_axis(axis, run: dict, prompt: dict, positions: np.ndarray) -> None:
    """Name the columns by their input tokens; a line stands before the answer."""
    labels = [drawn(run["tokens"][prompt["token_ids"][pos]], 10) for pos in positions]
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}
    axis.set_xticks(np.arange(len(positions)) + 0.5, labels, parse_math=False, **slanted)
    for tick, pos in zip(axis.get_xticklabels(), positions, strict=True):
        tick.set_fontweight("bold" if pos >= prompt["n_prompt"] else "normal")
    if prompt["n_prompt"] in positions:
        axis.axvline(prompt["n_prompt"] - positions[0], color="white", linewidth=3)


def plot_patches(run: dict, record: dict, layers: list[int]):
    """The crop with its boxes, then per position on the layer axis `layers` the lens's top-1 token
    (without `▁`) in each patch, its probability as colour."""
    columns, least = (3, 0) if max(run["grid"]) <= LARGE_GRID else (2, LEAST_NAMED)
    rows = -(-(len(layers) + 1) // columns)
    size = (10, rows * 9.8 / columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=size)
    axes[0, 0].imshow(open_crop(record))
    axes[0, 0].set_title("the image as the model saw it")
    _draw_boxes(axes[0, 0], record, names=True)
    norm = LogNorm(0.01, 1, clip=True)
    for axis, layer in zip(axes.flat[1:], layers, strict=False):  # there may be more axes
        ids, probs = (record["patches"][name][layer, :, 0] for name in ("top_ids", "top_probs"))
        ids = np.where(probs >= least, ids.astype(int), -1)  # -1 is not named
        cells = [drawn(without_space(run["tokens"][i]), 10) if i >= 0 else "" for i in ids]
        mesh = draw_patches(axis, run, record, probs, norm, cells)
        axis.set_title(f"layer {run['layers'][layer]}")
    for axis in axes.flat:
        axis.set_axis_off()
    label = "probability of the top-1 token (0.01 and less: clear)"
    _colour_bar(figure, mesh, axes, label=label, shrink=0.5)
    return figure


def plot_words(run: dict, record: dict, categories: list[str], layers: list[int]):
    """P(word) per patch of the crop and the category's boxes: a row per watched category, a column
    per position on the layer axis. Each row's colours span three powers of ten."""
    size = (10, 10.2 / len(layers) * len(categories))
    figure, axes = plt.subplots(len(categories), len(layers), squeeze=False, figsize=size)
    present = {word["category"] for word in record["words"] if word["present"]}
    for row, category in zip(axes, categories, strict=True):
        probs = word_probability(record, category)
        label = title_of(category, 30) + ("" if category in present else "\n(not annotated)")
        row[0].set_ylabel(label, parse_math=False)
        largest = probs[layers].max()
        norm = LogNorm(largest / 1000, largest, clip=True)
        for axis, layer in zip(row, layers, strict=True):
            mesh = draw_patches(axis, run, with_boxes_of(record, category), probs[layer], norm)
            axis.set_title(f"layer {run['layers'][layer]}")
        _colour_bar(figure, mesh, row, label="P(word)", aspect=12)
    return figure


def _colour_bar(figure, mesh, axes, **options) -> None:
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, format="%.2g", **options)
    bar.ax.set_facecolor(GREY)  # of a middling photograph, over which the colours lie


def with_boxes_of(record: dict, category: str) -> dict:
    """The record with the objects of one category only."""
    return {**record, "objects": [o for o in record["objects"] if o["category"] == category]}


def draw_patches(axis, run: dict, record: dict, values, norm: Normalize, cells: list[str] = ()):
    """`values` `[patch]` as colours over the patches of the grey crop, with the texts `cells`
    in them and the annotated boxes over them."""
    (rows, columns), size = run["grid"], run["image_size"]
    placed = {"extent": (0, size, size, 0), "interpolation": "nearest"}
    axis.imshow(open_crop(record).convert("L"), cmap="gray", **placed)
    mesh = axis.imshow(np.reshape(values, (rows, columns)), cmap=OVERLAY, norm=norm, **placed)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    look = {"color": "white", "path_effects": [withStroke(linewidth=1.2, foreground="black")]}
    look |= {"ha": "center", "va": "center", "clip_on": True, "parse_math": False}
    finest = max(rows, columns)
    for patch, text in enumerate(cells if finest <= 32 else ()):  # in finer ones none is legible
        row, column = divmod(patch, columns)
        # As large as fits: a small grid has patches of 37 points, a letter is 0.7 of its font wide.
        points = np.clip((6 if finest > LARGE_GRID else 53) / max(len(text), 1), 5, 8)
        x, y = (column + 0.5) * size / columns, (row + 0.5) * size / rows
        axis.text(x, y, text, fontsize=points, **look)
    _draw_boxes(axis, record)
    return mesh


def _draw_boxes(axis, record: dict, names: bool = False) -> None:
    """The annotated boxes that lie in the crop, of many the largest; with their categories."""
    by_area = sorted(record["objects"], key=lambda item: -item["box"][2] * item["box"][3])
    for item in by_area[:MOST_BOXES]:
        x, y, width, height = item["box"]
        if not (width and height):  # outside the crop
            continue
        line = {"fill": False, "edgecolor": ORANGE, "linewidth": 1.5}
        axis.add_patch(matplotlib.patches.Rectangle((x, y), width, height, **line))
        if names:
            label = {"color": ORANGE, "fontsize": 8, "va": "bottom", "clip_on": True}
            label["bbox"] = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
            axis.text(x, y, title_of(item["category"], 30), parse_math=False, **label)
