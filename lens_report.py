"""Tables to sentences: the written report, in which every number is computed from the results.

A sentence claims something only where an interval or a test allows it; `tests/simulate_report.py`
plants truths and counts how often each claim is made where it is true and where it is not. It knows
nothing of records, models or figures. All functions return Markdown, in which no text from the
results is mark-up.
"""

import itertools
import re
from functools import partial

import numpy as np
import pandas as pd

import lens_grounding as lg
import lens_tables as lt
from lens_format import (
    DEMO_NOTE,
    KINDS,
    OF_OBJECTS,
    SEGMENTS,
    UNIT,
)
from lens_stats import (
    MIN_IMAGES,
    interval,
    peak_range,
    signed_rank,
    smallest_difference,
    with_interval,
)
from lens_utils import printable

__all__ = [
    "as_code", "summary", "report", "order_of_kinds", "report_grounding", "window_of_use",
    "report_knockout",
    "report_changes", "report_patch_tokens", "report_answers", "report_presence",
    "report_categories",
]  # fmt: skip

# In the order of the project's question.
ABOUT = {
    "colour": "colours", "object": "objects", "relation": "the arrangement of objects",
    "presence": "presence", "description": "the whole image", "own": "own prompts",
}  # fmt: skip

# ---- Numbers as text ---------------------------------------------------------------------------


def as_code(text: str) -> str:
    """The start of any text as code in Markdown and HTML: every special character is an entity, so
    that none is mark-up, mathematics or a tag."""
    text = text if len(text) <= 200 else text[:199] + "…"
    return "<code>" + re.sub(r"[^\w ]|_", lambda match: f"&#{ord(match[0])};", text) + "</code>"


