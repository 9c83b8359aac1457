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


def test_rows_are_repeated_over_layers_by_hand():
    rows = [({"image": "a", "n": 1}, {"p": np.array([0.1, 0.2])}),
            ({"image": "b", "n": 2}, {"p": np.array([0.3, 0.4])})]  # fmt: skip
    table = curves.repeat_over_layers(rows, np.array([0, 4]))
    expected = [["a", 1, 0, 0.1], ["a", 1, 4, 0.2], ["b", 2, 0, 0.3], ["b", 2, 4, 0.4]]
    assert table.to_numpy().tolist() == expected
    assert curves.repeat_over_layers([], np.array([0, 4])).empty


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_a_column_of_tuples_of_one_length_is_one_column(n):
    asked = tuple("abc"[:n])
    rows = [({"categories": asked, "n": n}, {"p": np.array([0.1, 0.2])})] * 3
    table = curves.repeat_over_layers(rows, np.array([0, 4]))
    assert table["categories"].tolist() == [asked] * 6 and table["n"].tolist() == [n] * 6


def test_the_top_tokens_by_hand():
    run = {"tokens": ["a", "b", "c"], "layers": ["emb", "2"]}
    table = curves.top_tokens(np.array([[0.75, 0.05, 0.2], [0.25, 0.25, 0.5]]), run, 2)
    assert table["token"].tolist() == ["a", "c"] and table["id"].tolist() == [0, 2]
    assert table["mean"].tolist() == [0.5, 0.35]
    assert table[["emb", "2"]].to_numpy().tolist() == [[0.75, 0.25], [0.2, 0.5]]
