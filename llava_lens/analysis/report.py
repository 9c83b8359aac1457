"""Tables to sentences: the written report. Every number is computed from the results."""

from functools import partial

import numpy as np
import pandas as pd

from llava_lens.analysis.causal import LEAST_DIFFERENCE
from llava_lens.analysis.curves import first_tokens
from llava_lens.analysis.per_kind import controls_table, pieces_note, settling_table
from llava_lens.analysis.report_answers import right_cell
from llava_lens.analysis.report_causal import (
    COMPARED,
    LEVEL,
    order_of_kinds,
    report_cuts,
    report_knockout,
)
from llava_lens.analysis.report_image import report_grounding, where_in_image
from llava_lens.analysis.report_layers import report_limits
from llava_lens.analysis.stats import LEAST_LIKELY, with_interval
from llava_lens.kinds import KINDS
from llava_lens.schema import DEMO_NOTE, layer_label
from llava_lens.text import as_code, count_of, markdown_section, markdown_table, two_decimals


def report(run: dict, tables) -> str:
    """The report: what was asked, when it is readable, which way it goes, in which order, where,
    and what limits that; from the `Tables` of `lens_utils.tabulate`."""
    layers, answers = tables.layers, tables.answers
    demo = f" {DEMO_NOTE}" if run["model"] == "demo/model" else ""
    sections = [
        f"**What was read.** {count_of(layers['image'].nunique(), 'image')} with "
        f"{count_of(len(first_tokens(answers)), 'prompt')}, {as_code(run['model'])} in "
        f"{as_code(run['dtype'])}, {run['n_layers']} layers. On the first image the lens at the "
        f"last layer was {run['last_layer_jsd']:.1g} bits from the model's own distribution.{demo}",
        _what_the_image_adds(answers),
        _when(run, answers),
        markdown_section(
            "**In which order.** Kinds are compared within images, by the layer at which right "
            "answers are handed over. Wrong ones are left out, since they can come late. An order "
            f"is claimed where p < {LEVEL:.2g} (Wilcoxon's signed-rank test; 0.05, Bonferroni "
            "over the pairs).",
            order_of_kinds(answers),
        ),
        markdown_section(
            "**Taken from where** (attention knockout: within a window of blocks the text may not "
            "look at some patches)**.**",
            report_knockout(run, tables.knocked),
        ),
        _cuts_in_all_blocks(run, tables.knocked),
        markdown_section(
            "**Where in the image.**", report_grounding(run, tables.grounded, tables.confident)
        ),
        markdown_section("**What limits this.**", report_limits(run, tables.mean_probability)),
    ]
    return "\n\n".join(section for section in sections if section)


def summary(run: dict, tables) -> str:
    """The answer to the project's question in a few sentences, as Markdown; `report` has the rest.

    From the `Tables` of `lens_utils.tabulate`.
    """
    lines, answers = [], tables.answers
    columns = ("readable_layer", "leaves_image", "handed_over")
    readable, leaves, handed = (settling_table(answers, column) for column in columns)
    for kind in filter(set(readable.index).__contains__, COMPARED):
        line = f"Answers about {KINDS[kind].title} "
        if handed.loc[kind, "n_images_with_layer"]:
            line += f"leave the image at layer {_layer_cell(run, leaves.loc[kind])}, are handed to "
            line += f"the last position at layer {_layer_cell(run, handed.loc[kind])}, and "
        line += f"are readable from layer {_layer_cell(run, readable.loc[kind])} on, in the median "
        lines.append(f"{line}of {count_of(int(readable.loc[kind, 'images']), 'image')}.")
    lines.append(_order_in_short(order_of_kinds(answers)))
    if not tables.grounded.empty:
        lines.append(f"{where_in_image(run, tables.grounded)[0].split(':')[0]}.")
    return "\n".join(f"- {line}" for line in lines)