def _number(value: float) -> str:
    """With one decimal, where there is one."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")  # not -0


def _percent(share: float) -> str:
    return f"{round(share, 2) + 0.0:.0%}"  # not -0%


def _two(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # not -0.00


def _layers(value: float) -> str:
    return f"{_number(value)} layer{'s' * (_number(value) != '1')}"


def _count(number: int, noun: str) -> str:
    return f"{number:.0f} {noun}{'s' * (number != 1)}"


def _ends(row, name: str) -> np.ndarray:
    """The interval of a column."""
    return row[[f"{name}_low", f"{name}_high"]].to_numpy(float)


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def _section(title: str, sentences: list[str]) -> str:
    return "\n".join([title, "", *(f"- {line}" for line in sentences)]) if sentences else ""


# ---- The report: the answer to the question ----------------------------------------------------


def report(run: dict, tables: dict, grounded, confident, cut, mean_probability) -> str:
    """The report: what was asked, when it is readable, in which order, where, and what limits that.

    From `tabulate`, `grounding`, `category_confidence`, `knockouts` and the mean probability
    `[segment, layer, d_vocab]`.
    """
    layers, answers = tables["layers"], tables["answers"]
    first = lt.first_tokens(answers)
    demo = f" {DEMO_NOTE}" if run["model"] == "demo/model" else ""
    sections = [
        f"**What was read.** {_count(layers['image'].nunique(), 'image')} with "
        f"{_count(len(first), 'prompt')}, {as_code(run['model'])} in {as_code(run['dtype'])}, "
        f"{run['n_layers']} layers. On the first image the lens at the last layer was "
        f"{run['last_layer_jsd']:.1g} {UNIT} from the model's own distribution.{demo}",
        _when(run, answers),
        _section(
            "**In which order.** Per image, one answer of each kind is compared by the layer at "
            "which it is drawn from the image. The test (Wilcoxon's) is of symmetry about no "
            "difference; an order is claimed only where p < 0.017 (0.05, Bonferroni over three "
            "pairs) both by odds and by probability.",
            order_of_kinds(lt.whole_words(first)),
        ),
        _section(
            "**Taken from where** (attention knockout: within a window of blocks the text may not "
            "look at some patches; first answer token)**.**",
            report_knockout(run, cut, answers),
        ),
        _section("**Where in the image.**", report_grounding(run, grounded, confident)),
        _section("**What limits this.**", _what_limits(run, mean_probability)),
    ]
    return "\n\n".join(section for section in sections if section)


def summary(run: dict, answers: pd.DataFrame, grounded: pd.DataFrame) -> str:
    """The answer to the project's question in a few sentences, as Markdown; `report` has the rest.

    From `answers` of `tabulate` and `grounding`.
    """
    whole, label = lt.whole_words(answers), partial(lt.layer_label, run)
    names = ("readable_layer", "drawn_layer")
    readable, drawn = (lt.settling_table(answers, name) for name in names)
    lines = []
    for kind in filter(set(readable.index).__contains__, COMPARED):
        ends = readable.loc[kind, ["low", "high"]]
        layer = with_interval(readable.loc[kind, "median"], ends, label)
        line = f"Answers about {ABOUT[kind]} are readable from layer {layer} on, in the median of "
        line += _count(int(readable.loc[kind, "images"]), "image")
        if drawn.loc[kind, "with_column"]:
            ends = drawn.loc[kind, ["low", "high"]]
            layer = with_interval(drawn.loc[kind, "median"], ends, label)
            line += f", and drawn from the image at layer {layer}"
        lines.append(f"{line}.")
    order = [sentence.split(":")[0] for sentence in order_of_kinds(lt.first_tokens(whole))]
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
        f"images, with 95 % intervals. {lt.pieces_note(answers)}",
        "",
    ]
    header = ["asked about", "images", "right", "P: image, another, grey", "P above another image"]
    header += ["readable from layer", "drawn from the image at layer"]
    label, rows = partial(lt.layer_label, run), []
    controls = lt.controls_table(answers)
    names = ["readable_layer", "readable_quarter", "readable_three_quarters"]
    names += ["drawn_layer", "drawn_layer_by_probability"]
    half, quarter, more, by_odds, by_probability = (
        lt.settling_table(answers, name) for name in names
    )
    for kind in sorted(half.index, key=list(ABOUT).index):
        medians = [
            with_interval(table.loc[kind, "median"], table.loc[kind, ["low", "high"]], label)
            for table in (half, by_odds, by_probability)
        ]
        others = (label(table.loc[kind, "median"]) for table in (quarter, more))
        drawn = "on no image"
        if n_drawn := int(by_odds.loc[kind, "with_column"]):
            drawn = f"{medians[1]}; {medians[2]}; on {_count(n_drawn, 'image')}"
        cells = ["not known", "not known"]
        if kind in controls.index:
            row = controls.loc[kind]
            cells = [
                ", ".join(
                    "-" if np.isnan(row[f"{name}probability"]) else _two(row[f"{name}probability"])
                    for name in ("", "other_", "grey_")
                ),
                with_interval(row["gain"], row[["low", "high"]], _two),
            ]
        right = _right(half.loc[kind])
        readable = f"{medians[0]}; [{', '.join(others)}]"
        rows.append(
            [ABOUT[kind], f"{half.loc[kind, 'images']:.0f}", right, *cells, readable, drawn]
        )
    return "\n".join([*lines, _table(header, rows)])


def _right(row: pd.Series) -> str:
    """`67% (47 to 82%) of 24`, from a row of `settling_table`."""
    if not row["graded"]:
        return "not known"
    share = with_interval(row["right"], _ends(row, "right"), _percent)
    ungraded = f", {row['not_gradable']:.0f} not gradable" * bool(row["not_gradable"])
    return f"{share} of {row['graded']:.0f}{ungraded}"


LEVEL = 0.05 / 3  # Bonferroni over three pairs
COMPARED = ("colour", "object", "relation")
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
    a, b = (ABOUT[kind] for kind in by_odds.columns)
    n, have_both = len(by_odds), "draw both from the image"
    if n < MIN_IMAGES:
        have_both = have_both.replace("draw", "draws", int(n == 1))
        return f"{a.capitalize()} and {b}: {_count(n, 'image')} {have_both}, too few for a test."
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
        quartiles = f"quartiles {_number(low)} and {_number(high)}"
        by_scale.append(f"{_layers(middle)} {scale} ({quartiles}, p = {p_of_scale:.2g})")
    could = max(smallest_difference(each, LEVEL) for each in later)
    return (
        f"{claim}: of {n} images, {a} earlier on {(later[0] > 0).sum()} and later on "
        f"{(later[0] < 0).sum()} by odds; in the median by {' and '.join(by_scale)}. A difference "
        f"of {_layers(could)} on both scales would be found in four of five such samples."
    )


def _what_limits(run: dict, mean_probability: np.ndarray) -> list[str]:
    sentences = []
    curve = lt.bias_curve(mean_probability, run)
    of_prompt = curve[curve["segment"] == "prompt"].set_index("layer")["bias"]
    far = of_prompt.index[of_prompt > 1]
    if len(far):
        sentences.append(
            "The lens has a bias of its own: over the prompt's positions its mean distribution is "
            f"more than 1 bit (Kullback-Leibler) from the last layer's up to layer "
            f"{lt.layer_label(run, far.max())}, and {_number(of_prompt.max())} bits at most. A "
            "token read there may be what the lens reads from anything: only a difference from a "
            "control at the same layer tells something, and what can't be read may be there."
        )
    return sentences


# ---- Where in the image ------------------------------------------------------------------------


def report_grounding(run: dict, grounded: pd.DataFrame, confident: pd.DataFrame) -> list[str]:
    """What `grounding` and `category_confidence` tell, as sentences."""
    lines = [] if grounded.empty else _where(run, grounded)
    if confident["present"].nunique() == 2:
        lines.append(_present(lg.presence_table(confident).loc["all"]))
    return lines or ["Nothing to report: no annotated object lies in a part of the images."]


def _where(run: dict, grounded: pd.DataFrame) -> list[str]:
    controls = {
        "absent": ("An object's own word marks its patches more than words of absent categories "
                   "do", "absent words in the same boxes"),
        "other_image": ("An object's word is read where the object is, not only where its category "
                        "usually is", "the own word in the boxes of the same category in another "
                        "image"),
    }  # fmt: skip
    lines = [
        _above_control(run, grounded, f"auroc_{control}", *texts)
        for control, texts in controls.items()
    ]
    named = lt.per_image(grounded, "named").mean()
    most = named.idxmax()
    if not named.max():
        return [*lines, "No patch's top-1 token is its object's word, at any layer."]
    absent = lt.per_image(grounded, "named_absent")[most].mean()
    beside = "" if np.isnan(absent) else f", an absent category's on {_percent(absent)}"
    return [
        *lines,
        f"Of an object's patches, the top-1 token is its word on {_percent(named[most])} at layer "
        f"{lt.layer_label(run, most)}, where that is most{beside}.",
    ]


def _above_control(run: dict, grounded: pd.DataFrame, control: str, claim: str, what: str) -> str:
    """The sentence that compares AUROCs with a control of `grounding`, at the layer at which they
    differ most; the interval allows for that choice."""
    known = grounded.dropna(subset=control)
    if known.empty:
        return f"There are no {what} to compare with."
    own, other = (lt.per_image(known, column).to_numpy() for column in ("auroc", control))
    above = own - other
    best = above.mean(axis=0).argmax()
    low, high = interval(above, n_chosen_from=above.shape[1])[:, best]
    difference = with_interval(above[:, best].mean(), (low, high), _two)
    if not low > 0:
        claim = f"Not shown: {claim[0].lower()}{claim[1:]}"
    layer = lt.layer_label(run, lt.layer_numbers(run)[best])
    return (
        f"{claim}: at layer {layer}, where the difference is largest, P(word) has inside against "
        "outside its boxes a mean AUROC of "
        f"{_two(own[:, best].mean())}, {what} have {_two(other[:, best].mean())}, "
        f"{difference} less on {_count(len(above), 'image')} (interval for all layers at once)."
    )


def _present(row: pd.Series) -> str:
    within = with_interval(row["within"], _ends(row, "within"), _two)
    known = row["within_low"] > 0.5
    claim = (
        "The patches tell whether a category is there"
        if known
        else "Not shown: the patches tell whether a category is there"
    )
    text = (
        f"{claim}: images with it from images without it by the largest P(word), one category at a "
        f"time, with an AUROC of {within}. Over all categories it is "
        f"{with_interval(row['confidence'], _ends(row, 'confidence'), _two)}, and for a constant "
        f"per category, how many images of the other half have it, {_two(row['frequency'])}."
    )
    if row["asked"]:
        yes, no = (
            with_interval(row[name], _ends(row, name), _percent)
            for name in ("sensitivity", "specificity")
        )
        text += f" Asked, the model says yes to {yes} of the present and no to {no} of the absent."
    return text


# ---- Attention knockout ------------------------------------------------------------------------

MOST_P = 0.05 / 4  # Bonferroni over the four kinds that have objects
LEAST_LOSS = 0.01  # of P, more than the control's: what is less can be sure and of no interest


def report_knockout(run: dict, table: pd.DataFrame, answers: pd.DataFrame) -> list[str]:
    """Where answers are taken from their objects' patches, as sentences, from `knockouts` and
    `answers` of `tabulate`; a kind of fewer than MIN_IMAGES images is left out.

    Which window is named is up to `window_of_use`.
    """
    with_control = table[table["way"].isin(OF_OBJECTS)]
    return [
        line
        for kind in KINDS
        if (line := _where_taken(run, kind, with_control[with_control["kind"] == kind], answers))
    ]


def window_of_use(own: np.ndarray, control: np.ndarray) -> tuple[int | None, float]:
    """The number of the window in which answers are taken from their object's patches, None where
    that is not sure, and p; from the changes `[image, window]` for these patches and the control's.

    It is the one in which the means differ most. Sure is it if an image's largest loss over the
    windows is larger for the object's patches than for the control's (Wilcoxon's signed-rank test,
    one-sided), and if the difference's `interval` in that window lies above LEAST_LOSS.
    """
    p, more = signed_rank(control.min(axis=1) - own.min(axis=1), "greater"), control - own
    best = int(more.mean(axis=0).argmax())
    is_sure = p < MOST_P and interval(more[:, best])[0] > LEAST_LOSS
    return best if is_sure else None, p


def _where_taken(run: dict, kind: str, table: pd.DataFrame, answers: pd.DataFrame) -> str:
    if table["image"].nunique() < MIN_IMAGES:
        return ""
    own, control = (lt.changes_by_window(table, run, way).to_numpy() for way in OF_OBJECTS)
    best, p = window_of_use(own, control)
    on = f"Asked about {ABOUT[kind]}, {len(own)} images"
    if best is None:
        return (
            f"{on}: no window of blocks is found in which P(answer) surely falls by {LEAST_LOSS} "
            f"more without the object's patches than without as many other patches (p = {p:.2g})."
        )
    windows, peak = run["knockout_windows"], peak_range(control - own)
    where = "{} to {}".format(*windows[best])
    if peak is None:
        where += " (no window stands out)"
    elif peak[0] != peak[1]:
        where += f" (some window from block {windows[peak[0]][0]} to {windows[peak[1]][1]})"
    losses = (-changes[:, best] for changes in (own, control))
    by, by_control = (
        with_interval(loss.mean(), interval(loss).clip(-1, 1), _two) for loss in losses
    )
    return (
        f"{on}: without the object's patches P(answer) falls most in blocks {where}, by {by}, and "
        f"without as many other patches by {by_control} (p = {p:.2g})."
        f"{_before_readable(table, answers, run)}"
    )


def _before_readable(table: pd.DataFrame, answers: pd.DataFrame, run: dict) -> str:
    """The sentence on `readable_and_used` of one kind; empty for too few images."""
    used = lt.readable_and_used(table, answers, run)
    n_images, (middle, ends, p) = used["image"].nunique(), lt.median_lead(used)
    if n_images < MIN_IMAGES:
        return ""
    order = "before" if middle > 0 else "after"
    if p >= MOST_P or middle == 0:
        order = "in no sure order to"
    by = with_interval(middle, ends, _number)
    return (
        f" That window lies {order} the layer from which the answer is readable, by {by} layers "
        f"from its centre in the median of {n_images} images whose answer falls more than any "
        f"control's changes (p = {p:.2g})."
    )


# ---- Tables under their figures ----------------------------------------------------------------


def report_changes(run: dict, layers: pd.DataFrame) -> str:
    """Where predictions change most, from `layers` of `tabulate`."""
    sentences = []
    for segment in filter(set(layers["segment"]).__contains__, SEGMENTS):
        of_segment = layers[layers["segment"] == segment]
        change = lt.per_image(of_segment, "jsd_prev").dropna(axis=1, how="all")
        distance = lt.per_image(of_segment, "jsd_final").mean()
        name = f"{segment.capitalize()} positions"
        if segment == "answer":
            name = "Positions of the answer's own tokens (about what follows them)"
        peak, numbers = peak_range(change.to_numpy()), change.columns
        text = f"{name} have no clear peak of change"
        if peak is not None:
            first, last = (lt.layer_label(run, numbers[at]) for at in peak)
            at = f"layer {first}" if first == last else f"some layer from {first} to {last}"
            text = f"{name} change most at {at}, by {change.mean().max():.2f} {UNIT}"
        elif len(change) < MIN_IMAGES:
            text = f"{name}: too few images to tell a peak of change"
        end = f"are nowhere more than 0.1 {UNIT} from the output"
        if (distance > 0.1).any():
            far = lt.layer_label(run, distance.index[distance > 0.1].max())
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
    label, kinds = partial(lt.layer_label, run), lt.settling_table(answers)
    rows = []
    for kind in sorted(kinds.index, key=list(ABOUT).index):
        row = kinds.loc[kind]
        majority = _percent(row["majority"]) if row["graded"] else "-"
        settles = with_interval(row["median"], row[["low", "high"]], label)
        rows.append([ABOUT[kind], _right(row), _chance(kind, run), majority, settles])
    header = ["asked about", "right", "chance", "always the commonest answer", "settles at layer"]
    parts, apart = [_table(header, rows)], lt.right_and_wrong(answers)
    rows = [
        [
            ABOUT[row["kind"]],
            "right" if row["right"] else "wrong",
            f"{row['images']:.0f}",
            with_interval(row["readable_layer"], row[["low", "high"]], label),
            with_interval(row["gain"], _ends(row, "gain"), _two),
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
        parts.append(_table(header, rows))
    return "\n\n".join(filter(None, [*parts, _what_was_wrong(lt.first_tokens(answers))]))


def _chance(kind: str, run: dict) -> str:
    """How often a draw among a kind's possible answers would be right."""
    meanings = set(lt.MEANINGS.get(kind, {}).values())
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


