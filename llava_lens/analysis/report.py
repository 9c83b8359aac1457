"""The written report in Markdown. Every number is computed from the results, but for `THEIRS`."""

from functools import partial

import numpy as np
import pandas as pd

from llava_lens.analysis.causal import LEAST_DIFFERENCE
from llava_lens.analysis.curves import bias_curve, first_tokens, per_image
from llava_lens.analysis.findings import LEVEL, ORDER, OWN, THERE, WINDOW, findings
from llava_lens.analysis.lenses import FINDS, SINKS
from llava_lens.analysis.per_kind import controls_table, settling_table
from llava_lens.analysis.presence import presence_table
from llava_lens.analysis.stats import LEAST_LIKELY, interval, peak_range, with_interval
from llava_lens.kinds import KINDS
from llava_lens.schema import DEMO_NOTE, SEGMENTS, layer_label
from llava_lens.text import (
    as_code,
    count_of,
    interval_ends,
    markdown_table,
    one_decimal,
    percent,
    two_decimals,
)


def summary(run: dict, tables) -> str:
    """The first screen: a table of all kinds of question, and a line per claim."""
    found = findings(run, tables)

    def said(claim):
        return [each["sentence"] for each in found if each["claim"] == claim]

    n = count_of(tables.layers["image"].nunique(), "image")
    prompts = count_of(len(first_tokens(tables.answers)), "prompt")
    demo = f" {DEMO_NOTE}" if run["model"] == "demo/model" else ""
    order = said(ORDER) or ["Not tested: no right answer has a route."]
    windows = said(WINDOW) or ["Not tested: too few images, or attention was not cut."]
    lines = [
        f"**Read**: {n} with {prompts}, {as_code(run['model'])}, {run['n_layers']} layers.{demo}",
        "**Order**: " + " ".join(order),
        "**In the patches**: "
        + (said(OWN) or ["no object is in the images."])[0]
        + ". ".join(["", *said(FINDS), *said(SINKS)]),
        "**Present or absent**: " + " ".join(said(THERE) or ["nothing to compare."]),
        "**Taken from the object's patches** (P(answer) without them falls more than without as "
        "many others, attention cut in some blocks): " + " ".join(windows),
        f"**Not shown**: what the model knows before the lens can read it.{_bias(run, tables)}",
    ]
    lines = [f"- {line.rstrip('.')}." for line in lines]
    return "\n".join([lines[0], "", _kinds_table(run, tables.answers), "", *lines[1:]])


def _kinds_table(run: dict, answers: pd.DataFrame) -> str:
    """A row per kind of question: right answers, what the image adds, and the layers."""
    label = partial(layer_label, run)
    shows = {"leaves_image": label, "handed_over": label, "mediated": two_decimals}
    shows["readable_layer"] = label
    of_columns = {column: settling_table(answers, column) for column in shows}
    shares = ["probability", "other_probability", "grey_probability"]
    kinds = of_columns["readable_layer"]
    controls = controls_table(answers).reindex(index=kinds.index)
    rows = []
    for kind, row in kinds.iterrows():
        majority = percent(row["majority"]) if row["graded"] else "-"
        cells = [f"{row['images']:.0f}", _right_cell(row), _chance(kind, run), majority]
        of_kind = controls.loc[kind]
        cells += ["not known" if np.isnan(of_kind[name]) else two_decimals(of_kind[name])
                  for name in shares]  # fmt: skip
        for column, show in shows.items():
            median = of_columns[column].loc[kind]
            cells.append(with_interval(median["median"], median[["low", "high"]], show))
        rows.append([KINDS[kind].title, *cells])
    header = ["asked about", "images", "right", "chance", "a blind model", "P(answer)"]
    header += ["with another image", "with a grey image", "leaves the image at layer"]
    header += ["handed over at layer", "through the question (0 to 1)", "readable from layer"]
    return markdown_table(header, rows)


