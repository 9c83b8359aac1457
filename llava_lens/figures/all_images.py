"""Figures over all images."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm

from llava_lens.analysis import grounding, lenses, presence
from llava_lens.analysis.answers import layer_positions
from llava_lens.analysis.causal import knockout_curves, route_curves
from llava_lens.analysis.curves import answer_curves, first_tokens, layer_curve, whole_words
from llava_lens.analysis.per_kind import settling_table
from llava_lens.analysis.stats import with_interval
from llava_lens.figures import style
from llava_lens.figures.one_image import draw_patches, with_boxes_of
from llava_lens.kinds import KINDS
from llava_lens.schema import OF_OBJECTS, SEGMENTS, layer_label, layer_numbers
from llava_lens.store import Results
from llava_lens.text import count_of, printable, two_decimals

# Name, colour and marker of the groups of positions that are patched, and of the cuts.
PATCHED = {
    "image": ("all image patches patched", style.BLUE, "o"),
    "question": ("question patched", style.YELLOW, "^"),
    "last": ("last position patched", "black", "s"),
}
CUTS = {
    "object": ("text to the object's patches", style.BLUE, "o"),
    "background": ("control: text to as many other patches", "0.35", "X"),
    "image": ("text to all patches", style.GREEN, "s"),
    "image_last": ("last position to all patches", style.YELLOW, "^"),
    "question_last": ("last position to the question", style.PURPLE, "v"),
}
# Colour, marker and line of the groups of `grounding_curves`; a lens has one colour.
OF_LENSES = {
    "logit lens": (style.BLUE, "o", "-"),
    "logit lens, absent words": (style.BLUE, "^", "--"),
    "logit lens, another image's boxes": (style.BLUE, "D", ":"),
    lenses.NO_WORD: ("0.35", "x", "-"),
    "embedding lens": (style.ORANGE, "s", "-"),
    "embedding lens, absent words": (style.ORANGE, "v", "--"),
    "embedding lens, another image's boxes": (style.ORANGE, "P", ":"),
}
OF_SIZES = {
    "small": (style.GREEN, "o", "-"),
    "medium": (style.YELLOW, "s", "-"),
    "large": (style.PURPLE, "^", "-"),
}


def plot_route(routes: pd.DataFrame, answers: pd.DataFrame, run: dict):
    """From `routes` and the table of answers, a panel per kind of prompt: the mean effect of each
    patching, and dotted the lens's P(answer) of the same answers. Titles: medians over images."""
    curves, of_image = route_curves(routes), routes.groupby(["kind", "image"])
    medians = of_image[["leaves_image", "handed_over", "mediated"]].mean().astype(float)
    medians = medians.groupby("kind").median()
    asked = routes[["image", "prompt", "kind"]].drop_duplicates()
    read = layer_curve(whole_words(answers.merge(asked)), "probability", "kind")
    figure, axes = style.panels(len(curves), 3, "effect (1: the other image's answer)")
    for axis, (kind, curve) in zip(axes, curves.items(), strict=True):
        leaves, handed, mediated = medians.loc[kind]
        title = f"{kind}, {count_of((asked['kind'] == kind).sum(), 'answer')}\n"
        title += f"leaves image {layer_label(run, leaves)}, handed over {layer_label(run, handed)}"
        axis.set_title(f"{title}, mediated {two_decimals(mediated)}", fontsize=8)
        axis.axhline(0.5, color=style.GREY, linewidth=0.8)
        for patched, (name, color, marker) in PATCHED.items():
            rows = curve[curve["patched"] == patched]
            style.draw_curve(axis, rows, color, marker=marker, label=name)
        rows = read[read["kind"] == kind]
        label = "P(answer) that the lens reads, nothing patched"
        axis.plot(rows["layer"], rows["mean"], ":", color=style.PURPLE, linewidth=1.2, label=label)
        style.layer_axis(axis, run)
    style.legend_below(figure, axes[0], columns=4)
    return figure