def report_presence(confident: pd.DataFrame) -> str:
    """`presence_table` of `category_confidence`."""
    header = ["absent categories", "images", "AUROC of the largest P(word)", "of a constant"]
    header += ["one category at a time", "says yes to the present", "no to the absent"]
    rows = [
        [
            way,
            f"{row['images']:.0f}",
            *(with_interval(row[name], _ends(row, name), _two) for name in
              ("confidence", "frequency", "within")),
            *(with_interval(row[name], _ends(row, name), _percent) for name in
              ("sensitivity", "specificity")),
        ]
        for way, row in lg.presence_table(confident).iterrows()
    ]  # fmt: skip
    return _table(header, rows)


def report_categories(table: pd.DataFrame, n: int = 10) -> str:
    """The `n` first and the `n` last rows of `categories_table`."""
    shown = table if len(table) <= 2 * n else pd.concat([table.head(n), table.tail(n)])
    header = ["category", "images", "AUROC in its boxes", "above absent words", "answers right"]
    rows = [
        [
            as_code(category),
            f"{row['images']:.0f}",
            _two(row["auroc"]),
            "not known" if np.isnan(row["above_absent"]) else _two(row["above_absent"]),
            f"{_percent(row['right'])} of {row['graded']:.0f}" if row["graded"] else "-",
        ]
        for category, row in shown.iterrows()
    ]
    return _table(header, rows)
