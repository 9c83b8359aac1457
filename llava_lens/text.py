"""Printable tokens, numbers and tables as text, and `require`."""

import re

import numpy as np


def require(holds, what: str) -> None:
    """Raise ValueError(what) unless `holds`."""
    if not holds:
        raise ValueError(what)


def check_number(name: str, value, least: int | None = 1) -> None:
    """Raise ValueError unless a parameter is None or a whole number, also NumPy's, from `least`."""
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    fits = value is None or is_whole and (least is None or value >= least)
    bound = "" if least is None else f" of {least} or more"
    require(fits, f"{name} is {value!r}: it must be None or a whole number{bound}.")


def is_text(value) -> bool:
    """Whether `value` is a plain string, is not blank, and can be written as UTF-8."""
    try:
        return type(value) is str and value.strip() != "" and value.encode("utf-8") is not None
    except UnicodeEncodeError:  # half a character, for instance from a file name that is not UTF-8
        return False


def printable(label: str, length: int | None = None, glyphs: frozenset[int] | None = None) -> str:
    """A token label in which every character can be seen, cut to `length`. A blank becomes its code
    point, such as `U+4E2D`, and so does what is not among those of a font, `glyphs`."""

    def seen(char):
        has_glyph = glyphs is None or ord(char) in glyphs
        return char.isprintable() and not char.isspace() and has_glyph

    shown = "".join(char if seen(char) else f"U+{ord(char):04X}" for char in label)
    return shown if length is None or len(shown) <= length else shown[: length - 1] + "…"


def as_code(text: str) -> str:
    """The first 200 characters of any text as code in Markdown and HTML: every special character is
    an entity, so that none is mark-up, mathematics or a tag."""
    text = text if len(text) <= 200 else text[:199] + "…"
    return "<code>" + re.sub(r"[^\w ]|_", lambda match: f"&#{ord(match[0])};", text) + "</code>"


# `z` makes 0 of -0.
def one_decimal(value: float) -> str:
    """`2.5`, or `2` for a whole number."""
    return f"{value:z.1f}".removesuffix(".0")


def two_decimals(value: float) -> str:
    """`0.50`."""
    return f"{value:z.2f}"


def percent(share: float) -> str:
    """`50%` for 0.5."""
    return f"{round(share, 2):z.0%}"


def count_of(number: float, noun: str) -> str:
    """`2.5 layers`, `1 image`."""
    return f"{one_decimal(number)} {noun}{'s' * (one_decimal(number) != '1')}"


def interval_ends(row, name: str) -> np.ndarray:
    """The interval `[2]` of the value `name` in a row of a table."""
    return row[[f"{name}_low", f"{name}_high"]].to_numpy(float)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])
