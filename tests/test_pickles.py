"""Save and load: values come back, files are whole, what can't be loaded is not saved."""

import os

import numpy as np
import pytest

from llava_lens import checks, pickles


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def test_arrays_of_any_shape_and_size_come_back(tmp_path):
    """Of no number, of no axis, in another order, and of the sizes at which pickle begins a new
    frame."""
    odd = [np.zeros(0), np.zeros((0, 3), np.uint8), np.array(2.5), np.arange(6).reshape(2, 3).T]
    sizes = [np.zeros(2**16 + more, np.uint8) for more in range(-90, 10)]
    for value in (odd, sizes, *([array] for array in sizes)):
        pickles.save(tmp_path / "a.pkl", value)
        assert_same(pickles.load(tmp_path / "a.pkl"), value)


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    pickles.save(tmp_path / "a.pkl", {"x": np.arange(3)})
    with pytest.raises(ValueError, match="a.pkl' would not be a good file .*lambda.* change what"):
        pickles.save(tmp_path / "a.pkl", {"x": np.arange(9), "y": lambda: 0})  # fails half-way

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        pickles.save(tmp_path / "a.pkl", {"x": np.arange(9)})
    assert pickles.load(tmp_path / "a.pkl")["x"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["a.pkl"]


@pytest.mark.parametrize(
    "value, check, message",
    [
        ((1, 2), None, "TUPLE2"),
        ({"x": (1, 2, 3)}, None, "it has a tuple"),
        (np.array(["dog"]), None, "something else than numbers"),
        (np.array([None]), None, "something else than numbers"),
        (np.zeros(3, ">f4"), None, "something else than numbers"),
        (np.float32(1), None, "it refers to numpy._core.multiarray.scalar"),
        ({1: "x"}, None, "it has a key that is no text"),
        ({"format_version": 2}, checks.check_run, "its format version is 2"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, value, check, message):
    with pytest.raises(ValueError, match=message):
        pickles.save(tmp_path / "a.pkl", value, *([check] if check else []))
    assert os.listdir(tmp_path) == []
