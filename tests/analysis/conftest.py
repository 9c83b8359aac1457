"""The demo's scenes, read once for all tests of this folder."""

import pytest

import lens_utils
from llava_lens import store
from llava_lens.data import annotations as data_annotations
from llava_lens.data import images as data_images
from llava_lens.model import images, load
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The results of the demo, read in float32."""
    folder, scenes = tmp_path_factory.mktemp("demo"), ROOT / "demo/scenes"
    annotations, categories, _ = data_annotations.read_annotations(scenes)
    settings = load.Settings(str(ROOT / "demo/model"), "float32", "cpu", max_new_tokens=3)
    images.read_images(data_images.find_images(scenes), annotations, categories, folder, settings)
    return store.Results(folder)


@pytest.fixture(scope="session")
def demo_tables(demo):
    return lens_utils.tabulate(demo)
