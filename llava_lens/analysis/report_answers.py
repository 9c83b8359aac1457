"""The tables of the report about right and wrong answers."""

from functools import partial

import pandas as pd

from llava_lens.analysis.curves import first_tokens
from llava_lens.analysis.per_kind import right_and_wrong, settling_table
from llava_lens.analysis.stats import with_interval
from llava_lens.kinds import KINDS
from llava_lens.schema import layer_label
from llava_lens.text import as_code, interval_ends, markdown_table, percent, two_decimals


def report_answers(run: dict, answers: pd.DataFrame) -> str:
    """Right and wrong: beside chance, apart from each other, and the first wrong ones."""
    label, kinds = partial(layer_label, run), settling_table(answers)
    rows = []
    for kind, row in kinds.iterrows():
        majority = percent(row["majority"]) if row["graded"] else "-"
        settles = with_interval(row["median"], row[["low", "high"]], label)
        rows.append([KINDS[kind].title, right_cell(row), _chance(kind, run), majority, settles])
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
        header = ["asked about", "answers", "images", "readable from layer"]
        header.append("P above another image")
        parts.append(markdown_table(header, rows))
    return "\n\n".join(filter(None, [*parts, _what_was_wrong(first_tokens(answers))]))


def _chance(kind: str, run: dict) -> str:
    """How often a draw among a kind's possible answers would be right."""
    meanings = set(KINDS[kind].meanings.values())
    n = len(run["categories"]) if KINDS[kind].about_objects else len(meanings)
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


def right_cell(row: pd.Series) -> str:
    """`67% (47 to 82%) of 24`, from a row of `settling_table`."""
    if not row["graded"]:
        return "not known"
    share = with_interval(row["right"], interval_ends(row, "right"), percent)
    ungraded = f", {row['not_gradable']:.0f} not gradable" * bool(row["not_gradable"])
    return f"{share} of {row['graded']:.0f}{ungraded}"
