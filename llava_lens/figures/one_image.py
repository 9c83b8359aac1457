"""Figures of one image."""

import textwrap

import matplotlib.patches
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patheffects import withStroke

from llava_lens.analysis.curves import first_tokens
from llava_lens.analysis.grounding import word_probability
from llava_lens.data.crop import open_crop
from llava_lens.figures import style
from llava_lens.words import without_space

MOST_POSITIONS, MOST_BOXES = 64, 100  # drawn in one figure
PANEL_COLUMNS = 11  # token columns that are legible side by side at notebook width
CELL = {"ha": "center", "va": "center", "parse_math": False, "in_layout": False}
# A larger grid is drawn in panels of half the width, and names tokens of this probability only.
LARGE_GRID, LEAST_NAMED = 12, 0.05


def table_of_answers(answers: pd.DataFrame, image: str):
    """The questions of one image with their answers and layers, from `answers_table`, as a styled
    table; at most 50 rows, and of each text the start."""
    names = {"settling_layer": "settles", "readable_layer": "readable", "leaves_image": "leaves"}
    names |= {"handed_over": "handed over"}
    columns = ["prompt", "kind", "question", "answer", "truth", "right", *names, "mediated"]
    rows = first_tokens(answers)[lambda table: table["image"] == image].head(50)[columns]
    rows = rows.map(lambda cell: cell[:500] if type(cell) is str else cell).rename(columns=names)
    styled = rows.style.format(escape="html", precision=0, na_rep="-").hide(axis="index")
    styled = styled.format(precision=2, na_rep="-", subset=["mediated"])
    return styled.set_properties(**{"text-align": "left"})


def large_crop(record: dict):
    """The image as the model saw it, large enough to look at."""
    alt = f"The image {style.drawn(record['name'], 60)} as the model saw it"
    return style.displayed(open_crop(record).resize((336, 336)), alt)


