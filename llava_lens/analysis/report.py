"""The written report in Markdown. Every number is computed from the results."""

import itertools
from functools import partial

import numpy as np
import pandas as pd

from llava_lens.analysis import findings
from llava_lens.analysis.causal import LEAST_DIFFERENCE
from llava_lens.analysis.curves import bias_curve, first_tokens, per_image, split_by_kind
from llava_lens.analysis.lenses import FINDS, SINKS
from llava_lens.analysis.per_kind import controls_table, grades_table
from llava_lens.analysis.presence import presence_table
from llava_lens.analysis.stats import LEAST_LIKELY, MIN_IMAGES, interval, with_interval
from llava_lens.kinds import KINDS
from llava_lens.schema import DEMO_NOTE, SEGMENTS, layer_label, weights_label
from llava_lens.text import as_code, count_of, interval_ends, markdown_table, percent, two_decimals

NO_WINDOW = f"Not tested: attention was not cut, or no kind of question has {MIN_IMAGES} images "
NO_WINDOW += "in which the object is known, is no crowd, and fills at most half of the image."


def summary(run: dict, tables, found: list[dict]) -> str:
    """The first screen, from all `findings`: a table of all kinds of question, a line per claim."""

    def said(*claims):
        sentences = (each["sentence"] for each in found if each["claim"] in claims)
        return " ".join(filter(None, sentences))

    n = count_of(tables.layers["image"].nunique(), "image")
    prompts = count_of(len(first_tokens(tables.answers)), "prompt")
    demo = f" {DEMO_NOTE}" if run["model"] == "demo/model" else ""
    own = next(each["sentence"] for each in found if each["claim"] == findings.OWN)
    by_lens = said(FINDS, SINKS)
    lines = [
        f"**Read**: {n} with {prompts}, {as_code(run['model'])}, {run['n_layers']} layers.{demo}",
        f"**Order**: {said(findings.ORDER)}",
        "**In the patches** (AUROC of P(word) inside the object's boxes against outside): " + own,
        *([f"**By lens**: {by_lens}"] if by_lens else []),
        f"**Present or absent**: {said(findings.THERE)}",
        "**Taken from the object's patches** (how much more P(answer) falls without attention to "
        "them than without attention to as many other patches): "
        + (said(findings.WINDOW) or NO_WINDOW),
        f"**Not shown**: what the model knows before the lens can read it.{_bias(run, tables)}",
    ]
    lines = [f"- {line}" for line in lines]
    return "\n".join([lines[0], "", _kinds_table(run, tables.answers, found), "", *lines[1:]])


LAYERS = {  # columns of the first screen, by column of the answers
    "leaves_image": "leaves the image at layer",
    "handed_over": "handed over at layer",
    "mediated": "through the question (0: not at all, 1: wholly)",
    "settling_layer": "top-1 from layer",
    "readable_layer": "readable from layer",
}


def _kinds_table(run: dict, answers: pd.DataFrame, found: list[dict]) -> str:
    """A row per kind of question: right answers, what the image adds, and the layers."""
    grades, rows = grades_table(answers), []
    controls = controls_table(answers).reindex(grades.index)
    medians = {(each["claim"], each["about"]): each for each in found}
    for kind, row in grades.iterrows():
        cells = [KINDS[kind].title, f"{row['images']:.0f}", _right_cell(row), _chance(kind, run)]
        cells.append(percent(row["majority"]) if row["graded"] else "-")
        for column in ("probability", "other_probability", "grey_probability"):
            share, n = controls.loc[kind, [column, f"n_{column}"]]
            known = f"{two_decimals(share)} ({_fewer(n, row['images'])})".removesuffix(" ()")
            cells.append("not known" if np.isnan(share) else known)
        for column in LAYERS:
            show = two_decimals if column == "mediated" else partial(layer_label, run)
            cells.append(_cell(medians[column, kind], show, row["images"]))
        rows.append(cells)
    header = ["asked about", "images", "right", "chance", "a blind model", "P(answer)"]
    header += ["with another image", "with a grey image", *LAYERS.values()]
    return markdown_table(header, rows)


