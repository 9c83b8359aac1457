"""llava_lens.model.images: another model under the same name; what could not be saved is refused
before it is read."""

import re

import numpy as np
import pytest

from llava_lens import checks, store
from llava_lens.analysis import grounding
from llava_lens.data import crop, prompts, watched
from llava_lens.model import images as model_images
from llava_lens.model import load
from tests.hostile import make_results


def test_a_weight_anywhere_makes_another_fingerprint(llava):
    """A hundredth of any tensor, wherever it lies; nothing else does. One block stands for all."""
    model = llava[0].original_model
    fingerprint = model_images._fingerprint(model)
    assert fingerprint == model_images._fingerprint(model)
    tensors = {
        re.sub(r"\d+", "", name): (name, weight) for name, weight in model.state_dict().items()
    }
    assert len(tensors) > 20
    for at, (name, weight) in enumerate(tensors.values()):
        values = weight.flatten() if weight.is_contiguous() else None
        assert values is None or values.data_ptr() == weight.data_ptr(), name
        size = -(-len(values) // 100)
        start = (at * 7919) % (len(values) - size + 1)
        changed = values[start : start + size]
        before = changed.clone()
        changed += 1
        assert model_images._fingerprint(model) != fingerprint, name
        changed.copy_(before)
    assert model_images._fingerprint(model) == fingerprint


def test_a_run_that_could_not_be_saved_is_refused_before_it_begins(tmp_path, llava):
    """With the check that loading makes."""
    settings = load.Settings("m", top_k=np.int64(3), seed=np.int32(1), per_kind=np.int8(2))
    run = model_images.describe_run(*llava, settings, 0.0)
    store.Results(tmp_path).refuse_another(run)  # numbers are made plain
    prompt = {**prompts.as_prompts(["?"])[0], "question": np.str_("?")}
    for change, where in (
        ({"model": np.str_("m")}, "model"),
        ({"top_k": 0}, "top_k"),
        ({"seed": "0"}, "seed"),
        ({"last_layer_jsd": 2.0}, "last_layer_jsd"),
        ({"own_prompts": [prompt]}, "own_prompts 0, question"),
    ):
        with pytest.raises(ValueError, match=where):
            store.Results(tmp_path).refuse_another({**run, **change})


def test_what_is_watched_can_be_saved(llava):
    """A box that is no larger than rounding makes no present word."""
    tiny = {"category": "dog", "color": None, "crowd": False, "image_size": (56, 56)}
    boxes = [[1.0, 1.0, 1e-9, 5.0], [-4.0, 1.0, 4.005, 1.0], [-4.0, -3.0, 2.0, 1.0]]
    objects = [{**tiny, "box": box} for box in boxes]
    objects = crop.objects_in_crop(objects, (56, 56), llava[1].image_processor)
    words = watched.words_to_watch(llava[1].tokenizer, objects, ["dog", "cat"])
    assert not [word for word in words if word["present"]]
    run, record, _ = make_results()
    record["objects"][0]["box"] = [7.0, 7.0, 1.0, 0.5]
    checks.check_record(record, run, "a.jpg")
    assert grounding.patches_of(record, run, "dog").tolist() == [False, False, False, True]
