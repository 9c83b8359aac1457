"""Tables to sentences: the written report. Every number is computed from the results."""

from functools import partial

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import first_tokens, whole_words
from llava_lens.analysis.per_kind import controls_table, pieces_note, settling_table
from llava_lens.analysis.report_answers import right_cell
from llava_lens.analysis.report_causal import COMPARED, order_of_kinds, report_knockout
from llava_lens.analysis.report_image import report_grounding, where_in_image
from llava_lens.analysis.report_layers import report_limits
from llava_lens.analysis.stats import with_interval
from llava_lens.kinds import KINDS
from llava_lens.schema import DEMO_NOTE, layer_label
from llava_lens.text import as_code, count_of, markdown_section, markdown_table, two_decimals


def report(run: dict, tables) -> str:
    """The report: what was asked, when it is readable, in which order, where, and what limits that.

    From the `Tables` of `lens_utils.tabulate`.
    """
    layers, answers = tables.layers, tables.answers
    first = first_tokens(answers)
    demo = f" {DEMO_NOTE}" if run["model"] == "demo/model" else ""
    sections = [
        f"**What was read.** {count_of(layers['image'].nunique(), 'image')} with "
        f"{count_of(len(first), 'prompt')}, {as_code(run['model'])} in {as_code(run['dtype'])}, "
        f"{run['n_layers']} layers. On the first image the lens at the last layer was "
        f"{run['last_layer_jsd']:.1g} bits from the model's own distribution.{demo}",
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
            report_knockout(run, tables.knocked, answers),
        ),
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
    whole, lines = whole_words(tables.answers), []
    readable, drawn = (
        settling_table(tables.answers, name) for name in ("readable_layer", "drawn_layer")
    )
    for kind in filter(set(readable.index).__contains__, COMPARED):
        line = f"Answers about {KINDS[kind].title} are readable from layer "
        line += f"{_layer_cell(run, readable.loc[kind])} on, in the median of "
        line += count_of(int(readable.loc[kind, "images"]), "image")
        if drawn.loc[kind, "n_images_with_layer"]:
            line += f", and drawn from the image at layer {_layer_cell(run, drawn.loc[kind])}"
        lines.append(f"{line}.")
    order = [sentence.split(":")[0] for sentence in order_of_kinds(first_tokens(whole))]
    lines += [f"{claim}." for claim in order if claim.startswith("Answers about")] or [
        "No order of colours, objects and their arrangement is shown."
    ]
    if not tables.grounded.empty:
        lines.append(f"{where_in_image(run, tables.grounded)[0].split(':')[0]}.")
    return "\n".join(f"- {line}" for line in lines)


WHEN = (
    "**When answers become readable.** *Readable*: the layer from which on half of the last margin "
    "stays, log P of the answer's first word over its best rival's. *Drawn from the image*: the "
    "layer at which half is there of what the image adds to the same question after another image, "
    "by odds and by probability; only answers whose odds the image at least doubles. Layers are "
    "medians over images, with 95 % intervals. "
)
DRAWN = ("drawn_layer", "drawn_layer_by_probability")


def _when(run: dict, answers: pd.DataFrame) -> str:
    """The table that answers when colours, objects and their arrangement are readable."""
    columns = ("readable_layer", *DRAWN)
    tables = {column: settling_table(answers, column) for column in columns}
    controls = controls_table(answers)
    rows = []
    for kind in sorted(tables["readable_layer"].index, key=list(KINDS).index):
        of_kind = {column: table.loc[kind] for column, table in tables.items()}
        readable, control = of_kind["readable_layer"], None
        if kind in controls.index:
            control = controls.loc[kind]
        rows.append([
            KINDS[kind].title,
            f"{readable['images']:.0f}",
            right_cell(readable),
            _probabilities_cell(control),
            _gain_cell(control),
            _layer_cell(run, readable),
            _drawn_cell(run, *(of_kind[column] for column in DRAWN)),
        ])  # fmt: skip
    header = ["asked about", "images", "right", "P: image, another, grey", "P above another image"]
    header += ["readable from layer", "drawn from the image at layer"]
    return "\n".join([WHEN + pieces_note(answers), "", markdown_table(header, rows)])


def _layer_cell(run: dict, row: pd.Series) -> str:
    """`4 (3 to 4)`, from a row of `settling_table`."""
    return with_interval(row["median"], row[["low", "high"]], partial(layer_label, run))


def _drawn_cell(run: dict, by_odds: pd.Series, by_probability: pd.Series) -> str:
    n_images = int(by_odds["n_images_with_layer"])
    if not n_images:
        return "on no image"
    layers = _layer_cell(run, by_odds), _layer_cell(run, by_probability)
    return f"{'; '.join(layers)}; on {count_of(n_images, 'image')}"


def _probabilities_cell(control: pd.Series | None) -> str:
    """`1.00, 0.16, 0.06`: with the image, another one and a grey one; from `controls_table`."""
    if control is None:
        return "not known"
    shares = (control[f"{name}probability"] for name in ("", "other_", "grey_"))
    return ", ".join("-" if np.isnan(share) else two_decimals(share) for share in shares)


def _gain_cell(control: pd.Series | None) -> str:
    if control is None:
        return "not known"
    return with_interval(control["gain"], control[["low", "high"]], two_decimals)
