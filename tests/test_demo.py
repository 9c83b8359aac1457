"""The shipped demo: the trained model still answers its scenes, through the code that reads
LLaVA-1.5-7B and COCO."""

import subprocess
import sys

import pytest

import lens_utils as lens
from llava_lens.analysis import curves
from tests.conftest import ROOT


@pytest.fixture(scope="module", params=["float32", "float16"])
def answers(request, tmp_path_factory):
    """A row per prompt with a truth, of all scenes, or of twelve in float16, which is slow here."""
    if request.param == "float32":
        tables = request.getfixturevalue("demo_tables")
    else:
        folder, fast = tmp_path_factory.mktemp("demo"), dict(knockout=False, route=False)
        fast |= dict(dtype="float16", device="cpu", top_k=5, per_kind=2, max_new_tokens=3)
        twelve = lens.load_images(ROOT / "demo/scenes", 12)
        lens.analyse(twelve, folder, model=ROOT / "demo/model", **fast)
        tables = lens.tabulate(lens.open_results(folder))
    answers = curves.first_tokens(tables.answers)
    return answers[answers["truth"].notna()]


def test_it_answers_its_scenes(answers):
    right = answers["right"].fillna(False).astype(bool)
    per_kind = right.groupby(answers["kind"]).agg(["mean", "size"])
    assert set(per_kind.index) == {"object", "presence", "colour", "relation"}
    assert (per_kind["size"] >= 10).all() and right.mean() >= 0.95
    assert (per_kind["mean"] >= 0.9).all(), per_kind


def test_relations_become_readable_later_than_colours(answers):
    median = answers.groupby("kind")["readable_layer"].median()
    assert 3 <= median["colour"] < median["relation"] <= 8


def test_it_is_small_and_its_scenes_are_annotated_as_coco_does():
    scenes = lens.load_images(ROOT / "demo/scenes")
    assert sum(path.stat().st_size for path in (ROOT / "demo/model").iterdir()) <= 6e6
    objects, categories = scenes.annotations.objects, scenes.annotations.categories
    assert len(objects) == 24 and set(objects) == set(scenes.paths)
    for found in objects.values():
        assert 2 <= len(found) <= 3
        for item in found:
            assert item["category"] in categories and item["color"] and min(item["box"][2:]) > 0


def test_its_training_script_begins():
    """Its imports are those of the modules today; training itself takes half an hour."""
    command = [sys.executable, "demo/train.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--steps-scale" in done.stdout, done.stderr
