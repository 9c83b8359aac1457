"""Images of a run: their controls."""

import numpy as np

from llava_lens import store
from llava_lens.data.images import find_images, open_image
from llava_lens.model import images, load
from llava_lens.model.read import read_control
from llava_lens.model.run import keep_prefix
from tests.conftest import NOTHING_KNOWN


def test_the_others_are_those_before_in_a_ring_and_an_unreadable_one_is_passed_over(monkeypatch):
    opened = []

    def run_prefix(bridge, processor, name):
        opened.append(name)
        if name in ("broken", "overflows"):
            raise OSError if name == "broken" else FloatingPointError
        return [name]

    monkeypatch.setattr(images, "keep_prefix", run_prefix)
    monkeypatch.setattr(images.Reader, "open", lambda self, name: name)

    def before(names, name, **kept):
        opened.clear()
        settings = load.Settings("")
        reader = images.Reader(
            (None, None), dict.fromkeys(names.split()), NOTHING_KNOWN, {}, settings
        )
        reader.kept = kept
        others = [other for other, *_ in reader.before(name)]
        return others, list(opened)

    assert before("a b c", "b") == (["a", "c"], ["a", "c"])
    assert before("a b c", "a") == (["c", "b"], ["c", "b"])  # the last one comes first
    assert before("a b c", "c", b=["at hand"]) == (["b", "a"], ["a"])
    assert before("a broken c", "c") == (["a"], ["broken", "a"])
    assert before("a overflows broken", "a") == ([], ["broken", "overflows"])
    assert before("a", "a") == ([], [])
    assert before("0 1 2 3 4 5 6 7 8 9", "9")[0] == [*"87654321"]  # eight at most


def test_prefixes_at_hand_are_few_and_none_is_run_twice(monkeypatch):
    """Images in their order, each of which asks for all eight before it."""
    opened = []
    monkeypatch.setattr(
        images, "keep_prefix", lambda *model_and_name: opened.append(model_and_name[-1])
    )
    monkeypatch.setattr(images.Reader, "open", lambda self, name: name)
    names = [f"{number:02}" for number in range(30)]
    reader = images.Reader((None, None), dict.fromkeys(names), NOTHING_KNOWN, {}, load.Settings(""))
    for name in names:
        assert len([*reader.before(name)]) == images.NEAREST
        assert len(reader.kept) <= images.NEAREST + 1
        reader._keep_for_next(name, [])
        assert len(reader.kept) <= images.NEAREST
    assert opened == names[:-9:-1]  # the ring's, for the first image


def test_the_control_other_is_what_the_model_says_after_the_image_before(
    llava_folder, llava, photographs, tmp_path
):
    """By itself for the second image; the first one's is the last image, however images are shared
    and whatever was read before."""
    paths, settings = (find_images(photographs), load.Settings(str(llava_folder), "float32", "cpu"))
    images.read_images(paths, NOTHING_KNOWN, tmp_path / "all", settings)
    records = list(store.Results(tmp_path / "all").records())
    for number, record in enumerate(records):
        prefix = keep_prefix(*llava, open_image(paths[records[number - 1]["name"]]))
        expected = read_control(llava[0], prefix, record["prompts"])
        for prompt, control in zip(record["prompts"], expected, strict=True):
            for name, values in control.items():
                np.testing.assert_allclose(prompt["other"][name], values, rtol=1e-4)
    (first, *_) = paths
    alone = tmp_path / "alone"
    images.read_images({first: paths[first]}, NOTHING_KNOWN, alone, settings)
    assert all("other" not in prompt for prompt in store.Results(alone).record(first)["prompts"])