def _fewer(n: float, n_of_row: float) -> str:
    """`19 images`: how many a cell is of, where its row has more."""
    return count_of(n, "image") if n < n_of_row else ""


def _cell(found: dict, show, n_of_row: float) -> str:
    """The value of a `finding` with its interval."""
    value, *ends = np.array([found[name] for name in ("value", "low", "high")], float)
    return with_interval(value, ends, show, _fewer(found["n"], n_of_row))


def _right_cell(row: pd.Series) -> str:
    """`67% (47% to 82%)`, from a row of `grades_table`, with how many are graded if not all."""
    if row["graded"]:
        fewer = f"of {row['graded']:.0f} graded" if row["graded"] < row["answers"] else ""
        return with_interval(row["right"], interval_ends(row, "right"), percent, fewer)
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
        f" Up to layer {layer_label(run, far.max())} the lens's mean prediction in prompts is over "
        f"1 bit from the last layer's ({count_of(bias.max(), 'bit')} at most). Only a difference "
        "from a control tells something there."
    )


RULES = f"""**Rules.** Layers are medians over images. Brackets have 95 % intervals, and how many \
images a cell is of where its row has more. *Top-1*: from there on the answer's word is the lens's \
most probable one. That can be luck where few answers are possible. *Readable*: from there on it \
keeps half of its final lead in log P over the best other word. That comes late where the last \
layers sharpen. An answer that ends below P = {LEAST_LIKELY} is readable nowhere.

- An order needs Wilcoxon's test and the sign test, on right answers within images, each with \
p < {findings.LEVEL:.2g} (0.05, Bonferroni over the pairs), and a median that differs. The sign \
test leaves out images that don't differ, so an interval can reach 0. Wilcoxon's alone: undecided.
- An own word must be above all three controls. The interval allows for the choice of the layer. \
That of usual places holds too where any word is likelier on any object.
- What is there must be told in both comparisons: over images, and within them.
- A window of blocks needs Wilcoxon's test with p < {findings.MOST_P:.2g} (0.05, Bonferroni over \
the kinds) and an interval above {findings.LEAST_LOSS}. Both allow for the choice of the window. \
One alone: undecided. Kinds of fewer than {MIN_IMAGES} images are not named.

Each claim was tried on made-up data: `docs/claims.md` lists what was planted, and how often it \
erred there."""


def report(run: dict, tables) -> str:
    """What `summary` does not say: the rules of claims, cuts in all blocks, and the procedure."""
    cuts = _cuts(run, tables.knocked)
    title = "**Attention cut in all blocks at once**: the mean change of P(answer). *Last* is the "
    title += "last position of the prompt, *text* all positions after the image.\n\n"
    sections = [RULES, title + cuts if cuts else "", _procedure(run, tables.answers)]
    return "\n\n".join(filter(None, sections))


AT_ONCE = {  # cuts in all blocks, by header
    "image_last": "last to patches",
    "image": "text to patches",
    "question_last": "last to text",
}


def _cuts(run: dict, knocked: pd.DataFrame) -> str:
    at_once, rows = knocked[knocked["layer"] > run["n_layers"]], []
    for kind, of_kind in split_by_kind(at_once).items():
        changes = per_image(of_kind, "change", "cut")
        cells = [
            with_interval(changes[cut].mean(), interval(changes[cut], "change"), two_decimals)
            for cut in AT_ONCE
        ]
        rows.append([KINDS[kind].title, f"{len(changes)}", *cells])
    return markdown_table(["asked about", "images", *AT_ONCE.values()], rows) if rows else ""


