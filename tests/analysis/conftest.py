"""The demo's scenes, read once for all tests of this folder."""

import pytest

import lens_utils
from llava_lens import store
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The results of the demo, read in float32."""
    folder, scenes = tmp_path_factory.mktemp("demo"), ROOT / "demo/scenes"
    model = ROOT / "demo/model"
    lens_utils.analyse(lens_utils.load_images(scenes), folder, model=model, max_new_tokens=3)
    return store.Results(folder)


@pytest.fixture(scope="session")
def demo_tables(demo):
    return lens_utils.tabulate(demo)