def plot_prompt(run: dict, prompt: dict):
    """Heatmaps layers x text positions of one prompt, the answer's first: the lens's top-1 token,
    coloured by its probability; JSD to the previous and to the last layer, and entropy, in bits.
    Colours end at the largest possible value: 1 for JSD, log2 of the vocabulary for entropy."""
    readings, n_layers = prompt["readings"], len(run["layers"])
    probs, most_bits = readings["top_probs"][:, :, 0], np.log2(len(run["tokens"]))
    panels = [("probability of the top-1 token", probs, 1)]
    for name, (title, _) in style.SERIES_TITLES.items():
        label = textwrap.fill(f"{title} (bits)", 15)
        panels.append((label, readings[name], most_bits if name == "entropy" else 1))
    blocks = _blocks(prompt, n_layers)
    height = len(blocks) * ((0.2 if n_layers <= 12 else 0.14) * n_layers + 0.8) + 1.3
    shape = {"sharey": True, "squeeze": False, "width_ratios": [4.2, 1, 1, 1]}
    figure, axes = plt.subplots(len(blocks), 4, figsize=(10, height), **shape)
    ticks = style.layer_ticks(run)
    for row, (title, positions, width) in zip(axes, blocks, strict=True):
        for axis, (_, values, most) in zip(row, panels, strict=True):
            scale = {"vmin": 0, "vmax": most, "aspect": "auto", "origin": "lower"}
            axis.imshow(values[:, positions], interpolation="nearest", **scale)
            axis.set_xlim(-0.5, width - 0.5)
            _token_axis(axis, run, prompt, positions, slanted=axis is row[0])
        for (layer, column), prob in np.ndenumerate(probs[:, positions]):
            token = run["tokens"][readings["top_ids"][layer, positions[column], 0]]
            # As many letters as a cell has room for; smaller where they are wide ones.
            cell = row[0].text(column, layer, style.drawn(token, 86 // width), **CELL)
            cell.set_fontsize(min(6, 330 / width / max(1, style.width_of(cell.get_text()))))
            cell.set_color("black" if prob > 0.45 else "white")
        row[0].set_yticks(ticks, [run["layers"][position] for position in ticks])
        row[0].set(title=title, ylabel="layer")
    for column, (label, _, _) in enumerate(panels):
        place = {"location": "top", "aspect": 10 if column else 42, "pad": 0.3 / height}
        figure.colorbar(axes[0, column].images[0], ax=axes[:, column], label=label, **place)
    axes[-1, 0].set_xlabel("input token at the position (bold: the answer, fed back)")
    asked = style.title_of(prompt["question"].strip().splitlines()[0], 80)
    asked += f" \u2192 {style.title_of(prompt['answer'], 30)}"
    n_shown, n_pos = sum(len(positions) for _, positions, _ in blocks), len(prompt["token_ids"])
    asked += f"\n{n_shown} of {n_pos:,} positions" if n_shown < n_pos else ""
    points = min(10, 700 / style.width_of(asked))
    figure.suptitle(asked, x=0.01, ha="left", fontsize=points, parse_math=False)
    return figure


def _blocks(prompt: dict, n_layers: int) -> list[tuple[str, np.ndarray, int]]:
    """Rows of panels: title, positions, and the number of columns in the part's widest row."""
    first, n_pos = prompt["n_prompt"] - 1, len(prompt["token_ids"])
    most = min(MOST_POSITIONS, 4000 // n_layers)  # so that a figure takes seconds
    answer = np.arange(first, n_pos)[:most]
    question = np.arange(max(0, first + len(answer) - most), first)
    titles = {
        "Top-1 token where the answer is read: the prompt's last position, then its own": answer,
        "Top-1 token at the question's positions": question,
    }
    blocks = []
    for title, part in titles.items():
        rows = np.array_split(part, max(1, -(-len(part) // PANEL_COLUMNS)))
        blocks += [(title, row, len(rows[0])) for row in rows if len(row)]
    return blocks


def _token_axis(axis, run: dict, prompt: dict, positions: np.ndarray, slanted: bool) -> None:
    """Name the columns by their input tokens, the answer's in bold."""
    labels = [style.drawn(run["tokens"][prompt["token_ids"][pos]], 10) for pos in positions]
    look = {"rotation": 90, "fontsize": 6}
    if slanted:
        look = {"rotation": 40, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}
    axis.set_xticks(np.arange(len(positions)), labels, parse_math=False, **look)
    for tick, pos in zip(axis.get_xticklabels(), positions, strict=True):
        tick.set_fontweight("bold" if pos >= prompt["n_prompt"] else "normal")


def plot_patches(run: dict, record: dict, layers: list[int]):
    """The crop with its boxes, then per position on the layer axis `layers` the lens's top-1 token
    (without `▁`) in each patch, its probability as colour."""
    columns, least = (3, 0) if max(run["grid"]) <= LARGE_GRID else (2, LEAST_NAMED)
    rows = -(-(len(layers) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(10, rows * 9.8 / columns))
    axes[0, 0].imshow(open_crop(record))
    axes[0, 0].set_title("the image as the model saw it")
    _draw_boxes(axes[0, 0], record, names=True)
    norm = LogNorm(0.01, 1, clip=True)
    for axis, layer in zip(axes.flat[1:], layers, strict=False):  # there may be more axes
        ids, probs = (record["patches"][name][layer, :, 0] for name in ("top_ids", "top_probs"))
        mesh = draw_patches(axis, run, record, probs, norm, patch_words(run, ids, probs, least))
        axis.set_title(f"layer {run['layers'][layer]}")
    for axis in axes.flat:
        axis.set_axis_off()
    label = "probability of the top-1 token (0.01 and less: clear)"
    _colour_bar(figure, mesh, axes, label=label, shrink=0.5)
    return figure


def patch_words(run: dict, ids, probs, least: float) -> list[str]:
    """What stands in the patches: their tokens `ids` `[patch]` that have at least the probability
    `least`. A long word takes two lines, or it would lie over the next patch's word."""
    finest = max(run["grid"])
    room = max(1, (60 if finest <= LARGE_GRID else 96) // finest)
    words = [style.drawn(without_space(run["tokens"][i]), 2 * room) for i in ids]
    lines = [textwrap.fill(word, room, break_on_hyphens=False) for word in words]
    return [word * bool(prob >= least) for word, prob in zip(lines, probs, strict=True)]


def plot_words(run: dict, record: dict, categories: list[str], layers: list[int]):
    """P(word) per patch of the crop and the category's boxes: a row per watched category, a column
    per position on the layer axis. Each row's colours span three powers of ten."""
    size = (10, 10.2 / max(3, len(layers)) * len(categories))
    figure, axes = plt.subplots(len(categories), len(layers), squeeze=False, figsize=size)
    present = {word["category"] for word in record["words"] if word["present"]}
    for row, category in zip(axes, categories, strict=True):
        probs = word_probability(record, category)
        label = style.title_of(category, 24) + ("" if category in present else "\n(not annotated)")
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
    bar.ax.set_facecolor(style.GREY)  # of a middling photograph, over which the colours lie


def with_boxes_of(record: dict, category: str) -> dict:
    """The record with the objects of one category only."""
    return {**record, "objects": [o for o in record["objects"] if o["category"] == category]}


def draw_patches(axis, run: dict, record: dict, values, norm: Normalize, cells: list[str] = ()):
    """`values` `[patch]` as colours over the grey crop, the texts `cells` in them, and boxes."""
    (rows, columns), size = run["grid"], run["image_size"]
    placed = {"extent": (0, size, size, 0), "interpolation": "nearest"}
    axis.imshow(open_crop(record).convert("L"), cmap="gray", **placed)
    mesh = axis.imshow(np.reshape(values, (rows, columns)), cmap=style.OVERLAY, norm=norm, **placed)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    look = {"color": "white", "path_effects": [withStroke(linewidth=1.2, foreground="black")]}
    look |= {"ha": "center", "va": "center", "clip_on": True, "parse_math": False}
    finest = max(rows, columns)
    room = 0.8 * (214 if finest <= LARGE_GRID else 321) / finest  # of a patch in points
    for patch, text in enumerate(cells if finest <= 32 else ()):  # in finer ones none is legible
        row, column = divmod(patch, columns)
        points = np.clip(room / max(style.width_of(text), 1 + text.count("\n")), 4, 8)
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
        line = {"fill": False, "edgecolor": style.ORANGE, "linewidth": 1.5}
        line["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]  # seen on any grey
        axis.add_patch(matplotlib.patches.Rectangle((x, y), width, height, **line))
        if names:
            size, name = axis.get_xlim()[1], style.title_of(item["category"], 30)
            at, side = (x + width, "right") if x > size / 2 else (x, "left")  # within the picture
            label = {"color": style.ORANGE, "fontsize": 8, "va": "bottom", "clip_on": True}
            label["bbox"] = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
            axis.text(at, max(y, size / 15), name, ha=side, parse_math=False, **label)
