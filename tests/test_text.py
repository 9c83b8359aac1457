"""Text that people read: tokens, strangers' texts, numbers, tables."""

import html
import re

import numpy as np
import pandas as pd

from llava_lens import text


def test_printable():
    assert text.printable("▁dog") == "▁dog" and text.printable("Привет") == "Привет"
    assert text.printable("<0x0A>") == "<0x0A>"
    assert text.printable("\n") == "U+000A" and text.printable("\U000e0001") == "U+E0001"
    assert text.printable("abcdef", 4) == "abc…"
    assert text.printable("a狗", glyphs=frozenset({ord("a")})) == "aU+72D7"


def test_as_code_leaves_no_sign_of_a_markup():
    said = text.as_code("_a_ *b* [c](d) <e> $f$ `g` www.h.org i@j.k")
    letters = re.sub(r"[^\w ]|_", "", html.unescape(said)[6:-7])
    assert re.sub(r"&#\d+;|</?code>", "", said) == letters
    assert not re.search(r"_|\.|@", said)


def test_text_is_what_can_be_written_and_is_not_blank():
    assert text.is_text("a") and text.is_text(" 狗")
    for value in ("", " \n", "half \ud800", 7, None, np.str_("a")):
        assert not text.is_text(value)


def test_numbers_are_rounded_without_a_sign_on_zero():
    assert [text.one_decimal(value) for value in (2.0, 2.55, -0.04)] == ["2", "2.5", "0"]
    assert [text.two_decimals(value) for value in (0.5, -0.004)] == ["0.50", "0.00"]
    assert [text.percent(value) for value in (0.5, 1, -0.001)] == ["50%", "100%", "0%"]


def test_what_is_counted_has_its_plural():
    assert text.count_of(1, "image") == "1 image" and text.count_of(2.0, "image") == "2 images"
    assert text.count_of(1.04, "layer") == "1 layer" and text.count_of(0, "layer") == "0 layers"
    assert text.count_of(2.5, "layer") == "2.5 layers"


def test_tables_are_markdown():
    assert text.markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    row = pd.Series({"gain": 1, "gain_low": 0.5, "gain_high": 2})
    assert text.interval_ends(row, "gain").tolist() == [0.5, 2.0]
