"""Tables to sentences: the written report. Every number is computed from the results."""

import itertools
from functools import partial
from math import comb

import numpy as np
import pandas as pd

from llava_lens.analysis.answers import controls_table, pieces_note, right_and_wrong, settling_table
from llava_lens.analysis.curves import bias_curve, first_tokens, per_image, whole_words
from llava_lens.analysis.report_image import _where, report_grounding, report_knockout
from llava_lens.analysis.stats import (
    MIN_IMAGES,
    peak_range,
    signed_rank,
    smallest_difference,
    with_interval,
)
from llava_lens.kinds import KINDS
from llava_lens.schema import DEMO_NOTE, SEGMENTS, UNIT, layer_label
from llava_lens.text import (
    as_code,
    count_of,
    interval_ends,
    markdown_section,
    markdown_table,
    number_of_layers,
    one_decimal,
    percent,
    printable,
    two_decimals,
)


def report(run: dict, tables: dict, grounded, confident, cut, mean_probability) -> str:
    """The report: what was asked, when it is readable, in which order, where, and what limits that.

    From `tabulate`, `grounding`, `category_confidence`, `knockouts` and the mean probability
    `[segment, layer, d_vocab]`.
    """
    layers, answers = tables["layers"], tables["answers"]
    first = first_tokens(answers)
    demo = f" {DEMO_NOTE}" if run["model"] == "demo/model" else ""
    sections = [
        f"**What was read.** {count_of(layers['image'].nunique(), 'image')} with "
        f"{count_of(len(first), 'prompt')}, {as_code(run['model'])} in {as_code(run['dtype'])}, "
        f"{run['n_layers']} layers. On the first image the lens at the last layer was "
        f"{run['last_layer_jsd']:.1g} {UNIT} from the model's own distribution.{demo}",
        _when(run, answers),
        markdown_section(
            "**In which order.** Per image, one answer of each kind is compared by the layer at "
            "which it is drawn from the image. The test (Wilcoxon's) is of symmetry about no "
            "difference; an order is claimed only where p < 0.017 (0.05, Bonferroni over three "
            "pairs) both by odds and by probability.",
            order_of_kinds(whole_words(first)),
        ),
        markdown_section(
            "**Taken from where** (attention knockout: within a window of blocks the text may not "
            "look at some patches; first answer token)**.**",
            report_knockout(run, cut, answers),
        ),
        markdown_section("**Where in the image.**", report_grounding(run, grounded, confident)),
        markdown_section("**What limits this.**", _what_limits(run, mean_probability)),
    ]
    return "\n\n".join(section for section in sections if section)


def summary(run: dict, answers: pd.DataFrame, grounded: pd.DataFrame) -> str:
    """The answer to the project's question in a few sentences, as Markdown; `report` has the rest.

    From `answers` of `tabulate` and `grounding`.
    """
    whole, label = whole_words(answers), partial(layer_label, run)
    names = ("readable_layer", "drawn_layer")
    readable, drawn = (settling_table(answers, name) for name in names)
    lines = []
    for kind in filter(set(readable.index).__contains__, COMPARED):
        ends = readable.loc[kind, ["low", "high"]]
        layer = with_interval(readable.loc[kind, "median"], ends, label)
        line = f"Answers about {KINDS[kind].title} are readable from layer {layer} on, in the median of "
        line += count_of(int(readable.loc[kind, "images"]), "image")
        if drawn.loc[kind, "with_column"]:
            ends = drawn.loc[kind, ["low", "high"]]
            layer = with_interval(drawn.loc[kind, "median"], ends, label)
            line += f", and drawn from the image at layer {layer}"
        lines.append(f"{line}.")
    order = [sentence.split(":")[0] for sentence in order_of_kinds(first_tokens(whole))]
    lines += [f"{claim}." for claim in order if claim.startswith("Answers about")] or [
        "No order of colours, objects and their arrangement is shown."
    ]
    if not grounded.empty:
        lines.append(f"{_where(run, grounded)[0].split(':')[0]}.")
    return "\n".join(f"- {line}" for line in lines)


