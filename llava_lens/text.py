"""Printable tokens, numbers and tables as text, and `require`."""

import re

import numpy as np


def require(holds, what: str) -> None:
    """Raise ValueError(what) unless `holds`."""
    if not holds:
        raise ValueError(what)


def is_text(value) -> bool:
    """Whether `value` is a plain text that is not blank and can be written to any file."""
    try:
        return type(value) is str and value.strip() != "" and value.encode("utf-8") is not None
    except UnicodeEncodeError:  # half a character, from a file name that is not UTF-8 for instance
        return False


def printable(label: str, length: int | None = None, glyphs: frozenset[int] | None = None) -> str:
    """A token label in which every character can be seen, cut to `length`.

    What is blank, or not among the code points `glyphs` that can be drawn (None: all can), becomes
    `U+4E2D`.
    """

    def seen(char):
        has_glyph = glyphs is None or ord(char) in glyphs
        return char.isprintable() and not char.isspace() and has_glyph

    shown = "".join(char if seen(char) else f"U+{ord(char):04X}" for char in label)
    return shown if length is None or len(shown) <= length else shown[: length - 1] + "…"


def as_code(text: str) -> str:
    """The start of any text as code in Markdown and HTML: every special character is an entity, so
    that none is mark-up, mathematics or a tag."""
    text = text if len(text) <= 200 else text[:199] + "…"
    return "<code>" + re.sub(r"[^\w ]|_", lambda match: f"&#{ord(match[0])};", text) + "</code>"


def one_decimal(value: float) -> str:
    """With one decimal, where there is one."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")  # not -0


def percent(share: float) -> str:
    return f"{round(share, 2) + 0.0:.0%}"  # not -0%


def two_decimals(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # not -0.00


def number_of_layers(value: float) -> str:
    return f"{one_decimal(value)} layer{'s' * (one_decimal(value) != '1')}"


def count_of(number: int, noun: str) -> str:
    return f"{number:.0f} {noun}{'s' * (number != 1)}"


def interval_ends(row, name: str) -> np.ndarray:
    """The interval of a column."""
    return row[[f"{name}_low", f"{name}_high"]].to_numpy(float)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def markdown_section(title: str, sentences: list[str]) -> str:
    return "\n".join([title, "", *(f"- {line}" for line in sentences)]) if sentences else ""
