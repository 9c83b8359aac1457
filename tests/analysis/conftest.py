"""The demo's scenes, read once for all tests of this folder."""

import pytest

import lens_utils
from llava_lens import store
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The results of the demo, read in float32."""
    folder, settings = tmp_path_factory.mktemp("demo"), {"model": ROOT / "demo/model"}
    settings |= {"dtype": "float32", "device": "cpu", "max_new_tokens": 3, "processes": 1}
    lens_utils.analyse(lens_utils.load_images(ROOT / "demo/scenes"), folder, **settings)
    return store.Results(folder)


@pytest.fixture(scope="session")
def demo_tables(demo):
    return lens_utils.tabulate(demo)