def _when(run: dict, answers: pd.DataFrame) -> str:
    """The table that answers when colours, objects and their arrangement are readable."""
    lines = [
        "**When answers become readable.** *Readable*: the layer from which on half of the last "
        "margin stays, log P of the answer's first word over its best rival's (in brackets, for a "
        "quarter and three quarters). *Drawn from the image*: the layer at which half is there of "
        "what the image adds to the same question after another image, by odds and by "
        "probability; only answers whose odds the image at least doubles. Layers are medians over "
        f"images, with 95 % intervals. {pieces_note(answers)}",
        "",
    ]
    header = ["asked about", "images", "right", "P: image, another, grey", "P above another image"]
    header += ["readable from layer", "drawn from the image at layer"]
    label, rows = partial(layer_label, run), []
    controls = controls_table(answers)
    names = ["readable_layer", "readable_quarter", "readable_three_quarters"]
    names += ["drawn_layer", "drawn_layer_by_probability"]
    half, quarter, more, by_odds, by_probability = (settling_table(answers, name) for name in names)
    for kind in sorted(half.index, key=list(KINDS).index):
        medians = [
            with_interval(table.loc[kind, "median"], table.loc[kind, ["low", "high"]], label)
            for table in (half, by_odds, by_probability)
        ]
        others = (label(table.loc[kind, "median"]) for table in (quarter, more))
        drawn = "on no image"
        if n_drawn := int(by_odds.loc[kind, "with_column"]):
            drawn = f"{medians[1]}; {medians[2]}; on {count_of(n_drawn, 'image')}"
        cells = ["not known", "not known"]
        if kind in controls.index:
            row = controls.loc[kind]
            cells = [
                ", ".join(
                    "-"
                    if np.isnan(row[f"{name}probability"])
                    else two_decimals(row[f"{name}probability"])
                    for name in ("", "other_", "grey_")
                ),
                with_interval(row["gain"], row[["low", "high"]], two_decimals),
            ]
        right = _right(half.loc[kind])
        readable = f"{medians[0]}; [{', '.join(others)}]"
        rows.append(
            [KINDS[kind].title, f"{half.loc[kind, 'images']:.0f}", right, *cells, readable, drawn]
        )
    return "\n".join([*lines, markdown_table(header, rows)])


def _right(row: pd.Series) -> str:
    """`67% (47 to 82%) of 24`, from a row of `settling_table`."""
    if not row["graded"]:
        return "not known"
    share = with_interval(row["right"], interval_ends(row, "right"), percent)
    ungraded = f", {row['not_gradable']:.0f} not gradable" * bool(row["not_gradable"])
    return f"{share} of {row['graded']:.0f}{ungraded}"


COMPARED = [name for name, kind in KINDS.items() if kind.in_order]
LEVEL = 0.05 / comb(len(COMPARED), 2)  # Bonferroni over the pairs
SCALES = {"drawn_layer": "by odds", "drawn_layer_by_probability": "by probability"}


def order_of_kinds(first: pd.DataFrame) -> list[str]:
    """Sentences on which of colour, object and relation is drawn from the image first, from a row
    per prompt with its layers of SCALES.

    Each pair of kinds is compared within the images that have both, the first answer of each that
    has such a layer. Empty for fewer than two kinds.
    """
    if len(set(COMPARED) & set(first["kind"])) < 2:
        return []
    drawn = first.dropna(subset=list(SCALES)).drop_duplicates(["image", "kind"])
    layers = {
        scale: drawn.pivot(index="image", columns="kind", values=scale).reindex(columns=COMPARED)
        for scale in SCALES
    }
    return [
        _order_of_two(*(table[[a, b]].dropna().astype(float) for table in layers.values()))
        for a, b in itertools.combinations(COMPARED, 2)
    ]


def _order_of_two(by_odds: pd.DataFrame, by_probability: pd.DataFrame) -> str:
    """The sentence on two kinds, from their layers `[image, kind]` on both scales."""
    a, b = (KINDS[kind].title for kind in by_odds.columns)
    n, have_both = len(by_odds), "draw both from the image"
    if n < MIN_IMAGES:
        have_both = have_both.replace("draw", "draws", int(n == 1))
        return f"{a.capitalize()} and {b}: {count_of(n, 'image')} {have_both}, too few for a test."
    later = np.stack([(table.iloc[:, 1] - table.iloc[:, 0]) for table in (by_odds, by_probability)])
    p = [signed_rank(each) for each in later]
    # The direction is that of the test: which side has the larger ranks.
    signs = [np.sign(0.5 - signed_rank(each, "greater")) for each in later]
    if signs[0] < 0:
        a, b, later = b, a, -later
    claimed = max(p) < LEVEL and signs[0] == signs[1]
    claim = (
        f"Answers about {a} are drawn from the image before answers about {b}"
        if claimed
        else f"No order is shown between answers about {a} and about {b}"
    )
    by_scale = []
    for each, p_of_scale, scale in zip(later, p, SCALES.values(), strict=True):
        low, middle, high = np.percentile(each, [25, 50, 75])
        quartiles = f"quartiles {one_decimal(low)} and {one_decimal(high)}"
        by_scale.append(f"{number_of_layers(middle)} {scale} ({quartiles}, p = {p_of_scale:.2g})")
    could = max(smallest_difference(each, LEVEL) for each in later)
    return (
        f"{claim}: of {n} images, {a} earlier on {(later[0] > 0).sum()} and later on "
        f"{(later[0] < 0).sum()} by odds; in the median by {' and '.join(by_scale)}. A difference "
        f"of {number_of_layers(could)} on both scales would be found in four of five such samples."
    )


