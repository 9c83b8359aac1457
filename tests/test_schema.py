"""The format: its page in docs/, and numbers and labels of layers."""

import runpy

import numpy as np
import pytest

from llava_lens import schema
from tests.conftest import ROOT


def test_the_page_of_the_format_is_written_from_the_schema():
    page = runpy.run_path(str(ROOT / "docs/make_format.py"))["format_page"]()
    written = (ROOT / "docs/format.md").read_text(encoding="utf-8")
    assert page == written, "run python docs/make_format.py"


def test_layers_have_numbers_and_labels():
    run = {"layers": ["emb", "3", "6"]}
    assert schema.layer_numbers(run).tolist() == [0, 3, 6]
    labels = [schema.layer_label(run, number) for number in (0, 3, 4.5, 6, 7, np.nan)]
    assert labels == ["emb", "3", "4.5", "6", "never", "not known"]


def test_what_the_weights_are_is_said():
    labels = [schema.weights_label({"dtype": "x", "quantize": how}) for how in (None, "4bit")]
    assert labels == ["x", "x, 4 bit"]


@pytest.mark.parametrize("table", [schema.READINGS, schema.RUN])
def test_bits_stand_beside_the_numbers_that_they_name(table):
    """So that nats can't be had by changing a word."""
    for name, field in table.items():
        if "jsd" in name or name == "entropy":
            assert "bits" in field.meaning
    assert not hasattr(schema, "UNIT")
