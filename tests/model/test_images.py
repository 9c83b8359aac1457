"""Images of a run: their controls, the run's fingerprint, and what could not be saved."""

import re

import numpy as np
import pytest

from llava_lens import store
from llava_lens.data import crop, prompts, watched
from llava_lens.data.images import find_images, open_image
from llava_lens.model import images, load
from llava_lens.model.read import read_control
from llava_lens.model.run import keep_prefix
from tests.conftest import NOTHING_KNOWN


@pytest.fixture
def reader(monkeypatch):
    """Makes a Reader of images by name, of which some can't be read, and lists what it opened."""
    opened = []

    def run_prefix(bridge, processor, name):
        opened.append(name)
        if name in ("broken", "overflows"):
            raise OSError if name == "broken" else FloatingPointError
        return [name]

    monkeypatch.setattr(images, "keep_prefix", run_prefix)
    monkeypatch.setattr(images.Reader, "open", lambda self, name: name)

    def make(names):
        opened.clear()
        model, paths = (None, None), dict.fromkeys(names)
        return images.Reader(model, paths, NOTHING_KNOWN, {}, load.Settings("")), opened

    return make


@pytest.mark.parametrize(
    "names, name, kept, others, opened",
    [
        ("a b c", "b", [], "ac", "ac"),
        ("a b c", "a", [], "cb", "cb"),  # the last one comes first
        ("a b c", "c", ["b"], "ba", "a"),
        ("a broken c", "c", [], "a", ["broken", "a"]),
        ("a overflows broken", "a", [], "", ["broken", "overflows"]),
        ("a", "a", [], "", ""),
        ("0 1 2 3 4 5 6 7 8 9", "9", [], "87654321", "87654321"),  # eight at most
    ],
)
def test_the_others_are_those_before_in_a_ring_and_an_unreadable_one_is_passed_over(
    reader, names, name, kept, others, opened
):
    own, its_opened = reader(names.split())
    own.kept = {name: ["at hand"] for name in kept}
    assert [other for other, *_ in own.before(name)] == [*others]
    assert its_opened == [*opened]


def test_prefixes_at_hand_are_few_and_none_is_run_twice(reader):
    """Images in their order, each of which asks for all eight before it."""
    names = [f"{number:02}" for number in range(30)]
    own, opened = reader(names)
    for name in names:
        assert len([*own.before(name)]) == images.NEAREST
        assert len(own.kept) <= images.NEAREST + 1
        own._keep_for_next(name, [])
        assert len(own.kept) <= images.NEAREST
    assert opened == names[:-9:-1]  # the ring's, for the first image


def test_the_control_other_is_of_the_image_before(llava_folder, llava, photographs, tmp_path):
    """By itself for the second image; the first one's is the last image, however images are shared
    and whatever was read before."""
    paths, fast = find_images(photographs), dict(knockout=False, route=False, max_new_tokens=3)
    settings = load.Settings(str(llava_folder), "float32", "cpu", **fast)
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


def test_a_weight_anywhere_makes_another_fingerprint(llava):
    """A hundredth of any tensor, wherever it lies; nothing else does. One block stands for all."""
    model = llava[0].original_model
    fingerprint = images._fingerprint(model)
    assert fingerprint == images._fingerprint(model)
    every = model.state_dict().items()
    tensors = {re.sub(r"\d+", "", name): (name, weight) for name, weight in every}
    assert len(tensors) > 20
    for at, (name, weight) in enumerate(tensors.values()):
        values = weight.view(-1)
        size = -(-len(values) // 100)
        start = (at * 7919) % (len(values) - size + 1)
        changed = values[start : start + size]
        before = changed.clone()
        changed += 1
        assert images._fingerprint(model) != fingerprint, name
        changed.copy_(before)
    assert images._fingerprint(model) == fingerprint


def test_a_run_that_could_not_be_saved_is_refused_before_it_begins(tmp_path, llava):
    """With the check that loading makes."""
    settings = load.Settings("m", top_k=np.int64(3), seed=np.int32(1), per_kind=np.int8(2))
    run = images.describe_run(*llava, settings)
    store.Results(tmp_path).refuse_another(run)  # numbers are made plain
    prompt = {**prompts.as_prompts(["?"])[0], "question": np.str_("?")}
    for change, where in (
        ({"model": np.str_("m")}, "model"),
        ({"own_prompts": [prompt]}, "own_prompts 0, question"),
    ):
        with pytest.raises(ValueError, match=where):
            store.Results(tmp_path).refuse_another({**run, **change})


def test_a_box_no_larger_than_rounding_makes_no_present_word(llava):
    """Such a record could not be saved."""
    tiny = {"category": "dog", "color": None, "crowd": False, "image_size": (56, 56)}
    boxes = [[1.0, 1.0, 1e-9, 5.0], [-4.0, 1.0, 4.005, 1.0], [-4.0, -3.0, 2.0, 1.0]]
    objects = [{**tiny, "box": box} for box in boxes]
    objects = crop.objects_in_crop(objects, (56, 56), llava[1].image_processor)
    words = watched.words_to_watch(llava[1].tokenizer, objects, ["dog", "cat"])
    assert not [word for word in words if word["present"]]