def _what_limits(run: dict, mean_probability: np.ndarray) -> list[str]:
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
            text = f"{name} change most at {at}, by {change.mean().max():.2f} {UNIT}"
        elif len(change) < MIN_IMAGES:
            text = f"{name}: too few images to tell a peak of change"
        end = f"are nowhere more than 0.1 {UNIT} from the output"
        if (distance > 0.1).any():
            far = layer_label(run, distance.index[distance > 0.1].max())
            end = f"are last more than 0.1 {UNIT} from the output at layer {far}"
        sentences.append(f"{text}, and {end}.")
    return "\n".join(f"- {sentence}" for sentence in sentences)


def report_patch_tokens(run: dict, mean: np.ndarray) -> str:
    """The tokens with the largest mean probability over all patches, from that `[layer, d_vocab]`,
    at the middle and the last layer."""
    sentences = []
    for position in (len(mean) // 2, len(mean) - 1):
        probs = mean[position]
        labels = {i: as_code(printable(run["tokens"][i])) for i in np.argsort(-probs)[:6]}
        tokens = ", ".join(f"{label} {probs[i]:.2f}" for i, label in labels.items())
        sentences.append(f"- At layer {run['layers'][position]}: {tokens}.")
    return "\n".join(sentences)


def report_answers(run: dict, answers: pd.DataFrame) -> str:
    """Right and wrong: beside chance, apart from each other, and the first wrong ones."""
    label, kinds = partial(layer_label, run), settling_table(answers)
    rows = []
    for kind in sorted(kinds.index, key=list(KINDS).index):
        row = kinds.loc[kind]
        majority = percent(row["majority"]) if row["graded"] else "-"
        settles = with_interval(row["median"], row[["low", "high"]], label)
        rows.append([KINDS[kind].title, _right(row), _chance(kind, run), majority, settles])
    header = ["asked about", "right", "chance", "always the commonest answer", "settles at layer"]
    parts, apart = [markdown_table(header, rows)], right_and_wrong(answers)
    rows = [
        [
            KINDS[row["kind"]].title,
            "right" if row["right"] else "wrong",
            f"{row['images']:.0f}",
            with_interval(row["readable_layer"], row[["low", "high"]], label),
            with_interval(row["gain"], interval_ends(row, "gain"), two_decimals),
        ]
        for _, row in apart.iterrows()
    ]
    if rows:
        header = [
            "asked about",
            "answers",
            "images",
            "readable from layer",
            "P above another image",
        ]
        parts.append(markdown_table(header, rows))
    return "\n\n".join(filter(None, [*parts, _what_was_wrong(first_tokens(answers))]))


def _chance(kind: str, run: dict) -> str:
    """How often a draw among a kind's possible answers would be right."""
    meanings = set(KINDS[kind].meanings.values())
    n = len(run["categories"]) if kind == "object" else len(meanings)
    return f"{1 / n:.0%}" if n else "-"


def _what_was_wrong(first: pd.DataFrame) -> str:
    graded = first.dropna(subset="right")
    if graded.empty:
        return ""
    wrong = graded[~graded["right"].astype(bool)]
    end = "." if wrong.empty else ":" if len(wrong) <= 5 else ", the first of them:"
    lines = [f"{len(wrong)} of {len(graded)} graded answers are wrong{end}", ""]
    for row in wrong.head(5).itertuples():
        question = as_code(row.question.splitlines()[0])
        answer, truth = as_code(row.answer), as_code(row.truth)
        lines.append(f"- {as_code(row.image)}: {question} Answer {answer}, truth {truth}.")
    return "\n".join(lines)
