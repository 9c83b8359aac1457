"""Tables to figures, and the explorer page.

Holds the one style of all figures, a function per figure and the page to hover over. It draws and
computes nothing: statistics come from `lens_tables`, readings from a record. It knows nothing of
models, and of files only where to save a picture or the page.

Rows of heatmaps are positions on the layer axis, the x axis of curves has layer numbers; both are
labelled by `run["layers"]`. In figures a token is drawn in characters that the fonts here have.
"""

import csv
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
from lens_utils import KINDS, SEGMENTS, UNIT, Results, open_crop, printable

__all__ = [
    "use_style", "save_figure", "save_summary", "load_summary",
    "plot_top1", "plot_jsd", "plot_patches", "plot_words", "save_explorer",
    "plot_top_tokens", "plot_mean_jsd", "plot_answers", "plot_settling",
    "plot_grounding", "plot_gallery", "plot_presence",
]  # fmt: skip

# Fonts that can draw what matplotlib's own DejaVu Sans cannot; taken where the machine has them.
WIDE_FONTS = ["Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei"]
WIDE_FONTS += ["Arial Unicode MS", "Microsoft YaHei"]
MOST_POSITIONS, MOST_BOXES = 64, 100  # drawn in one figure
TEXT_COLUMNS = ["image", "kind", "question", "truth", "answer", "token_label", "top1"]
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


def save_summary(path, answers: pd.DataFrame) -> None:
    """Write `answers` of `tabulate` as CSV, to be read by `load_summary`. A text that is empty, or
    that a spreadsheet would take for a formula, gets a leading `'`."""

    def as_cell(text):
        return f"'{text}" if text is not None and text[:1] in ("", *"=+-@'\t\r") else text

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table = answers.assign(**{name: answers[name].map(as_cell) for name in TEXT_COLUMNS})
    table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)


def load_summary(path) -> pd.DataFrame:
    """What `save_summary` wrote."""
    texts = dict.fromkeys(TEXT_COLUMNS, str)
    table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    plain = {name: table[name].str.removeprefix("'") for name in TEXT_COLUMNS}
    return table.assign(**plain)


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
    question = prompt["question"].strip().splitlines()[0]
    return f"{_title_of(question, 70)} \u2192 {_title_of(prompt['answer'], 30)}"