def table_of_tokens(top: dict[str, pd.DataFrame]):
    """The ranks of tokens by mean probability, side by side, from a `top_tokens` per segment."""
    table = pd.concat({segment: ranks[["token", "mean"]] for segment, ranks in top.items()}, axis=1)
    shown = table.rename(index=lambda rank: rank + 1).style
    shown = shown.format("{:.2g}".format).set_properties(**{"text-align": "left"})
    tokens = [(segment, "token") for segment in top]
    return shown.format(printable, subset=tokens, escape="html")


def plot_top_tokens(table: pd.DataFrame, run: dict, title: str):
    """Heatmap tokens x layers of the mean probability, from `top_tokens`. Logarithmic, since one
    token often has most of it; down to what a flat distribution has."""
    figure, axis = plt.subplots(figsize=(10, 0.2 * len(table) + 1))
    values, flat = table[run["layers"]].to_numpy(), 1 / len(run["tokens"])
    norm = LogNorm(flat, max(values.max(), 2 * flat), clip=True)
    mesh = axis.imshow(values, norm=norm, aspect="auto", interpolation="nearest")
    label = f"mean probability (darkest: {flat:.0e} and less)"
    figure.colorbar(mesh, ax=axis, label=label, pad=0.01)
    labels, rows = table["token"].map(lambda token: style.drawn(token, 16)), len(table)
    axis.set_yticks(range(rows), labels, fontsize=8, parse_math=False)
    ticks = style.layer_ticks(run)
    axis.set_xticks(ticks, [run["layers"][position] for position in ticks])
    axis.set(xlabel="layer", ylabel="token", title=title)
    return figure


def plot_mean_series(layers: pd.DataFrame, run: dict, by: str = "segment", bias=None):
    """Mean JSD and entropy per layer with 95 % bands, per `segment` or, over the prompts'
    positions, per `kind`; with the table of `bias_curve` as `bias`, the lens's bias too."""
    order = SEGMENTS if by == "segment" else list(KINDS)
    rows = layers if by == "segment" else layers[layers["segment"] == "prompt"]
    shape, height = ((1, 3), 3.4) if bias is None else ((2, 2), 6)
    figure, axes = plt.subplots(*shape, figsize=(10, height))
    for axis, (series, (title, label)) in zip(axes.flat, style.SERIES_TITLES.items(), strict=False):
        style.draw_layer_curves(axis, run, layer_curve(rows, series, by), by, order)
        axis.set(title=title, ylabel=f"mean {label}", ylim=(0, None))
    if bias is not None:
        axis, curve = axes[1, 1], bias.rename(columns={"bias": "mean"})
        style.draw_layer_curves(axis, run, curve.assign(low=np.nan, high=np.nan), by, order)
        axis.set(title="The lens's own bias", ylabel="KL to the last layer (bits)")
        axis.set_yscale("symlog", linthresh=1)
        ticks = [0, 0.5, 1, 2, 5, 10, 20, 50]
        axis.set_yticks(ticks, map(str, ticks))
        axis.set_ylim(0, max(1, 1.1 * curve["mean"].max()))
    style.legend_below(figure, axes.flat[1])
    return figure


def plot_answers(answers: pd.DataFrame, run: dict):
    """Probability and rank of the answer's first word per layer and kind of prompt, with 95 %
    bands. Dotted: the same word with another image, where there is one."""
    curves, order = answer_curves(answers), list(KINDS)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    for axis, column in zip(axes, ("probability", "rank"), strict=True):
        style.draw_layer_curves(axis, run, curves[column], "kind", order)
        for kind, rows in curves[f"other_{column}"].groupby("kind"):
            axis.plot(rows["layer"], rows["mean"], ":", markevery=4, **style.look_of(kind, order))
    style.legend_below(figure, axes[0])
    title = "Probability of the answer (dotted: with another image)"
    axes[0].set(title=title, ylabel="mean probability", ylim=(0, 1.02))
    largest = max(curves[column]["mean"].max() for column in ("rank", "other_rank"))
    powers = range(int(np.ceil(largest)) + 1)
    axes[1].set_yticks(powers, [f"{10**power:,}" for power in powers])
    title = "Rank of the answer (1 = top; dotted: with another image)"
    axes[1].set(title=title, ylabel="rank, geometric mean")
    axes[1].invert_yaxis()
    return figure


