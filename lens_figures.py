"""Tables to figures, and the explorer page.

Holds the one style of all figures, a function per figure and the page to hover over. It draws and
computes nothing: statistics come from `lens_tables`, readings from a record. It knows nothing of
models, and of files only where to save a picture or the page.

Rows of heatmaps are positions on the layer axis, the x axis of curves has layer numbers; both are
labelled by `run["layers"]`. In figures a token is drawn in characters that the fonts here have.
"""

import html
import itertools
import textwrap
from functools import cache
from pathlib import Path

import matplotlib.patches
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import seaborn as sns
from matplotlib import font_manager
from matplotlib.colors import PowerNorm
from plotly.subplots import make_subplots

import lens_tables as lt
from lens_stats import with_interval
from lens_utils import KINDS, SEGMENTS, UNIT, Results, open_crop, printable

__all__ = [
    "use_style", "save_figure",
    "plot_top1", "plot_jsd", "plot_patches", "plot_words", "save_explorer",
    "plot_top_tokens", "plot_mean_jsd", "plot_answers", "plot_settling",
    "plot_grounding", "plot_gallery", "plot_presence", "plot_knockout", "plot_used",
]  # fmt: skip

# Fonts that can draw what matplotlib's own DejaVu Sans cannot; taken where the machine has them.
WIDE_FONTS = ["Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei"]
WIDE_FONTS += ["Arial Unicode MS", "Microsoft YaHei"]
PANEL_COLUMNS = 14  # token columns that are legible side by side at notebook width
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.6"  # of the colour-blind palette

# ---- Style -------------------------------------------------------------------------------------


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
    numbers, ticks = lt.layer_numbers(run), _layer_ticks(run)
    axis.set_xticks(numbers[ticks], [run["layers"][position] for position in ticks])
    axis.set(xlabel="layer", xlim=(numbers[0] - 0.5, numbers[-1] + 0.5))


# ---- One prompt --------------------------------------------------------------------------------


def _question_and_answer(prompt: dict) -> str:
    """The first line of the question and the start of the answer, for titles."""
    text = f"{prompt['question'].strip().splitlines()[0]} \u2192 {prompt['answer'][:40]}"
    return " ".join(map(_drawn, text.split()))


def plot_top1(run: dict, prompt: dict):
    """Heatmap layers x text positions: the lens's top-1 token in each cell, its probability as
    colour."""
    top_ids = prompt["readings"]["top_ids"][:, :, 0]
    cells = np.vectorize(lambda i: _drawn(run["tokens"][i], 9), otypes=[object])(top_ids)
    probs = prompt["readings"]["top_probs"][:, :, 0]
    title = f"Top-1 token per layer and position: {_question_and_answer(prompt)}"
    return _text_heatmap(run, prompt, probs, title, "probability", cells)


def plot_jsd(run: dict, prompt: dict, series: str):
    """Heatmap layers x text positions of `series`: `jsd_prev` (to the previous layer) or
    `jsd_final` (to the last), in bits."""
    other = {"jsd_prev": "the previous layer", "jsd_final": "the last layer"}[series]
    title = f"Jensen-Shannon divergence to {other}: {_question_and_answer(prompt)}"
    return _text_heatmap(run, prompt, prompt["readings"][series], title, f"JSD ({UNIT})")


