"""A tiny random LLaVA and real photographs, made once per session in a temporary folder."""

import json
import os
import shutil
from pathlib import Path

# Before numpy and torch are imported, for this process and those that tests start: one thread each,
# since pytest-xdist gives each core a process; and float16 as on other machines, since the newest
# CPUs multiply in float16 itself, which rounds more often than a GPU or another CPU does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ |= {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"}

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
TORCH = {"torch", "transformers", "transformer_lens", "accelerate", "tokenizers", "huggingface_hub"}
matplotlib.use("Agg")

import lens_utils
from llava_lens import kinds, store
from llava_lens.data import images as data_images
from llava_lens.data import prompts as data_prompts
from llava_lens.data.annotations import Annotations
from llava_lens.model import images as model_images
from llava_lens.model import load

VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
# A wide initialisation: distributions differ between layers and are far from flat.
TEXT = VISION | dict(hidden_size=64, intermediate_size=96, num_hidden_layers=5)
TEXT["initializer_range"] = 0.3


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    """A random LLaVA saved as the hub saves one: 16 patches, 5 layers, a vocabulary with Cyrillic,
    CJK and unused rows."""
    import torch
    from tiny_llava import make_llava

    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(0)
    asked = [("object", {}), ("presence", {"category": "dog"}), ("colour", {"category": "cat"})]
    asked += [("relation", {"a": "dog", "b": "cat"}), ("description", {})]
    corpus = [kinds.CHAT, "Привет мир 狗 猫 $5 <b>"]
    corpus[1:1] = [kinds.question_of(kind, **words) for kind, words in asked]
    make_llava(folder, corpus, image_size=56, patch_size=14, vision=VISION, text=TEXT)
    return folder


@pytest.fixture(scope="session")
def llava(llava_folder):
    return load.load_llava(llava_folder, "float32", "cpu")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Three photographs of scikit-learn and matplotlib, one of them annotated as COCO does."""
    import matplotlib.cbook
    import sklearn.datasets

    folder = tmp_path_factory.mktemp("photographs")
    shipped = Path(sklearn.datasets.__file__).parent / "images"
    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    for path in (shipped / "china.jpg", shipped / "flower.jpg", hopper):
        shutil.copy(path, folder)
    names = enumerate(["temple", "tree", "umbrella"], 1)
    seen = {"image_id": 7, "iscrowd": 0}
    temple = {"id": 1, "category_id": 1, "bbox": [150, 60, 220, 200], "area": 44000}
    tree = {"id": 2, "category_id": 2, "bbox": [420, 180, 80, 100], "area": 8000, "color": "green"}
    annotated = {
        "images": [{"id": 7, "file_name": "china.jpg", "width": 640, "height": 427}],
        "annotations": [seen | temple, seen | tree],
        "categories": [{"id": number, "name": name} for number, name in names],
    }
    (folder / "instances_test.json").write_text(json.dumps(annotated))
    return folder


NOTHING_KNOWN = Annotations({}, {}, [], [])
OBJECT = {"question": kinds.question_of("object"), "kind": "object", "truth": "temple"}
PROMPTS = data_prompts.as_prompts(["What is this? 狗", OBJECT, "Describe $5 to <b>me</b>."])


@pytest.fixture(scope="session")
def settings(llava_folder):
    """What the results below were read with."""
    return load.Settings(str(llava_folder), "float32", "cpu", PROMPTS, max_new_tokens=6)


@pytest.fixture(scope="session")
def read(llava, photographs, settings):
    """A record per photograph, as Make_Analyse saves them, with its mean probabilities."""
    run = model_images.describe_run(*llava, settings)
    paths = data_images.find_images(photographs)
    reader = model_images.Reader(llava, paths, NOTHING_KNOWN, run, settings)
    return [reader.read(name) for name in paths]


@pytest.fixture(scope="session")
def records(read):
    return [record for record, _ in read]


@pytest.fixture(scope="session")
def results(llava, settings, read, tmp_path_factory):
    """A folder of results."""
    results = store.Results(tmp_path_factory.mktemp("results"))
    results.begin(model_images.describe_run(*llava, settings))
    for record, mean in read:
        results.add(record, mean)
    return results.folder


@pytest.fixture
def run(results):
    return store.Results(results).run


@pytest.fixture(scope="session")
def tables(results):
    return lens_utils.tabulate(store.Results(results))


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """A page in the one Chromium of the session; skips where there is none."""
    from tests.browser import Page, start_browser

    downloads = tmp_path_factory.mktemp("downloads")
    browser = start_browser(downloads)
    yield Page(browser, downloads)
    browser.quit()


@pytest.fixture(scope="session")
def blocked(tmp_path_factory):
    """A folder for PYTHONPATH in which importing torch, or what brings it, raises."""
    folder = tmp_path_factory.mktemp("blocked")
    for name in TORCH:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')")
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The results of the demo's scenes, read in float32 once for all tests."""
    folder, scenes = tmp_path_factory.mktemp("demo"), ROOT / "demo/scenes"
    settings = dict(model=ROOT / "demo/model", dtype="float32", max_new_tokens=3)
    lens_utils.analyse(lens_utils.load_images(scenes), folder, **settings)
    return store.Results(folder)


@pytest.fixture(scope="session")
def demo_tables(demo):
    return lens_utils.tabulate(demo)
