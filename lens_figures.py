"""Tables to figures, and the explorer page.

Holds the one style of all figures, a function per figure and the explorer's pages. It draws and
computes nothing: statistics come from `lens_tables`, readings from a record. It knows nothing of
models, and of files only where to save a picture or the page.

Rows of heatmaps are positions on the layer axis, the x axis of curves has layer numbers; both are
labelled by `run["layers"]`. In figures a token is drawn in characters that the fonts here have.
"""

import base64
import gzip
import hashlib
import io
import json
import re
import textwrap
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import matplotlib.patches
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.patheffects import withStroke

import lens_grounding as lg
import lens_tables as lt
from lens_format import KINDS, SEGMENTS, UNIT, is_text, require
from lens_stats import with_interval
from lens_utils import Results, open_crop, printable

__all__ = [
    "use_style", "save_figure",
    "plot_top1", "plot_series", "plot_patches", "plot_words",
    "explorer_names", "save_explorer", "save_explorer_index",
    "plot_top_tokens", "plot_mean_series", "plot_answers", "plot_settling",
    "plot_grounding", "plot_gallery", "plot_presence", "plot_knockout", "plot_used",
]  # fmt: skip

# Fonts that can draw what matplotlib's own DejaVu Sans cannot; taken where the machine has them.
WIDE_FONTS = ["Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei"]
WIDE_FONTS += ["Arial Unicode MS", "Microsoft YaHei"]
MOST_POSITIONS, MOST_BOXES = 64, 100  # drawn in one figure
PANEL_COLUMNS = 14  # token columns that are legible side by side at notebook width
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.6"  # of the colour-blind palette
MARKERS = "osD^vPX*<>"  # by group, as the palette's ten colours
# Over a photograph: what is hardly probable is hardly seen.
OVERLAY = ListedColormap(plt.get_cmap("viridis")(np.linspace(0, 1, 256)), "overlay")
OVERLAY.colors[:, 3] = np.linspace(0, 0.85, 256)
# On a large grid a patch names its token only from this probability on.
LEAST_NAMED = 0.05
SERIES = {  # of a record's readings: title, and label of the axis or colours
    "jsd_prev": ("Jensen-Shannon divergence to the previous layer", f"JSD ({UNIT})"),
    "jsd_final": ("Jensen-Shannon divergence to the last layer", f"JSD ({UNIT})"),
    "entropy": ("Entropy", f"entropy ({UNIT})"),
}

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


def plot_series(run: dict, prompt: dict, series: str):
    """Heatmap layers x text positions of one of SERIES, in bits; the most that JSD can be is 1, and
    entropy log2 of the vocabulary's size."""
    (title, label), (prompt, note) = SERIES[series], _last_positions(prompt)
    most = np.log2(len(run["tokens"])) if series == "entropy" else 1
    title = f"{title}:{note}{_question_and_answer(prompt)}"
    return _text_heatmap(run, prompt, prompt["readings"][series], title, label, most=most)