def _order_in_short(sentences: list[str]) -> str:
    claims = [line.split(":")[0] for line in sentences if line.startswith("Answers about")]
    if claims:
        return ". ".join(claims) + "."
    what = "order of colours, objects and their arrangement"
    if any(line.startswith(("No order", "In some")) for line in sentences):
        return f"No {what} is shown."
    return f"The {what} is not tested: too few images have right answers about two of them."


def _what_the_image_adds(answers: pd.DataFrame) -> str:
    """The table of right answers, and of P(answer) beside its controls."""
    graded, rows = settling_table(answers), []
    shares = ["probability", "other_probability", "grey_probability"]
    columns = [*shares, "gain", "low", "high"]
    controls = controls_table(answers).reindex(index=graded.index, columns=columns)
    for kind, control in controls.iterrows():
        cells = [f"{graded.loc[kind, 'images']:.0f}", right_cell(graded.loc[kind])]
        cells += ["not known" if np.isnan(p) else two_decimals(p) for p in control[shares]]
        gain = with_interval(control["gain"], control[["low", "high"]], two_decimals)
        rows.append([KINDS[kind].title, *cells, gain])
    header = ["asked about", "images", "right", "P(answer)", "P with another image"]
    header += ["P with a grey image", "P above another image"]
    title = "**What the image adds.** P of the answer's word at the last layer, means over images."
    return "\n".join([title, "", markdown_table(header, rows)])


WHEN = (
    "**When.** *Leaves the image*: from this layer on, the patches of another image change the "
    "answer by less than a half. *Handed over*: from this layer on, the other image's state at the "
    "last position changes it by more than a half. *Through the question*: the effect of the other "
    "image's states at the question's positions, at all layers at once. Effects are logit "
    "differences: 0 is the own answer, 1 the other image's. *Readable*: from this layer on, the "
    "lens has at least half of the answer's final margin over its best rival. An answer that ends "
    f"below P = {LEAST_LIKELY} is readable nowhere. Medians over images, with 95 % intervals. "
)


def _when(run: dict, answers: pd.DataFrame) -> str:
    """The table that answers when colours, objects and their arrangement are recognised."""
    columns = ("leaves_image", "handed_over", "mediated", "readable_layer")
    leaves, handed, mediated, readable = (settling_table(answers, column) for column in columns)
    rows = [
        [
            KINDS[kind].title,
            f"{handed.loc[kind, 'n_images_with_layer']:.0f}",
            _layer_cell(run, leaves.loc[kind]),
            _layer_cell(run, handed.loc[kind]),
            _median_cell(mediated.loc[kind], two_decimals),
            _layer_cell(run, readable.loc[kind]),
        ]
        for kind in readable.index
    ]
    header = ["asked about", "images with a route", "leaves the image at", "handed over at"]
    header += ["through the question", "readable from"]
    notes = f"{WHEN}{_route_note(run, answers)}{pieces_note(answers)}"
    return "\n".join([notes, "", markdown_table(header, rows)])


def _median_cell(row: pd.Series, show) -> str:
    """`4 (3 to 4)`, from a row of `settling_table`."""
    return with_interval(row["median"], row[["low", "high"]], show)


def _layer_cell(run: dict, row: pd.Series) -> str:
    return _median_cell(row, partial(layer_label, run))


def _route_note(run: dict, answers: pd.DataFrame) -> str:
    """How many prompts have no route, and why."""
    if not run["route_layers"]:
        return "The route was not read (route = False). "
    without = first_tokens(answers)["handed_over"].isna()
    return (
        f"No route: {without.sum()} of {len(without)} answers, since no image nearby gets another "
        f"answer, or since the two differ by less than {LEAST_DIFFERENCE} logits. "
    )


def _cuts_in_all_blocks(run: dict, knocked: pd.DataFrame) -> str:
    table = report_cuts(run, knocked)
    title = "**Cut in all blocks at once**: the mean change of P(answer)."
    return "\n".join([title, "", table]) if table else ""
