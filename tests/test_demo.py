"""The shipped demo: the trained model still answers its scenes, through the code that reads LLaVA-1.5-7B and COCO."""

import numpy as np
import pandas as pd
import pytest

import lens_utils as lu
from conftest import ROOT

DEMO = ROOT / "demo"


@pytest.fixture(scope="module", params=["float32", "float16"])
def answers(request):
    """A row per prompt: kind, answer, truth, the layer from which on the first answer token is readable."""
    bridge, processor = lu.load_llava(DEMO / "model", request.param, "cpu")
    objects_of, categories, _ = lu.read_annotations(DEMO / "scenes")
    rows = []
    for name, path in lu.find_images(DEMO / "scenes").items():
        image = lu.open_image(path)
        objects = lu.crop_objects(objects_of[name], image.size, processor.image_processor)
        prompts = [
            prompt
            for prompt in lu.make_prompts(objects, categories, name, per_kind=2)
            if prompt["truth"]
        ]
        for prompt in lu.read_image(bridge, processor, image, prompts, top_k=1, max_new_tokens=3)[
            0
        ]["prompts"]:
            layer = lu.readable_layer(prompt["readings"]["target_prob"])[prompt["n_prompt"] - 1]
            rows.append(
                {**{key: prompt[key] for key in ("kind", "answer", "truth")}, "layer": layer}
            )
    return pd.DataFrame(rows)


def test_it_answers_its_scenes(answers):
    right = answers.apply(lambda row: lu.is_right(row["answer"], row["truth"]), axis=1)
    per_kind = right.groupby(answers["kind"]).agg(["mean", "size"])
    assert (
        set(per_kind.index) == {"object", "presence", "colour", "relation"}
        and (per_kind["size"] >= 10).all()
    )
    assert right.mean() >= 0.95 and (per_kind["mean"] >= 0.9).all(), per_kind


def test_relations_become_readable_later_than_colours(answers):
    median = answers.groupby("kind")["layer"].median()
    assert 3 <= median["colour"] < median["relation"] <= 8


def test_it_is_small_and_its_scenes_are_annotated_as_coco_does():
    assert sum(path.stat().st_size for path in (DEMO / "model").iterdir()) <= 6e6
    objects, categories, problems = lu.read_annotations(DEMO / "scenes")
    assert len(objects) == 24 and set(objects) == set(lu.find_images(DEMO / "scenes"))
    for found in objects.values():
        assert 2 <= len(found) <= 3
        assert all(
            item["category"] in categories and item["color"] and np.min(item["box"][2:]) > 0
            for item in found
        )