def _text_heatmap(run, prompt, values, title: str, colour_label: str, cells=None):
    """Heatmap of `values` `[layer, pos]` over the text positions, wrapped into panels, with the
    texts `cells` `[layer, pos]` in it."""
    n_pos, n_layers = len(prompt["token_ids"]), len(run["layers"])
    n_panels = -(-n_pos // PANEL_COLUMNS)
    columns = -(-n_pos // n_panels)  # panels of nearly one width
    height = n_panels * ((0.13 if cells is None else 0.21) * n_layers + 1.2)
    figure, axes = plt.subplots(n_panels, squeeze=False, figsize=(10, height))
    for panel, axis in enumerate(axes[:, 0]):
        positions = np.arange(panel * columns, min((panel + 1) * columns, n_pos))
        look = {"cmap": "viridis", "vmin": 0, "vmax": 1, "fmt": ""}
        look["cbar_kws"] = {"label": colour_label, "pad": 0.01}
        look["annot_kws"] = {"size": 7, "parse_math": False}
        annot = False if cells is None else cells[:, positions]
        sns.heatmap(values[:, positions], ax=axis, annot=annot, **look)
        _token_axis(axis, run, prompt, positions)
        ticks = _layer_ticks(run)
        axis.set_yticks(ticks + 0.5, [run["layers"][position] for position in ticks], rotation=0)
        axis.set(xlim=(0, columns), ylim=(0, n_layers), ylabel="layer")
    axes[-1, 0].set_xlabel("input token at the position (bold: the answer, fed back)")
    axes[0, 0].set_title(title, parse_math=False)
    return figure


def _token_axis(axis, run: dict, prompt: dict, positions: np.ndarray) -> None:
    """Name the columns by their input tokens; a line stands before the answer."""
    # Columns keep their own place: two positions with the same token stay two columns.
    labels = [_drawn(run["tokens"][prompt["token_ids"][pos]], 10) for pos in positions]
    look = {"rotation": 40, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}
    axis.set_xticks(np.arange(len(positions)) + 0.5, labels, parse_math=False, **look)
    for tick, pos in zip(axis.get_xticklabels(), positions, strict=True):
        tick.set_fontweight("bold" if pos >= prompt["n_prompt"] else "normal")
    if prompt["n_prompt"] in positions:
        axis.axvline(prompt["n_prompt"] - positions[0], color="white", linewidth=3)


# ---- One image ---------------------------------------------------------------------------------


def plot_patches(run: dict, record: dict, layers: list[int]):
    """The crop with its annotated boxes, then per position on the layer axis the lens's top-1 token
    (without `▁`) in each patch, its probability as colour."""
    columns = 1 if run["grid"] > 12 else 3
    rows = -(-(len(layers) + 1) // columns)
    height = rows * 9.3 / columns
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(10, height))
    axes[0, 0].imshow(open_crop(record))
    axes[0, 0].set(xticks=[], yticks=[], title="the image as the model saw it")
    _draw_boxes(axes[0, 0], record, names=True)
    patches = record["patches"]
    for axis, layer in zip(axes.flat[1:], layers, strict=False):  # the grid may have more
        tokens = [
            run["tokens"][i].removeprefix("▁") or "▁" for i in patches["top_ids"][layer, :, 0]
        ]
        probs = patches["top_probs"][layer, :, 0]
        mesh = _draw_patches(axis, run, record, probs, [_drawn(token, 7) for token in tokens])
        axis.set_title(f"layer {run['layers'][layer]}")
    for axis in axes.flat[len(layers) + 1 :]:
        axis.set_axis_off()
    label, shrink = "probability of the top-1 token", min(0.5, 4 / height)
    figure.colorbar(mesh, ax=axes, label=label, shrink=shrink, pad=0.01)
    return figure


def plot_words(run: dict, record: dict, categories: list[str], layers: list[int]):
    """P(word) per patch of the crop, a row per watched category and a column per position on the
    layer axis, with the annotated boxes. A category that is not annotated is marked so."""
    rows, columns = len(categories), len(layers)
    size = (10, 10.5 / columns * rows)
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=size)
    present = {word["category"] for word in record["words"] if word["present"]}
    for row, category in zip(axes, categories, strict=True):
        probs = lt.word_probability(record, category)
        label = _drawn(category) + ("" if category in present else "\n(not annotated)")
        row[0].set_ylabel(label, parse_math=False)
        for axis, layer in zip(row, layers, strict=True):
            mesh = _draw_patches(axis, run, record, probs[layer])
            axis.set_title(f"layer {run['layers'][layer]}")
    figure.colorbar(mesh, ax=axes, label="P(word)", shrink=0.7, pad=0.01)
    return figure


def _draw_patches(axis, run: dict, record: dict, values: np.ndarray, cells: list[str] = ()):
    """`values` `[grid * grid]` from 0 to 1 over the patches of the crop, with the texts `cells` in
    them and the annotated boxes over them."""
    grid, size = run["grid"], run["image_size"]
    look = {"extent": (0, size, size, 0), "interpolation": "nearest"}
    axis.imshow(open_crop(record).convert("L"), cmap="gray", **look)
    squares = np.reshape(values, (grid, grid))
    mesh = axis.imshow(squares, cmap="viridis", vmin=0, vmax=1, alpha=0.75, **look)
    axis.set(xticks=[], yticks=[])
    for patch, text in enumerate(cells):
        row, column = divmod(patch, grid)
        x, y = (column + 0.5) * size / grid, (row + 0.5) * size / grid
        look = {"fontsize": 5.5 if grid > 12 else 7, "ha": "center", "va": "center"}
        look["color"] = "black" if values[patch] > 0.45 else "white"
        axis.text(x, y, text, parse_math=False, clip_on=True, **look)
    _draw_boxes(axis, record)
    return mesh


def _draw_boxes(axis, record: dict, names: bool = False) -> None:
    """The annotated boxes that lie in the crop, with the names of their categories."""
    for item in record["objects"]:
        x, y, width, height = item["box"]
        if not (width and height):  # outside the crop
            continue
        look = {"fill": False, "edgecolor": ORANGE, "linewidth": 1.5}
        axis.add_patch(matplotlib.patches.Rectangle((x, y), width, height, **look))
        if names:
            look = {"color": ORANGE, "fontsize": 8, "va": "bottom", "clip_on": True}
            look["bbox"] = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
            axis.text(x, y, _drawn(item["category"]), parse_math=False, **look)


# ---- The explorer ------------------------------------------------------------------------------


def save_explorer(path, run: dict, record: dict, prompt: dict) -> Path:
    """Write one self-contained HTML page: hover over a patch or a text token for its top-k at the
    layer of the slider and its top-1 across layers."""
    figure = make_subplots(
        1,
        2,
        column_widths=[0.6, 0.4],
        horizontal_spacing=0.12,
        subplot_titles=["image patches", "text: input token > top-1"],
    )
    inputs = [_as_html(run["tokens"][i]) for i in prompt["token_ids"]]
    _add_heatmaps(figure, run, record, prompt, inputs)
    last = len(run["layers"]) - 1
    figure.data[2 * last].visible = figure.data[2 * last + 1].visible = True
    title = f"{record['name']}: {prompt['question']}", f"answer: {prompt['answer'][:80]}"
    figure.update_layout(
        title="<br>".join(map(html.escape, title)),
        height=max(720, 20 * len(inputs) + 220),
        template="plotly_white",
        sliders=[_layer_slider(run)],
    )
    figure.add_layout_image(
        source=open_crop(record),
        xref="x",
        yref="y",
        x=-0.5,
        y=-0.5,
        sizex=run["grid"],
        sizey=run["grid"],
        sizing="stretch",
        layer="below",
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(visible=False, scaleanchor="x", constrain="domain", row=1, col=1)
    figure.update_yaxes(tickvals=list(range(len(inputs))), ticktext=inputs, row=1, col=2)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True, full_html=True)
    return path


def _add_heatmaps(figure, run: dict, record: dict, prompt: dict, inputs: list[str]) -> None:
    """Two invisible heatmaps per layer: the patches, and the text positions in one column."""
    grid, patches, text = run["grid"], record["patches"], prompt["readings"]
    places = [f"patch row {i // grid + 1}, column {i % grid + 1}" for i in range(grid**2)]
    patch_hover = np.array(_hover_texts(run, patches, places), dtype=object)
    places = [f"position {pos + 1}, input {name}" for pos, name in enumerate(inputs)]
    text_hover = _hover_texts(run, text, places)
    look = {
        "colorscale": "Viridis",
        "zmin": 0,
        "zmax": 1,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "visible": False,
    }
    for layer in range(len(run["layers"])):
        over_patches = go.Heatmap(
            z=patches["top_probs"][layer, :, 0].reshape(grid, grid),
            hovertext=patch_hover[layer].reshape(grid, grid).tolist(),
            opacity=0.6,
            showscale=False,
            **look,
        )
        over_text = go.Heatmap(
            z=text["top_probs"][layer, :, :1],
            hovertext=[[hover] for hover in text_hover[layer]],
            text=[[_as_html(run["tokens"][i])] for i in text["top_ids"][layer, :, 0]],
            texttemplate="%{text}",
            colorbar={"title": "probability"},
            **look,
        )
        figure.add_trace(over_patches, 1, 1)
        figure.add_trace(over_text, 1, 2)


def _layer_slider(run: dict) -> dict:
    """The slider that shows the two heatmaps of one layer and hides all others."""
    n_layers = len(run["layers"])
    steps = [
        {
            "label": label,
            "method": "update",
            "args": [{"visible": [i // 2 == layer for i in range(2 * n_layers)]}],
        }
        for layer, label in enumerate(run["layers"])
    ]
    return {"active": n_layers - 1, "currentvalue": {"prefix": "layer "}, "steps": steps}


def _as_html(token: str) -> str:
    return html.escape(printable(token))


def _hover_texts(run: dict, readings: dict, places: list[str]) -> list[list[str]]:
    """What hovering shows, `[layer][pos]`: the place, its top-k at the layer, and its top-1 across
    layers in short (`▁the emb-4, ▁dog 5-8`)."""
    across = []
    for top_ids in readings["top_ids"][:, :, 0].T:
        spans = []
        for i, span in itertools.groupby(
            zip(top_ids, run["layers"], strict=True), lambda top: top[0]
        ):
            labels = [label for _, label in span]
            layers = "-".join(dict.fromkeys([labels[0], labels[-1]]))
            spans.append(f"{_as_html(run['tokens'][i])} {layers}")
        across.append("<br>".join(textwrap.wrap(", ".join(spans), 90, break_long_words=False)))

    def hover(layer, pos):
        top = zip(readings["top_ids"][layer, pos], readings["top_probs"][layer, pos], strict=True)
        lines = [f"{prob:.3f} {_as_html(run['tokens'][i])}" for i, prob in top]
        place = f"{places[pos]}, layer {run['layers'][layer]}"
        return "<br>".join([place, *lines, f"top-1 across layers: {across[pos]}"])

    return [
        [hover(layer, pos) for pos in range(len(places))] for layer in range(len(run["layers"]))
    ]


# ---- All images --------------------------------------------------------------------------------


def plot_top_tokens(table: pd.DataFrame, run: dict, title: str):
    """Heatmap tokens x layers of the mean probability, from `top_tokens`."""
    figure, axis = plt.subplots(figsize=(10, 0.2 * len(table) + 1))
    # Square-root colours: one token often has most of the probability, the others would be dark.
    look = {"cmap": "viridis", "norm": PowerNorm(0.5, vmin=0)}
    look["cbar_kws"] = {"label": "mean probability (square-root colours)", "pad": 0.01}
    sns.heatmap(table[run["layers"]].to_numpy(), ax=axis, **look)
    labels = [_drawn(token, 16) for token in table["token"]]
    look = {"rotation": 0, "fontsize": 8, "parse_math": False}
    axis.set_yticks(np.arange(len(table)) + 0.5, labels, **look)
    axis.set_xticks(np.arange(len(run["layers"])) + 0.5, run["layers"], rotation=0)
    axis.set(xlabel="layer", ylabel="token", title=title)
    return figure


def _layer_curves(axis, run: dict, curve: pd.DataFrame, by: str, order: list[str]) -> dict:
    """Draw `layer_curve`, a line per group with its band. Returns the colours by group."""
    groups = [group for group in order if group in set(curve[by])]
    colours = dict(zip(groups, sns.color_palette("colorblind"), strict=False))  # it has ten
    look = {"hue": by, "style": by, "hue_order": groups, "style_order": groups, "palette": colours}
    sns.lineplot(curve, x="layer", y="mean", markers=True, errorbar=None, ax=axis, **look)
    for group, rows in curve.dropna(subset="low").groupby(by):
        band = rows["layer"], rows["low"], rows["high"]
        axis.fill_between(*band, color=colours[group], alpha=0.2, linewidth=0)
    _layer_axis(axis, run)
    return colours


def plot_mean_jsd(layers: pd.DataFrame, run: dict, by: str = "segment", bias=None):
    """Mean JSD per layer, both series, per `segment` or, over the prompts' positions, per `kind`,
    with 95 % bands; beside it, where `bias_curve` is given as `bias`, the lens's bias."""
    order = SEGMENTS if by == "segment" else KINDS
    rows = layers if by == "segment" else layers[layers["segment"] == "prompt"]
    titles = {"jsd_prev": "JSD to the previous layer", "jsd_final": "JSD to the last layer"}
    figure, axes = plt.subplots(1, 2 + (bias is not None), figsize=(10, 3.4))
    for axis, (series, title) in zip(axes, titles.items(), strict=False):
        _layer_curves(axis, run, lt.layer_curve(rows, series, by), by, order)
        axis.set(title=title, ylabel=f"mean JSD ({UNIT})", ylim=(0, None))
    if bias is not None:
        curve = bias.rename(columns={"bias": "mean"}).assign(low=np.nan, high=np.nan)
        _layer_curves(axes[2], run, curve, by, order)
        axes[2].get_legend().remove()
        axes[2].set(title="The lens's own bias", ylabel=f"KL to the last layer ({UNIT})")
        axes[2].set_yscale("symlog", linthresh=1)
        axes[2].set_yticks([0, 0.5, 1, 2, 5, 10, 20], ["0", "0.5", "1", "2", "5", "10", "20"])
        axes[2].set_ylim(0, max(1, 1.1 * bias["bias"].max()))
    return figure


def plot_answers(answers: pd.DataFrame, run: dict):
    """Probability and rank of the answer's first word per layer and kind of prompt with 95 % bands;
    dotted, those of the same word with another image instead (a grey one, if there is no other)."""
    curves = lt.answer_curves(answers)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, column in zip(axes, ("probability", "rank"), strict=True):
        colours = _layer_curves(axis, run, curves[column], "kind", KINDS)
        for kind, rows in curves[f"control_{column}"].groupby("kind"):
            axis.plot(rows["layer"], rows["mean"], ":", color=colours[kind])
    axes[0].get_legend().remove()  # the other panel's is the same
    title = "Probability of the answer (dotted: with another image)"
    axes[0].set(title=title, ylabel="mean probability", ylim=(0, 1.02))
    largest = max(curves[column]["mean"].max() for column in ("rank", "control_rank"))
    powers = range(int(np.ceil(largest)) + 1)
    axes[1].set_yticks(powers, [f"{10**power:,}" for power in powers])
    title = "Rank of the answer (1 = top; dotted: with another image)"
    axes[1].set(title=title, ylabel="rank, geometric mean")
    axes[1].invert_yaxis()
    return figure


def plot_settling(answers: pd.DataFrame, run: dict):
    """Layer at which the answer's first word settles, from which it is readable and at which it is
    drawn from the image, per kind of prompt: a point per answer, the median over images and its
    95 % interval (`settling_table`); in blue, the medians for a quarter and three quarters."""
    first, never = lt.first_tokens(lt.whole_words(answers)), lt.layer_numbers(run)[-1] + 1
    titles = {
        "settling_layer": "Settles: top-1 from here on",
        "readable_layer": "Readable: half of its margin",
        "drawn_layer": "Drawn from the image (by odds)",
    }
    spread = ("readable_quarter", "readable_three_quarters")
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True)
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        table = lt.settling_table(answers, column)
        points = {"jitter": 0.25, "size": 4, "alpha": 0.5, "color": "0.5"}
        sns.stripplot(first, x=column, y="kind", order=table.index, ax=axis, **points)
        rows = np.arange(len(table))
        axis.hlines(rows, table["low"], table["high"], color="black", linewidth=2, zorder=3)
        axis.plot(table["median"], rows, "D", color=ORANGE, markersize=7, zorder=4)
        if column == "readable_layer":
            ends = [lt.settling_table(answers, name)["median"] for name in spread]
            axis.hlines(rows + 0.35, *ends, color=BLUE, linewidth=2, zorder=3)
        _layer_axis(axis, run)
        if first[column].max() >= never:
            labels = [label.get_text() for label in axis.get_xticklabels()]
            axis.set_xticks([*axis.get_xticks(), never], [*labels, lt.layer_label(run, never)])
            axis.set_xlim(right=never + 0.5)
        axis.set(ylabel="", title=title)
    return figure


WAYS = {  # of cutting attention: name, colour and marker
    "object": ("text to the object's patches", "#0072b2", "o"),
    "background": ("control: text to as many other patches", "0.35", "X"),
    "image": ("text to all patches", "#009e73", "s"),
    "image_last": ("last position to all patches", "#e69f00", "^"),
    "question_last": ("last position to the question", "#cc79a7", "v"),
}


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


def plot_knockout(table: pd.DataFrame, run: dict):
    """From `knockouts`, a panel per kind of prompt: the mean change of P(answer) by way with 95 %
    bands, over the centres of the windows and, at `all`, for all blocks at once."""
    curves, every = lt.knockout_curves(table), run["n_layers"] + 1
    figure, axes = _panels(list(curves), 2.7, columns=3)
    for axis, curve in zip(axes, curves.values(), strict=True):
        for place, (way, (_, colour, marker)) in enumerate(WAYS.items()):
            rows = curve[curve["way"] == way]
            moved, whole = rows[rows["layer"] < every], rows[rows["layer"] == every]
            look = {"color": colour, "marker": marker, "markersize": 5, "zorder": 9 - place}
            axis.plot(moved["layer"], moved["mean"], linewidth=1.5, **look)
            band = moved["layer"], moved["low"].astype(float), moved["high"].astype(float)
            axis.fill_between(*band, color=colour, alpha=0.2, linewidth=0)
            x = whole["layer"] * (1.06 + 0.025 * place)  # side by side
            axis.vlines(x, whole["low"], whole["high"], color=colour, alpha=0.4, linewidth=3)
            axis.plot(x, whole["mean"], linestyle="", **look)
        ticks = _layer_ticks(run)[1:]  # a block makes a layer, and none makes the first
        axis.set_xticks([*ticks, 1.11 * every], [*ticks, "all"])
        axis.axvline(every, color=GREY, linewidth=1, linestyle=":")
        axis.set(xlim=(0, 1.2 * every), xlabel="centre of the window (block)")
    for axis in figure.axes[:: axes[0].get_gridspec().ncols]:
        axis.set_ylabel("mean change of P(answer)")
    lines = [
        plt.Line2D([], [], color=colour, marker=marker, label=name)
        for name, colour, marker in WAYS.values()
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def plot_used(table: pd.DataFrame, answers: pd.DataFrame, run: dict):
    """From `readable_and_used`, a panel per kind of prompt and in it a point per answer: the centre
    of the window in which it uses its object against the layer from which it is readable; titled by
    the median lead of use (`median_lead`)."""
    used, never = lt.readable_and_used(table, answers, run), run["n_layers"] + 1
    kinds = [kind for kind in KINDS if kind in set(used["kind"])]
    figure, axes = _panels(kinds, 2.4, columns=4)
    shift = np.random.default_rng(0).uniform(-0.3, 0.3, (2, len(used)))  # many are the same
    used = used.assign(x=used["used"] + shift[0], y=used["readable"] + shift[1])
    for axis, kind in zip(axes, kinds, strict=True):
        rows = used[used["kind"] == kind]
        axis.plot([0, never], [0, never], color=GREY, linewidth=1, linestyle=":")
        axis.plot(rows["x"], rows["y"], "o", color=BLUE, alpha=0.45, markersize=4)
        axis.plot(rows["used"].median(), rows["readable"].median(), "D", color=ORANGE)
        _layer_axis(axis, run)
        ticks = [tick for tick in axis.get_xticks() if tick < 0.95 * never] + [never]
        axis.set_yticks(ticks, [lt.layer_label(run, tick) for tick in ticks])
        axis.set(xlabel="used: centre of the window", ylim=(-0.5, never + 0.5))
        lead, (low, high), p = lt.median_lead(rows)
        tested = "" if np.isnan(low) else f" ({low:g} to {high:g}), p = {p:.1g}"
        axis.set_title(f"{kind}, {len(rows)} answers\nlead {lead:g}{tested}", fontsize=9)
    axes[0].set_ylabel("readable from layer")
    return figure


def plot_grounding(table: pd.DataFrame, layers: pd.DataFrame, run: dict):
    """From `grounding` and `layers` of `tabulate`, per layer with 95 % bands: AUROC of P(word)
    inside against outside the boxes, and the share of an object's patches whose top-1 token is its
    word, each by size of the object and for the controls."""
    curves = lt.grounding_curves(table, layers)
    order = [lt.ALL_SIZES, *lt.SIZES, lt.ABSENT_WORDS, lt.OTHER_BOXES, lt.NO_WORD]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, column in zip(axes, ("auroc", "named"), strict=True):
        _layer_curves(axis, run, curves[column], "size", order)
        axis.set_ylim(0, 1.02)
    handles, labels = axes[1].get_legend_handles_labels()
    for axis in axes:
        axis.get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    axes[0].axhline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes[0].set(title="P(word) inside against outside its boxes", ylabel="AUROC (0.5 = chance)")
    title = "Patches whose top-1 token is their object's word"
    axes[1].set(title=title, ylabel="share of the patches")
    return figure


def plot_gallery(results: Results, table: pd.DataFrame, layer: int, n: int = 3):
    """P(word) at a layer number over the crop, with the category's boxes, for the `n` best and the
    `n` worst cases of `grounding` at that layer, each of another image."""
    best, worst = lt.best_and_worst(table, layer, n)
    size = (10, 22.0 / max(3, len(best)))
    figure, axes = plt.subplots(2, len(best), squeeze=False, figsize=size)
    for row, cases, name in zip(axes, (best, worst), ("best", "worst"), strict=True):
        for axis in row[len(cases) :]:
            axis.set_axis_off()
        for axis, case in zip(row, cases.itertuples(), strict=False):
            _draw_case(axis, results, case, layer, name)
    return figure


def _draw_case(axis, results: Results, case, layer: int, name: str) -> None:
    """One picture of the gallery; `case` is a row of `grounding`."""
    run, record = results.run, results.record(case.image)
    (position,) = lt.layer_positions(run, [layer])
    probs = lt.word_probability(record, case.category)[position]
    objects = [item for item in record["objects"] if item["category"] == case.category]
    _draw_patches(axis, run, {**record, "objects": objects}, probs / probs.max())
    control = f"control {case.auroc_other_image:.2f}"
    if np.isnan(case.auroc_other_image):
        control = "no control"
    title = (
        f"{name}: {_drawn(case.category)}, AUROC {case.auroc:.2f} ({control})\n"
        f"P at most {probs.max():.2g}, {_drawn(case.image, 24)}"
    )
    axis.set_title(title, fontsize=9, parse_math=False)


def plot_presence(table: pd.DataFrame):
    """ROC curves of the confidence and of the constant per category (`category_confidence`) for
    present against absent categories, and the model's own answers (`presence_answers`) as a
    point with 95 % intervals."""

    def label(text, rows, column="confidence"):
        return f"{text}: AUROC {with_interval(*lt.presence_areas(rows)[column], '{:.2f}'.format)}"

    figure, axis = plt.subplots(figsize=(5.6, 5.2))
    whole = label("largest P(word) in the patches", table)
    axis.plot(*lt.roc_curve(table, "confidence"), color=BLUE, label=whole)
    asked = lt.presence_answers(table)
    if asked["present"].nunique() == 2:
        curve, text = lt.roc_curve(asked, "confidence"), "the same, only those asked about"
        axis.plot(*curve, "--", color=BLUE, label=label(text, asked))
    blind = label("a constant per category", table, "frequency")
    axis.plot(*lt.roc_curve(table, "frequency"), color="0.35", linewidth=1, label=blind)
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance")
    if asked["present"].nunique() == 2:
        row = lt.presence_table(table).loc["all"]
        x, y = 1 - row["specificity"], row["sensitivity"]
        bars = {
            "xerr": [[x - (1 - row["specificity_high"])], [1 - row["specificity_low"] - x]],
            "yerr": [[y - row["sensitivity_low"]], [row["sensitivity_high"] - y]],
        }
        look = {"color": ORANGE, "markersize": 8, "clip_on": False, "zorder": 3, "capsize": 3}
        axis.errorbar(x, y, fmt="D", **bars, **look, label='answers to "Is there a ...?"')
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axis.set_xlabel("share of absent categories taken for present")
    axis.set_ylabel("share of present categories found")
    axis.legend(fontsize=8, loc="lower right")
    return figure