def plot_settling(answers: pd.DataFrame, run: dict):
    """Layers at which the answer's first word settles, is readable and is handed over: a point per
    answer, the median over images and its 95 % interval (`settling_table`)."""
    first, never = first_tokens(whole_words(answers)), layer_numbers(run)[-1] + 1
    titles = {
        "settling_layer": "Settles: top-1 from here on",
        "readable_layer": "Readable: half of its margin",
        "handed_over": "Handed over to the last position",
    }
    if first["handed_over"].isna().all():  # the route was not read
        titles.pop("handed_over")
    figure, axes = plt.subplots(1, len(titles), figsize=(10, 3.2), sharex=True, sharey=True)
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(first))  # many are the same
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        table = settling_table(answers, column)
        rows = table.index.get_indexer(first["kind"])
        axis.plot(first[column], rows + jitter, "o", color="0.5", alpha=0.5)
        rows = np.arange(len(table)) + 0.38  # under the points, which it would hide
        axis.hlines(rows, table["low"], table["high"], color="black", linewidth=2, zorder=3)
        point = {"color": style.ORANGE, "markersize": 6, "zorder": 4, "clip_on": False}
        axis.plot(table["value"], rows, "D", **point)
        style.layer_axis(axis, run, with_never=first[list(titles)].max(axis=None) >= never)
        axis.set_title(title)
    axes[0].set_yticks(range(len(table)), table.index)
    axes[0].invert_yaxis()
    return figure


def plot_knockout(table: pd.DataFrame, run: dict):
    """From `knockouts`, a panel per kind of prompt: the mean change of P(answer) by cut with 95 %
    intervals, in windows of blocks at their centres, and in all blocks at once at `all`."""
    curves, every = knockout_curves(table), run["n_layers"] + 1
    cuts = {cut: look for cut, look in CUTS.items() if cut in set(table["cut"])}
    figure, axes = style.panels(len(curves), 2.7, "mean change of P(answer)")
    for axis, (kind, curve) in zip(axes, curves.items(), strict=True):
        for place, (cut, (name, color, marker)) in enumerate(cuts.items()):
            rows = curve[curve["cut"] == cut]
            in_windows, in_all = rows[rows["layer"] < every], rows[rows["layer"] == every]
            points = {"marker": marker, "markersize": 5, "zorder": 9 - place}
            points["linestyle"] = "-" if cut in OF_OBJECTS else ""
            style.draw_curve(axis, in_windows, color, label=name, **points)
            x = in_all["layer"] * (1.06 + 0.05 * place)  # side by side
            axis.vlines(x, in_all["low"], in_all["high"], color=color, alpha=0.4, linewidth=3)
            axis.plot(x, in_all["mean"], color=color, **points)
        # A block makes a layer, and none makes the first.
        ticks = layer_numbers(run)[style.layer_ticks(run)[1:]]
        axis.set_xticks([*ticks, 1.16 * every], [*ticks, "all"])
        axis.axvline(every, color=style.GREY, linewidth=1, linestyle=":")
        axis.axhline(0, color=style.GREY, linewidth=0.8)
        axis.set(title=kind, xlim=(0, 1.32 * every), xlabel="centre of the window (block)")
    style.legend_below(figure, axes[0], columns=3)
    return figure