def _right_cell(row: pd.Series) -> str:
    """`67% (47% to 82%)`, from a row of `settling_table`."""
    if row["graded"]:
        return with_interval(row["right"], interval_ends(row, "right"), percent)
    return f"{row['not_gradable']:.0f} not gradable" if row["not_gradable"] else "not known"


def _chance(kind: str, run: dict) -> str:
    """How often a draw among a kind's possible answers would be right."""
    meanings = set(KINDS[kind].meanings.values())
    n = KINDS[kind].n_answers or len(meanings)
    n = len(run["categories"]) if KINDS[kind].about_objects else n
    return f"{1 / n:.0%}" if n else "-"


def _bias(run: dict, tables) -> str:
    """Up to which layer the lens has a bias of its own."""
    curve = bias_curve(tables.mean_probability, run)
    bias = curve[curve["segment"] == "prompt"].set_index("layer")["bias"]
    far = bias.index[bias > 1]
    if not len(far):
        return ""
    return (
        f" Up to layer {layer_label(run, far.max())} the lens has a bias of its own, of "
        f"{one_decimal(bias.max())} bits at most: only a difference from a control tells something"
    )


RULES = f"""**Rules.** Layers are medians over images, brackets 95 % intervals. An answer that \
ends below P = {LEAST_LIKELY} is readable nowhere. An order is claimed from right answers, within \
images, where Wilcoxon's test and the sign test have p < {LEVEL:.2g} (0.05, Bonferroni over the \
pairs) and the median differs. It is undecided where only the first has. Each claim was tried on \
made-up data: `docs/claims.md` lists what was planted, and how often the claim erred there."""


def report(run: dict, tables) -> str:
    """What `summary` does not say: the rules of claims, cuts in all blocks, what others measured
    and the procedure."""
    cuts = _cuts(run, tables.knocked)
    title = "**Attention cut in all blocks at once**: the mean change of P(answer).\n\n"
    sections = [RULES, title + cuts if cuts else "", THEIRS, _procedure(run, tables.answers)]
    return "\n\n".join(filter(None, sections))


AT_ONCE = {  # cuts in all blocks, by header
    "image_last": "last position to all patches",
    "question_last": "last position to the question",
    "image": "text to all patches",
}


def _cuts(run: dict, knocked: pd.DataFrame) -> str:
    at_once, rows = knocked[knocked["layer"] > run["n_layers"]], []
    for kind in filter(set(at_once["kind"]).__contains__, KINDS):
        changes = per_image(at_once[at_once["kind"] == kind], "change", "cut")
        cells = [
            with_interval(changes[cut].mean(), interval(changes[cut], "change"), two_decimals)
            for cut in AT_ONCE
        ]
        rows.append([KINDS[kind].title, f"{len(changes)}", *cells])
    return markdown_table(["asked about", "images", *AT_ONCE.values()], rows) if rows else ""


# Not computed: from arXiv 2602.00462 (`paper_plots/data.json` of its repository) and from table 13
# of Salazar et al. (2026).
THEIRS = """**What others measured on LLaVA-1.5-7B** (theirs, with other prompts and measures).
Salazar et al. (2026), "Pathways of Visual Information Flow in Vision-Language Models", change of \
accuracy in points with attention cut in all blocks:

| asked about | accuracy | last to patches | text to patches | last to text |
| --- | --- | --- | --- | --- |
| relations (COCO_two) | 55.2% | -0.9 | -26.1 | -22.7 |
| places (COCO_one) | 46.4% | +0.3 | -21.1 | -19.6 |
| shapes | 100% | -0.5 | -75.5 | -16.5 |

LatentLens (arXiv 2602.00462), share of patches whose logit lens a judge calls interpretable (100 \
patches a layer):

| layer | emb | 1 | 2 | 4 | 8 | 16 | 24 | 30 | 31 |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| share | 13% | 13% | 9% | 11% | 20% | 42% | 71% | 74% | 61% |"""