def _title_of(text: str, length: int) -> str:
    """`text` as figures show it, with its spaces, cut to `length`: a long title makes a figure
    wide."""
    shown = " ".join(_drawn(word) for word in text[:1000].split())
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def _last_positions(prompt: dict) -> tuple[dict, str]:
    """A prompt with no more than its last MOST_POSITIONS, and a note of that for the title; of many
    layers with fewer, so that a figure takes seconds."""
    n_pos, n_layers = len(prompt["token_ids"]), len(prompt["readings"]["top_ids"])
    dropped = n_pos - min(MOST_POSITIONS, 4000 // n_layers)
    if dropped <= 0:
        return prompt, " "
    readings = {name: values[:, dropped:] for name, values in prompt["readings"].items()}
    shown = {"token_ids": prompt["token_ids"][dropped:], "n_prompt": prompt["n_prompt"] - dropped}
    note = f" last {n_pos - dropped} of {n_pos:,} positions\n"
    return {**prompt, **shown, "readings": readings}, note


def plot_top1(run: dict, prompt: dict):
    """Heatmap layers x text positions: the lens's top-1 token in each cell, its probability as
    colour."""
    prompt, note = _last_positions(prompt)
    top_ids = prompt["readings"]["top_ids"][:, :, 0]
    cells = np.vectorize(lambda i: _drawn(run["tokens"][i], 9), otypes=[object])(top_ids)
    probs = prompt["readings"]["top_probs"][:, :, 0]
    title = f"Top-1 token per layer and position:{note}{_question_and_answer(prompt)}"
    return _text_heatmap(run, prompt, probs, title, "probability", cells)


def plot_jsd(run: dict, prompt: dict, series: str):
    """Heatmap layers x text positions of `series`: `jsd_prev` (to the previous layer) or
    `jsd_final` (to the last), in bits."""
    prompt, note = _last_positions(prompt)
    other = {"jsd_prev": "the previous layer", "jsd_final": "the last layer"}[series]
    title = f"Jensen-Shannon divergence to {other}:{note}{_question_and_answer(prompt)}"
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
        label = _title_of(category, 30) + ("" if category in present else "\n(not annotated)")
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
    for patch, text in enumerate(cells if grid <= 32 else ()):  # in finer ones none is legible
        row, column = divmod(patch, grid)
        x, y = (column + 0.5) * size / grid, (row + 0.5) * size / grid
        look = {"fontsize": 5.5 if grid > 12 else 7, "ha": "center", "va": "center"}
        look["color"] = "black" if values[patch] > 0.45 else "white"
        axis.text(x, y, text, parse_math=False, clip_on=True, **look)
    _draw_boxes(axis, record)
    return mesh


def _draw_boxes(axis, record: dict, names: bool = False) -> None:
    """The annotated boxes that lie in the crop, of many the largest, with the names of their
    categories."""
    largest = sorted(record["objects"], key=lambda item: -item["box"][2] * item["box"][3])[
        :MOST_BOXES
    ]
    for item in largest:
        x, y, width, height = item["box"]
        if not (width and height):  # outside the crop
            continue
        look = {"fill": False, "edgecolor": ORANGE, "linewidth": 1.5}
        axis.add_patch(matplotlib.patches.Rectangle((x, y), width, height, **look))
        if names:
            look = {"color": ORANGE, "fontsize": 8, "va": "bottom", "clip_on": True}
            look["bbox"] = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
            axis.text(x, y, _title_of(item["category"], 30), parse_math=False, **look)


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


def plot_mean_jsd(layers: pd.DataFrame, run: dict, by: str = "segment"):
    """Mean JSD per layer, both series, per `segment` or, over the prompts' positions, per `kind`,
    with 95 % bands."""
    order = SEGMENTS if by == "segment" else KINDS
    rows = layers if by == "segment" else layers[layers["segment"] == "prompt"]
    titles = {"jsd_prev": "JSD to the previous layer", "jsd_final": "JSD to the last layer"}
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, (series, title) in zip(axes, titles.items(), strict=True):
        _layer_curves(axis, run, lt.layer_curve(rows, series, by), by, order)
        axis.set(title=title, ylabel=f"mean JSD ({UNIT})", ylim=(0, None))
    return figure


def plot_answers(answers: pd.DataFrame, run: dict):
    """Probability and rank of the first answer token per layer and kind of prompt with 95 % bands;
    dotted, those of the same token with a grey image instead."""
    curves = lt.answer_curves(answers)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, column in zip(axes, ("probability", "rank"), strict=True):
        colours = _layer_curves(axis, run, curves[column], "kind", KINDS)
        for kind, rows in curves[f"grey_{column}"].groupby("kind"):
            axis.plot(rows["layer"], rows["mean"], ":", color=colours[kind])
    axes[0].get_legend().remove()  # the other panel's is the same
    title = "Probability of the answer (dotted: with a grey image)"
    axes[0].set(title=title, ylabel="mean probability", ylim=(0, 1.02))
    largest = max(curves[column]["mean"].max() for column in ("rank", "grey_rank"))
    powers = range(int(np.ceil(largest)) + 1)
    axes[1].set_yticks(powers, [f"{10**power:,}" for power in powers])
    title = "Rank of the answer (1 = top; dotted: with a grey image)"
    axes[1].set(title=title, ylabel="rank, geometric mean")
    axes[1].invert_yaxis()
    return figure


def plot_settling(answers: pd.DataFrame, run: dict):
    """Layer at which the first answer token settles and from which it is readable, per kind of
    prompt: a point per answer, the median over images and its 95 % interval (`settling_table`)."""
    first, never = lt.first_tokens(answers), lt.layer_numbers(run)[-1] + 1
    titles = {
        "settling_layer": "Settles: top-1 from here on",
        "readable_layer": "Readable: 90 % of its last probability from here on",
    }
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        table = lt.settling_table(answers, column)
        points = {"jitter": 0.25, "size": 4, "alpha": 0.5, "color": "0.5"}
        sns.stripplot(first, x=column, y="kind", order=table.index, ax=axis, **points)
        rows = np.arange(len(table))
        axis.hlines(rows, table["low"], table["high"], color="black", linewidth=2, zorder=3)
        axis.plot(table["median"], rows, "D", color=ORANGE, markersize=7, zorder=4)
        _layer_axis(axis, run)
        if first[column].max() >= never:
            labels = [label.get_text() for label in axis.get_xticklabels()]
            axis.set_xticks([*axis.get_xticks(), never], [*labels, lt.layer_label(run, never)])
            axis.set_xlim(right=never + 0.5)
        axis.set(ylabel="", title=title)
    return figure


def plot_grounding(table: pd.DataFrame, layers: pd.DataFrame, run: dict):
    """From `grounding` and `layers` of `tabulate`, per layer with 95 % bands: AUROC of P(word)
    inside against outside the boxes, and the share of an object's patches whose top-1 token is its
    word, each by size of the object and for the control."""
    curves = lt.grounding_curves(table, layers)
    order = [lt.ALL_SIZES, *lt.SIZES, lt.OTHER_BOXES, lt.NO_WORD]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, column in zip(axes, ("auroc", "named"), strict=True):
        _layer_curves(axis, run, curves[column], "size", order)
        axis.legend(fontsize=8)
        axis.set_ylim(0, 1.02)
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
        f"{name}: {_title_of(case.category, 30)}, AUROC {case.auroc:.2f} ({control})\n"
        f"P at most {probs.max():.2g}, {_drawn(case.image, 24)}"
    )
    axis.set_title(title, fontsize=9, parse_math=False)


def plot_presence(table: pd.DataFrame):
    """ROC curve of the confidence (`category_confidence`) for present against absent categories,
    and the model's own answers (`presence_answers`) as a point."""

    def label(text, rows, column="confidence"):
        area = lt.with_interval(*lt.presence_auroc(rows, column), "{:.2f}".format)
        return f"{text} {area}"

    figure, axis = plt.subplots(figsize=(5.6, 5.2))
    whole = label("largest P(word) in the patches: AUROC", table)
    axis.plot(*lt.roc_curve(table, "confidence"), color=BLUE, label=whole)
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance")
    asked = lt.presence_answers(table)
    if asked["present"].nunique() == 2:
        curve, text = lt.roc_curve(asked, "confidence"), "the same, only those asked about:"
        axis.plot(*curve, "--", color=BLUE, label=label(text, asked))
        said_yes = asked.groupby("present")["said_yes"].mean()
        look = {"color": ORANGE, "markersize": 8, "clip_on": False, "zorder": 3}
        look["label"] = label('answers to "Is there a ...?":', asked, "said_yes")
        axis.plot(said_yes[False], said_yes[True], "D", **look)
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axis.set_xlabel("share of absent categories taken for present")
    axis.set_ylabel("share of present categories found")
    axis.legend(fontsize=8, loc="lower right")
    return figure
