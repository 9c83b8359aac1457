"""Images of a run: their controls."""

import numpy as np

from llava_lens import store
from llava_lens.data.images import find_images, open_image
from llava_lens.model import images, load
from llava_lens.model.read import read_control
from llava_lens.model.run import keep_prefix
from tests.conftest import NOTHING_KNOWN


def test_the_other_image_is_the_one_before_and_an_unreadable_one_is_passed_over(monkeypatch):
    run = []

    def prefix_of(self, name):
        run.append(name)
        if name in ("broken", "overflows"):
            raise OSError if name == "broken" else FloatingPointError
        return [name]

    def before(names, name, **kept):
        run.clear()
        settings = load.Settings("")
        reader = images.Reader(
            (None, None), dict.fromkeys(names.split()), NOTHING_KNOWN, {}, settings
        )
        reader.kept = kept
        return reader._prefix_before(name), list(run)

    monkeypatch.setattr(images.Reader, "_prefix_of", prefix_of)
    assert before("a b c", "b") == (["a"], ["a"])
    assert before("a b c", "a") == (["c"], ["c"])  # the last one
    assert before("a b c", "c", b=["at hand"]) == (["at hand"], [])
    assert before("a broken c", "c") == (["a"], ["broken", "a"])
    assert before("a overflows broken", "a") == (None, ["broken", "overflows"])
    assert before("a", "a") == (None, [])


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
