"""The shipped demo: the trained model still answers its scenes, through the code that reads
LLaVA-1.5-7B and COCO."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from llava_lens.analysis import grading, stats
from llava_lens.data import annotations, crop, images
from llava_lens.data import prompts as data_prompts
from llava_lens.model import load, read
from tests.conftest import ROOT

DEMO = ROOT / "demo"
COLUMNS = ["kind", "answer", "truth"]
CATEGORIES = ["circle", "cross", "heart", "square", "star", "triangle"]


@pytest.fixture(scope="module", params=["float32", "float16"])
def answers(request):
    """A row per prompt: kind, answer, truth, the layer from which on the first answer token is
    readable."""
    bridge, processor = load.load_llava(DEMO / "model", request.param, "cpu")
    settings = load.Settings("demo/model", request.param, "cpu", top_k=5, max_new_tokens=3)
    objects_of, absent, *_ = annotations.read_annotations(DEMO / "scenes")
    rows = []
    for name, path in images.find_images(DEMO / "scenes").items():
        image = images.open_image(path)
        objects = crop.objects_in_crop(objects_of[name], image.size, processor.image_processor)
        prompts = data_prompts.make_prompts(objects, absent[name], name, per_kind=2)
        prompts = [prompt for prompt in prompts if prompt["truth"]]
        record, _ = read.read_image(bridge, processor, image, prompts, settings)
        for prompt in record["prompts"]:
            at = prompt["n_prompt"] - 1
            top = (prompt["readings"][name][:, at] for name in ("top_ids", "top_probs"))
            rival = stats.best_rival(*top, prompt["word_ids"])
            layer = stats.readable_layer(np.log(prompt["word_prob"]) - np.log(rival))
            rows.append({key: prompt[key] for key in COLUMNS} | {"layer": layer})
    return pd.DataFrame(rows)


def test_it_answers_its_scenes(answers):
    said = answers[COLUMNS].to_numpy()
    right = pd.Series([grading.is_right(*each, CATEGORIES) for each in said])
    per_kind = right.groupby(answers["kind"]).agg(["mean", "size"])
    assert set(per_kind.index) == {"object", "presence", "colour", "relation"}
    assert (per_kind["size"] >= 10).all() and right.mean() >= 0.95
    assert (per_kind["mean"] >= 0.9).all(), per_kind


def test_relations_become_readable_later_than_colours(answers):
    median = answers.groupby("kind")["layer"].median()
    assert 3 <= median["colour"] < median["relation"] <= 8


def test_it_is_small_and_its_scenes_are_annotated_as_coco_does():
    assert sum(path.stat().st_size for path in (DEMO / "model").iterdir()) <= 6e6
    objects, _, categories, problems, _ = annotations.read_annotations(DEMO / "scenes")
    assert len(objects) == 24 and set(objects) == set(images.find_images(DEMO / "scenes"))
    for found in objects.values():
        assert 2 <= len(found) <= 3
        for item in found:
            assert item["category"] in categories and item["color"] and min(item["box"][2:]) > 0


def test_its_training_script_begins():
    """Its imports are those of the modules today; training itself takes half an hour."""
    command = [sys.executable, "demo/train.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--steps-scale" in done.stdout, done.stderr