def _procedure(run: dict, answers: pd.DataFrame) -> str:
    """One line on what was checked and left out."""
    first = first_tokens(answers)
    without, ungraded = first["handed_over"].isna().sum(), settling_table(answers)["not_gradable"]
    n, pieces = len(first), (~first["whole_word"].astype(bool)).sum()
    route = f"No route for {without} of {n} answers (no other image with another answer nearby, or "
    route += f"the two differ by less than {LEAST_DIFFERENCE} logits)"
    return (
        f"**Procedure.** {as_code(run['dtype'])}. On the first image the lens at the last layer "
        f"was {run['last_layer_jsd']:.1g} bits from the model's own distribution. "
        f"{route if run['route_layers'] else 'The route was not read (route = False)'}. "
        f"Not gradable: {ungraded.sum():.0f} answers. Left out of what the lens reads: {pieces} of "
        f"{n} answers, which begin with a piece of a word or a sign. No interval: fewer than 12 "
        "images, or 24 for a change of P."
    )


# ---- Tables under their figures ----------------------------------------------------------------


def report_answers(run: dict, answers: pd.DataFrame) -> str:
    """Right and wrong answers apart, and the first wrong ones."""
    first, label = first_tokens(answers), partial(layer_label, run)
    graded, rows = answers.dropna(subset="right"), []
    for right, name in ((True, "right"), (False, "wrong")):
        alone = graded[graded["right"].eq(right)]
        gains = controls_table(alone)
        for kind, row in settling_table(alone, "readable_layer").iterrows():
            readable = with_interval(row["median"], row[["low", "high"]], label)
            gain = gains.reindex(columns=["gain", "low", "high"]).reindex([kind]).iloc[0]
            gain = with_interval(gain["gain"], gain[["low", "high"]], two_decimals)
            rows.append([KINDS[kind].title, name, f"{row['images']:.0f}", readable, gain])
    header = ["asked about", "answers", "images", "readable from layer", "P above another image"]
    order = [KINDS[kind].title for kind in KINDS]
    rows.sort(key=lambda row: order.index(row[0]))
    return "\n\n".join(filter(None, [markdown_table(header, rows), _what_was_wrong(first)]))


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


def report_changes(run: dict, layers: pd.DataFrame) -> str:
    """Where predictions change most, and from where on they are near the output."""
    rows = []
    for segment in filter(set(layers["segment"]).__contains__, SEGMENTS):
        of_segment = layers[layers["segment"] == segment]
        change = per_image(of_segment, "jsd_prev").dropna(axis=1, how="all")
        distance = per_image(of_segment, "jsd_final").mean()
        peak, numbers = peak_range(change.to_numpy()), change.columns
        where = "no clear peak"
        if peak is not None:
            first, last = (layer_label(run, numbers[at]) for at in peak)
            where = first if first == last else f"some layer from {first} to {last}"
        far = distance.index[distance > 0.1]
        last = layer_label(run, far.max()) if len(far) else "none"
        rows.append([segment, f"{len(change)}", where, two_decimals(change.mean().max()), last])
    header = ["positions", "images", "change most at layer", "by (bits)"]
    return markdown_table([*header, "last layer over 0.1 bits from the output"], rows)


def report_presence(confident: pd.DataFrame) -> str:
    """`presence_table` of `category_confidence`."""
    header = ["absent categories", "images", "AUROC of the largest P(word)", "of a constant"]
    header += ["one category at a time", "says yes to the present", "no to the absent"]
    shows = dict.fromkeys(("confidence", "frequency", "within"), two_decimals)
    shows |= dict.fromkeys(("sensitivity", "specificity"), percent)
    rows = [
        [sampling, f"{row['images']:.0f}"]
        + [with_interval(row[name], interval_ends(row, name), shows[name]) for name in shows]
        for sampling, row in presence_table(confident).iterrows()
    ]
    return markdown_table(header, rows)