def _procedure(run: dict, answers: pd.DataFrame) -> str:
    """One line on what was checked and left out."""
    first = first_tokens(answers)
    without, grades = first["handed_over"].isna().sum(), grades_table(answers).sum()
    n, pieces = count_of(len(first), "answer"), (~first["whole_word"].astype(bool)).sum()
    route = f"The route was read at {len(run['route_layers'])} of {len(run['layers'])} layers. No "
    route += f"route for {without} of {n} (no other image with another answer nearby, or the two "
    route += f"differ by less than {LEAST_DIFFERENCE} logits)"
    return (
        f"**Procedure.** {as_code(weights_label(run))}. On the first image the lens at the last "
        f"layer was {run['last_layer_jsd']:.1g} bits from the model's own distribution. "
        f"{route if run['route_layers'] else 'The route was not read (route = False)'}. "
        f"Answers not gradable: {grades['not_gradable']:.0f} of "
        f"{grades['graded'] + grades['not_gradable']:.0f} with a known truth. Left out of what the "
        f"lens reads: {pieces} of {n}, those that begin with a piece of a word or a sign. No "
        "interval: fewer than 12 images, or 24 for a change of P."
    )


# ---- Tables under their figures ----------------------------------------------------------------


def report_answers(run: dict, answers: pd.DataFrame) -> str:
    """Right and wrong answers apart, and the first wrong ones."""
    rows, kinds = [], split_by_kind(answers).items()
    for (kind, of_kind), right in itertools.product(kinds, (True, False)):
        alone = of_kind[of_kind["right"].eq(right)]
        if alone.empty:
            continue
        n, found = alone["image"].nunique(), findings.measured(alone)
        medians = {each["claim"]: each for each in found}
        readable = _cell(medians["readable_layer"], partial(layer_label, run), n)
        gain = _cell(medians[findings.GAIN], two_decimals, n)
        rows.append([KINDS[kind].title, "right" if right else "wrong", f"{n}", readable, gain])
    if not rows:
        return "Nothing to show: no answer was graded."
    header = ["asked about", "answers", "images", LAYERS["readable_layer"], findings.GAIN]
    wrong = _what_was_wrong(first_tokens(answers))
    return f"{markdown_table(header, rows)}\n\n{wrong}"


def _what_was_wrong(first: pd.DataFrame) -> str:
    graded = first.dropna(subset="right")
    wrong = graded[~graded["right"].astype(bool)]
    first_of_them = " The first five:" * (len(wrong) > 5)
    lines = [f"Wrong answers: {len(wrong)} of {len(graded)} graded.{first_of_them}", ""]
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
        where = findings.peak_layers(run, change.columns, change.to_numpy()) or "no clear peak"
        far = distance.index[distance > 0.1]
        last = layer_label(run, far.max()) if len(far) else "none"
        rows.append([segment, f"{len(change)}", where, two_decimals(change.mean().max()), last])
    header = ["positions", "images", "change most at", "by (bits)"]
    return markdown_table([*header, "last layer over 0.1 bits from the output"], rows)


PRESENCE = {  # columns of `presence_table`: header, and how a share is written
    "confidence": ("AUROC of the largest P(word)", two_decimals),
    "frequency": ("of a constant per category", two_decimals),
    "within": ("one category at a time", two_decimals),
    "sensitivity": ("says yes to the present", percent),
    "specificity": ("no to the absent", percent),
}


def report_presence(confident: pd.DataFrame) -> str:
    """`presence_table` of `category_confidence`."""
    rows = []
    for sampling, row in presence_table(confident).iterrows():
        cells = [sampling, f"{row['images']:.0f}"]
        for name, (_, show) in PRESENCE.items():
            fewer = _fewer(row.get(f"{name}_n", np.nan), row["images"])
            cells.append(with_interval(row[name], interval_ends(row, name), show, fewer))
        rows.append(cells)
    header = ["absent categories", "images", *(title for title, _ in PRESENCE.values())]
    return markdown_table(header, rows)
