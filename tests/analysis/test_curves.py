"""Tables to curves over layers."""

import numpy as np
import pytest
import scipy.stats

from llava_lens import schema
from llava_lens.analysis import curves


def test_the_lens_s_bias_against_scipy(run, tables):
    curve = curves.bias_curve(tables.mean_probability, run).set_index(["segment", "layer"])["bias"]
    for segment, distributions in zip(schema.SEGMENTS, tables.mean_probability, strict=True):
        for layer, distribution in enumerate(distributions):
            expected = scipy.stats.entropy(distributions[-1], distribution, base=2)
            assert curve[segment, layer] == pytest.approx(expected, abs=1e-4)


def test_the_bias_of_a_certain_last_layer_is_finite():
    mean = np.array([[[0.5, 0.5], [0.0, 1.0]], *np.zeros((2, 2, 2))])
    curve = curves.bias_curve(mean, {"layers": ["emb", "1"]})
    assert curve["bias"].tolist() == pytest.approx([1, 0])


def test_rows_are_repeated_over_layers_by_hand():
    """What is not known stays so, whichever comes first; tuples of one length are one column."""
    rows = [
        ({"right": None, "n": 1, "asked": ("x", "y")}, {"p": np.array([0.1, 0.2])}),
        ({"right": True, "n": 2, "asked": ("z", "x")}, {"p": np.array([0.3, 0.4])}),
    ]
    expected = [[None, 1, ("x", "y"), 0, 0.1], [None, 1, ("x", "y"), 4, 0.2],
                [True, 2, ("z", "x"), 0, 0.3], [True, 2, ("z", "x"), 4, 0.4]]  # fmt: skip
    table = curves.repeat_over_layers(rows, np.array([0, 4]))
    assert table.to_numpy().tolist() == expected
    turned = curves.repeat_over_layers(rows[::-1], np.array([0, 4]))
    assert turned.to_numpy().tolist() == expected[2:] + expected[:2]
    assert curves.repeat_over_layers([], np.array([0, 4])).empty


def test_the_top_tokens_by_hand():
    run = {"tokens": ["a", "b", "c"], "layers": ["emb", "2"]}
    table = curves.top_tokens(np.array([[0.75, 0.05, 0.2], [0.25, 0.25, 0.5]]), run, 2)
    assert table["token"].tolist() == ["a", "c"] and table["id"].tolist() == [0, 2]
    assert table["mean"].tolist() == [0.5, 0.35]
    assert table[["emb", "2"]].to_numpy().tolist() == [[0.75, 0.25], [0.2, 0.5]]