def plot_grounding(table: pd.DataFrame, layers: pd.DataFrame, run: dict):
    """From `grounded` and `layers` of `tabulate`: AUROC of an object's own word inside against
    outside its boxes, and the share of an object's patches whose top token is its word, with 95 %
    bands. Above both lenses with their controls, below the logit lens by the object's size."""
    curves = lenses.grounding_curves(table, layers)
    figure, (of_lenses, of_sizes) = plt.subplots(2, 2, figsize=(10, 7))
    for row, groups in ((of_lenses, OF_LENSES), (of_sizes, OF_SIZES)):
        for axis, curve in zip(row, curves.values(), strict=True):
            for group in filter(set(curve["size"]).__contains__, groups):
                look = dict(zip(("color", "marker", "linestyle"), groups[group], strict=True))
                style.draw_curve(axis, curve[curve["size"] == group], **look, label=group)
            style.layer_axis(axis, run)
            axis.set(ylim=(0, 1.02), ylabel="share of the patches")
        row[0].axhline(0.5, color=style.GREY, linewidth=1, linestyle=":")
        row[0].set_ylabel("AUROC (0.5 = chance)")
    of_lenses[0].set_title("The own word inside against outside its boxes")
    of_lenses[1].set_title("Patches whose top token is their object's word")
    plt.setp(of_sizes, title="The same for the logit lens, by size of the object")
    of_sizes[1].legend(fontsize=8)
    style.legend_below(figure, of_lenses[1], columns=2)
    return figure


def plot_gallery(results: Results, table: pd.DataFrame, layer: int, n: int = 3):
    """P(word) at a layer number over the crop, with the category's boxes, for the `n` best and the
    `n` worst cases of `grounding` at that layer, each of another image."""
    cases, run = grounding.best_and_worst(table, layer, n), results.run
    (position,) = layer_positions(run, [layer])
    size = (10, 22.0 / max(3, len(cases[0])))
    figure, axes = plt.subplots(2, len(cases[0]), squeeze=False, figsize=size)
    for axis in axes[1, len(cases[1]) :]:
        axis.set_axis_off()
    for row, rows, name in zip(axes, cases, ("best", "worst"), strict=True):
        for axis, case in zip(row, rows.itertuples(), strict=False):
            record = results.record(case.image)
            probs = grounding.word_probability(record, case.category)[position]
            norm = LogNorm(probs.max() / 100, probs.max(), clip=True)
            draw_patches(axis, run, with_boxes_of(record, case.category), probs, norm)
            other = case.auroc_other_image
            control = "no control" if np.isnan(other) else f"control {other:.2f}"
            title = f"{name}: {style.title_of(case.category, 30)}\nAUROC {case.auroc:.2f}"
            title += f" ({control}), P at most {probs.max():.2g}\n{style.drawn(case.image, 30)}"
            axis.set_title(title, fontsize=9, parse_math=False)
    return figure


def plot_presence(table: pd.DataFrame):
    """ROC curves for present against absent categories, from `category_confidence`, and as a point
    with 95 % intervals the model's own answers."""
    figure, axis = plt.subplots(figsize=(5.6, 6.2))
    asked = table.dropna(subset="said_yes")
    curves = {
        "largest P(word) in the patches": (table, "confidence", "-", style.BLUE, 1.5),
        "the same, only those asked about": (asked, "confidence", "--", style.BLUE, 1.5),
        "a constant per category": (table, "frequency", "-", "0.35", 1),
    }
    for name, (rows, column, line, color, width) in curves.items():
        if rows["present"].nunique() == 2:
            area = with_interval(*presence.presence_areas(rows)[column], "{:.2f}".format)
            look = {"color": color, "linewidth": width, "label": f"{name}: AUROC {area}"}
            axis.plot(*presence.roc_curve(rows, column), line, **look)
    axis.plot([0, 1], [0, 1], color=style.GREY, linewidth=1, linestyle=":", label="chance")
    if asked["present"].nunique() == 2:
        row = presence.presence_table(table).loc["all"]
        no, yes = row["specificity"], row["sensitivity"]
        bars = {
            "xerr": [[row["specificity_high"] - no], [no - row["specificity_low"]]],
            "yerr": [[yes - row["sensitivity_low"]], [row["sensitivity_high"] - yes]],
        }
        point = {"color": style.ORANGE, "markersize": 8, "clip_on": False, "zorder": 3}
        label = f'{len(asked)} answers to "Is there a ...?"'
        axis.errorbar(1 - no, yes, fmt="D", **bars, **point, capsize=3, label=label)
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axis.set_xlabel("share of absent categories taken for present")
    axis.set_ylabel("share of present categories found")
    style.legend_below(figure, axis, columns=1)
    return figure