def _text_heatmap(  # noqa: PLR0913 (what a heatmap shows and says)
    run: dict, prompt: dict, values, title: str, label: str, cells=None, most: float = 1
):
    """Heatmap of `values` `[layer, pos]` from 0 to `most` over the text positions, wrapped into
    panels, with the texts `cells` `[layer, pos]` in it."""
    n_pos, n_layers = len(prompt["token_ids"]), len(run["layers"])
    n_panels = -(-n_pos // PANEL_COLUMNS)
    columns = -(-n_pos // n_panels)  # panels of nearly one width
    height = n_panels * ((0.13 if cells is None else 0.2) * n_layers + 1.2)
    figure, axes = plt.subplots(n_panels, squeeze=False, figsize=(10, height))
    for panel, axis in enumerate(axes[:, 0]):
        positions = np.arange(panel * columns, min((panel + 1) * columns, n_pos))
        look = {"cmap": "viridis", "vmin": 0, "vmax": most, "fmt": ""}
        look["cbar_kws"] = {"label": label, "pad": 0.01}
        look["annot_kws"] = {"size": 7, "parse_math": False}
        annot = False if cells is None else cells[:, positions]
        sns.heatmap(values[:, positions], ax=axis, annot=annot, **look)
        _token_axis(axis, run, prompt, positions)
        ticks = _layer_ticks(run)
        axis.set_yticks(ticks + 0.5, [run["layers"][position] for position in ticks], rotation=0)
        axis.set(xlim=(0, columns), ylim=(0, n_layers), ylabel="layer")
    axes[-1, 0].set_xlabel("input token at the position (bold: the answer, fed back)")
    axes[0, 0].set_title(textwrap.fill(title, 110), parse_math=False)
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
    (without `▁`) in each patch, its probability as colour. On a large grid only tokens of at least
    LEAST_NAMED are named."""
    columns = 2 if run["grid"] > 12 else 3
    rows = -(-(len(layers) + 1) // columns)
    size = (10, rows * 9.8 / columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=size)
    axes[0, 0].imshow(open_crop(record))
    axes[0, 0].set_title("the image as the model saw it")
    _draw_boxes(axes[0, 0], record, names=True)
    patches, norm = record["patches"], LogNorm(0.01, 1, clip=True)
    for axis, layer in zip(axes.flat[1:], layers, strict=False):  # the grid may have more
        tokens = [
            run["tokens"][i].removeprefix("▁") or "▁" for i in patches["top_ids"][layer, :, 0]
        ]
        probs = patches["top_probs"][layer, :, 0]
        least = LEAST_NAMED if run["grid"] > 12 else 0
        cells = [
            _drawn(token, 10) if prob >= least else ""
            for token, prob in zip(tokens, probs, strict=True)
        ]
        mesh = _draw_patches(axis, run, record, probs, norm, cells)
        axis.set_title(f"layer {run['layers'][layer]}")
    for axis in axes.flat:
        axis.set_axis_off()
    bar = {"label": "probability of the top-1 token (0.01 and less: clear)", "shrink": 0.5}
    _colour_bar(figure, mesh, axes, **bar)
    return figure


def plot_words(run: dict, record: dict, categories: list[str], layers: list[int]):
    """P(word) per patch of the crop, a row per watched category and a column per position on the
    layer axis, with the category's boxes. A category that is not annotated is marked so. Each row
    has colours of its own: three powers of ten below its largest probability."""
    size = (10, 10.2 / len(layers) * len(categories))
    figure, axes = plt.subplots(len(categories), len(layers), squeeze=False, figsize=size)
    present = {word["category"] for word in record["words"] if word["present"]}
    for row, category in zip(axes, categories, strict=True):
        probs = lg.word_probability(record, category)
        objects = [item for item in record["objects"] if item["category"] == category]
        label = _title_of(category, 30) + ("" if category in present else "\n(not annotated)")
        row[0].set_ylabel(label, parse_math=False)
        most = probs[layers].max()
        norm = LogNorm(most / 1000, most, clip=True)
        for axis, layer in zip(row, layers, strict=True):
            mesh = _draw_patches(axis, run, {**record, "objects": objects}, probs[layer], norm)
            axis.set_title(f"layer {run['layers'][layer]}")
        _colour_bar(figure, mesh, row, label="P(word)", aspect=12)
    return figure


def _colour_bar(figure, mesh, axes, **look) -> None:
    """The colour bar of an overlay, on the grey of a middling photograph."""
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, format="%.2g", **look)
    bar.ax.set_facecolor(GREY)


def _draw_patches(  # noqa: PLR0913 (what is drawn, on what, in which colours)
    axis, run: dict, record: dict, values: np.ndarray, norm: Normalize, cells: list[str] = ()
):
    """`values` `[grid * grid]` as colours over the patches of the grey crop, with the texts `cells`
    in them and the annotated boxes over them."""
    grid, size = run["grid"], run["image_size"]
    look = {"extent": (0, size, size, 0), "interpolation": "nearest"}
    axis.imshow(open_crop(record).convert("L"), cmap="gray", **look)
    squares = np.reshape(values, (grid, grid))
    mesh = axis.imshow(squares, cmap=OVERLAY, norm=norm, **look)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    for patch, text in enumerate(cells if grid <= 32 else ()):  # in finer ones none is legible
        row, column = divmod(patch, grid)
        x, y = (column + 0.5) * size / grid, (row + 0.5) * size / grid
        # As large as fits: a small grid has patches of 37 points, a letter is 0.7 of its font wide.
        fits = (6 if grid > 12 else 53) / max(len(text), 1)
        look = {"fontsize": np.clip(fits, 5, 8), "ha": "center", "va": "center", "clip_on": True}
        outline = [withStroke(linewidth=1.2, foreground="black")]
        axis.text(x, y, text, color="white", parse_math=False, path_effects=outline, **look)
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


def explorer_names(explorers, image: str, cases: list[str], names: list[str]) -> list[str]:
    """The images that get a page, `image` first: `cases` for "cases", all `names` for "all", those
    named for a list. Raises ValueError for anything else and for a name that is not known."""
    wanted = {"cases": cases, "all": names}.get(explorers) if is_text(explorers) else explorers
    require(
        isinstance(wanted, (list, tuple)) and set(wanted) <= set(names),
        f'explorers is {explorers!r}: it must be "cases", "all" or a list of names of images.',
    )
    return list(dict.fromkeys([image, *wanted]))


def save_explorer(path, run: dict, record: dict) -> Path:
    """Write the explorer of one image with all its prompts: one HTML page that needs no network.

    Probabilities are kept in float16, those of targets and watched words as log2.
    """
    value = {
        **{name: run[name] for name in ("layers", "grid", "image_size", "top_k")},
        "name": _one_line(record["name"]),
        "crop": record["crop"],
        "objects": [
            {"category": _one_line(item["category"]), "box": item["box"]}
            for item in record["objects"]
        ],
        "words": [
            {
                "category": _one_line(word["category"]),
                **{name: word[name] for name in ("present", "token_ids", "log2_probs")},
            }
            for word in record["words"]
        ],
        "patches": _explorer_readings(record["patches"]),
        "prompts": [_explorer_prompt(prompt, run) for prompt in record["prompts"]],
        "tokens": _labels_used(run, record),
    }
    return _write_page(path, value)


def _explorer_prompt(prompt: dict, run: dict) -> dict:
    """What the page shows of a prompt."""
    return {
        **_question_of(prompt, run),
        "n_prompt": prompt["n_prompt"],
        "token_ids": prompt["token_ids"].tolist(),
        "answer_ids": prompt["answer_ids"].tolist(),
        "readings": _explorer_readings(prompt["readings"]),
        "grey": {
            "target_log2": _as_log2(prompt["grey"]["target_prob"]),
            "target_rank": _packed_ids(prompt["grey"]["target_rank"]),
        },
    }


def _question_of(prompt, run: dict) -> dict:
    """Kind, question, its first line, answer, truth and whether the answer is right (None: not
    known, or not gradable), of a prompt or a row of `tabulate`."""
    truth, given = prompt["truth"], (prompt["kind"], prompt["answer"], prompt["truth"])
    return {
        "kind": prompt["kind"],
        "question": _one_line(prompt["question"]),
        "short": _one_line(prompt["question"].strip().splitlines()[0]),
        "answer": _one_line(prompt["answer"]),
        "truth": None if truth is None else _one_line(truth),
        "right": None if truth is None else lt.is_right(*given, run["categories"]),
    }


def _explorer_readings(readings: dict) -> dict:
    return {
        "top_ids": _packed_ids(readings["top_ids"]),
        "top_probs": readings["top_probs"].astype(np.float16),
        "target_log2": _as_log2(readings["target_prob"]),
        "target_rank": _packed_ids(readings["target_rank"]),
    }


def _packed_ids(ids: np.ndarray) -> np.ndarray:
    """Token ids or ranks in 16 bits, of a vocabulary beyond that in 32."""
    return ids.astype(np.promote_types(np.uint16, np.min_scalar_type(int(ids.max()))))


def _as_log2(probs: np.ndarray) -> np.ndarray:
    return np.log2(np.maximum(probs, 2.0**-126)).astype(np.float16)


def _labels_used(run: dict, record: dict) -> dict[int, str]:
    """The labels by token id, of the tokens that occur in the record."""
    readings = [record["patches"], *(prompt["readings"] for prompt in record["prompts"])]
    ids = [reading["top_ids"].ravel() for reading in readings]
    ids += [prompt[name] for prompt in record["prompts"] for name in ("token_ids", "answer_ids")]
    ids += [word["token_ids"] for word in record["words"]]
    return {int(i): printable(run["tokens"][i]) for i in np.unique(np.concatenate(ids))}


def _one_line(text: str) -> str:
    """A text with all its characters to be seen, and without line breaks."""
    return " ".join(map(printable, text.split()))


def save_explorer_index(folder, run: dict, records: Iterable[dict], answers: pd.DataFrame) -> Path:
    """Write `index.html` beside the explorers in `folder`: a card per record with its thumbnail,
    questions, answers and the layer from which they are readable (`answers` of `tabulate`)."""
    first = dict(list(lt.first_tokens(answers).groupby("image")))
    rows = []
    for record in records:
        thumbnail = io.BytesIO()
        open_crop(record).resize((160, 160)).save(thumbnail, "JPEG", quality=80)
        rows.append(
            {
                "name": record["name"],
                "page": (Path(folder) / f"{record['name']}.html").is_file(),
                "thumbnail": np.frombuffer(thumbnail.getvalue(), np.uint8),
                "prompts": [
                    {
                        **_question_of(prompt, run),
                        "prompt": int(prompt["prompt"]),
                        "readable_layer": int(prompt["readable_layer"]),
                        "readable_label": lt.layer_label(run, prompt["readable_layer"]),
                    }
                    for _, prompt in first[record["name"]].iterrows()
                ],
            }
        )
    return _write_page(Path(folder) / "index.html", {"index": rows, "kinds": KINDS})


def _write_page(path, value: dict) -> Path:
    """Fill the template with `value`. Its policy allows the template's script only, by its hash,
    and no request: even a text that broke out could do nothing."""
    template = Path(__file__).with_name("lens_explorer.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = template.replace("SCRIPT_HASH", digest).replace("DATA_HERE", _pack(value))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _pack(value: dict) -> str:
    """`value` as base64 of gzip of a line of JSON and the bytes of its arrays, to which the JSON
    refers by type, first byte and end."""
    arrays = []

    def refer(array: np.ndarray) -> dict:
        start = sum(map(len, arrays))
        arrays.append(array.tobytes())
        return {"array": [array.dtype.name, start, start + len(arrays[-1])]}

    text = json.dumps(value, default=refer, allow_nan=False)
    packed = gzip.compress(b"".join([text.encode(), b"\n", *arrays]), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode()


# ---- All images --------------------------------------------------------------------------------


def plot_top_tokens(table: pd.DataFrame, run: dict, title: str):
    """Heatmap tokens x layers of the mean probability, from `top_tokens`."""
    figure, axis = plt.subplots(figsize=(10, 0.2 * len(table) + 1))
    # Logarithmic, since one token often has most of the probability; down to a flat distribution's.
    values, flat = table[run["layers"]].to_numpy(), 1 / len(run["tokens"])
    look = {"cmap": "viridis", "norm": LogNorm(flat, max(values.max(), 2 * flat), clip=True)}
    look["cbar_kws"] = {"label": f"mean probability (darkest: {flat:.0e} and less)", "pad": 0.01}
    sns.heatmap(values, ax=axis, **look)
    labels = [_drawn(token, 16) for token in table["token"]]
    look = {"rotation": 0, "fontsize": 8, "parse_math": False}
    axis.set_yticks(np.arange(len(table)) + 0.5, labels, **look)
    ticks = _layer_ticks(run)
    axis.set_xticks(ticks + 0.5, [run["layers"][position] for position in ticks], rotation=0)
    axis.set(xlabel="layer", ylabel="token", title=title)
    return figure


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


def plot_mean_series(layers: pd.DataFrame, run: dict, by: str = "segment", bias=None):
    """Mean of each of SERIES per layer, per `segment` or, over the prompts' positions, per `kind`,
    with 95 % bands; and, where `bias_curve` is given as `bias`, the lens's bias."""
    order = SEGMENTS if by == "segment" else KINDS
    rows = layers if by == "segment" else layers[layers["segment"] == "prompt"]
    shape, height = ((1, len(SERIES)), 3.4) if bias is None else ((2, 2), 6)
    figure, axes = plt.subplots(*shape, figsize=(10, height))
    for axis, (series, (title, label)) in zip(axes.flat, SERIES.items(), strict=False):
        _layer_curves(axis, run, lt.layer_curve(rows, series, by), by, order)
        short = title.replace("Jensen-Shannon divergence", "JSD")
        axis.set(title=short, ylabel=f"mean {label}", ylim=(0, None))
    if bias is not None:
        axis, curve = axes[1, 1], bias.rename(columns={"bias": "mean"})
        _layer_curves(axis, run, curve.assign(low=np.nan, high=np.nan), by, order)
        axis.set(title="The lens's own bias", ylabel=f"KL to the last layer ({UNIT})")
        axis.set_yscale("symlog", linthresh=1)
        axis.set_yticks([0, 0.5, 1, 2, 5, 10, 20], ["0", "0.5", "1", "2", "5", "10", "20"])
        axis.set_ylim(0, max(1, 1.1 * curve["mean"].max()))
    _legend_below(figure, axes.flat[1])
    return figure


def plot_answers(answers: pd.DataFrame, run: dict):
    """Probability and rank of the answer's first word per layer and kind of prompt with 95 % bands;
    dotted, those of the same word with another image instead (a grey one, if there is no other)."""
    curves = lt.answer_curves(answers)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    for axis, column in zip(axes, ("probability", "rank"), strict=True):
        _layer_curves(axis, run, curves[column], "kind", KINDS)
        for kind, rows in curves[f"control_{column}"].groupby("kind"):
            axis.plot(rows["layer"], rows["mean"], ":", color=_colour_of(kind, KINDS))
    _legend_below(figure, axes[0])
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
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharex=True, sharey=True)
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        table = lt.settling_table(answers, column)
        points = {"jitter": 0.2, "size": 4, "alpha": 0.5, "color": "0.5"}
        sns.stripplot(first, x=column, y="kind", order=table.index, ax=axis, **points)
        rows = np.arange(len(table)) + 0.38  # under the points, which it would hide
        axis.hlines(rows, table["low"], table["high"], color="black", linewidth=2, zorder=3)
        axis.plot(table["median"], rows, "D", color=ORANGE, markersize=6, zorder=4)
        if column == "readable_layer":
            ends = [lt.settling_table(answers, name)["median"] for name in spread]
            axis.hlines(rows + 0.18, *ends, color=BLUE, linewidth=2, zorder=3)
        _layer_axis(axis, run)
        axis.set(ylabel="", title=title)
    if first[list(titles)].max(axis=None) >= never:
        # In place of the last layer's label, which has no room beside it.
        labels = [label.get_text() for label in axis.get_xticklabels()[:-1]]
        axis.set_xticks([*axis.get_xticks()[:-1], never], [*labels, lt.layer_label(run, never)])
        axis.set_xlim(right=never + 0.5)
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
    curves = lg.grounding_curves(table, layers)
    order = [lg.ALL_SIZES, *lg.SIZES, lg.ABSENT_WORDS, lg.OTHER_BOXES, lg.NO_WORD]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, column in zip(axes, ("auroc", "named"), strict=True):
        _layer_curves(axis, run, curves[column], "size", order)
        axis.set_ylim(0, 1.02)
    _legend_below(figure, axes[1], columns=4)
    axes[0].axhline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes[0].set(title="P(word) inside against outside its boxes", ylabel="AUROC (0.5 = chance)")
    title = "Patches whose top-1 token is their object's word"
    axes[1].set(title=title, ylabel="share of the patches")
    return figure


def plot_gallery(results: Results, table: pd.DataFrame, layer: int, n: int = 3):
    """P(word) at a layer number over the crop, with the category's boxes, for the `n` best and the
    `n` worst cases of `grounding` at that layer, each of another image."""
    best, worst = lg.best_and_worst(table, layer, n)
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
    probs = lg.word_probability(record, case.category)[position]
    objects = [item for item in record["objects"] if item["category"] == case.category]
    norm = LogNorm(probs.max() / 100, probs.max(), clip=True)
    _draw_patches(axis, run, {**record, "objects": objects}, probs, norm)
    control = f"control {case.auroc_other_image:.2f}"
    if np.isnan(case.auroc_other_image):
        control = "no control"
    title = (
        f"{name}: {_title_of(case.category, 30)}, AUROC {case.auroc:.2f} ({control})\n"
        f"P at most {probs.max():.2g}, {_drawn(case.image, 24)}"
    )
    axis.set_title(title, fontsize=9, parse_math=False)


def plot_presence(table: pd.DataFrame):
    """ROC curves of the confidence and of the constant per category (`category_confidence`) for
    present against absent categories, and the model's own answers (`presence_answers`) as a
    point with 95 % intervals."""

    def label(text, rows, column="confidence"):
        return f"{text}: AUROC {with_interval(*lg.presence_areas(rows)[column], '{:.2f}'.format)}"

    figure, axis = plt.subplots(figsize=(5.6, 5.2))
    whole = label("largest P(word) in the patches", table)
    axis.plot(*lg.roc_curve(table, "confidence"), color=BLUE, label=whole)
    asked = lg.presence_answers(table)
    if asked["present"].nunique() == 2:
        curve, text = lg.roc_curve(asked, "confidence"), "the same, only those asked about"
        axis.plot(*curve, "--", color=BLUE, label=label(text, asked))
    blind = label("a constant per category", table, "frequency")
    axis.plot(*lg.roc_curve(table, "frequency"), color="0.35", linewidth=1, label=blind)
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance")
    if asked["present"].nunique() == 2:
        row = lg.presence_table(table).loc["all"]
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
