"""A tiny random LLaVA and real photographs, made once per session in a temporary folder."""

import json
import shutil
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]
matplotlib.use("Agg")

import lens_utils as lu  # noqa: E402  (sets the waiting policy of torch's threads, so it comes before torch)


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    """A random LLaVA saved as the hub saves one: 16 patches, 5 layers, a vocabulary with Cyrillic, CJK and unused rows."""
    import torch
    from tiny_llava import make_llava

    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(0)
    corpus = [
        lu.CHAT,
        lu.object_question(),
        lu.presence_question("dog"),
        lu.colour_question("cat"),
        lu.relation_question("dog", "cat"),
        lu.DESCRIPTION_QUESTION,
        "Привет мир 狗 猫 $5 <b>",
    ]
    make_llava(
        folder,
        corpus,
        image_size=56,
        patch_size=14,
        vision=dict(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
        ),
        # A wide initialisation makes distributions that differ between layers and are far from flat.
        text=dict(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=5,
            num_attention_heads=4,
            initializer_range=0.3,
        ),
    )
    return folder


@pytest.fixture(scope="session")
def llava(llava_folder):
    return lu.load_llava(llava_folder, "float32", "cpu")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Three photographs that scikit-learn and matplotlib ship, one of them annotated as COCO does."""
    import matplotlib.cbook
    import sklearn.datasets

    folder = tmp_path_factory.mktemp("photographs")
    shipped = Path(sklearn.datasets.__file__).parent / "images"
    for path in [
        shipped / "china.jpg",
        shipped / "flower.jpg",
        matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False),
    ]:
        shutil.copy(path, folder)
    categories = [
        {"id": 1, "name": "temple"},
        {"id": 2, "name": "tree"},
        {"id": 3, "name": "umbrella"},
    ]
    annotations = [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 1,
            "bbox": [150, 60, 220, 200],
            "area": 44000,
            "iscrowd": 0,
        },
        {
            "id": 2,
            "image_id": 7,
            "category_id": 2,
            "bbox": [420, 180, 80, 100],
            "area": 8000,
            "iscrowd": 0,
            "color": "green",
        },
    ]
    images = [{"id": 7, "file_name": "china.jpg", "width": 640, "height": 427}]
    (folder / "instances_test.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return folder


PROMPTS = lu.own_prompts(
    [
        "What is this? 狗",
        {"question": lu.object_question(), "kind": "object", "truth": "temple"},
        "Describe $5 to <b>me</b>.",
    ]
)


@pytest.fixture(scope="session")
def read(llava, photographs):
    """A record per photograph, as Make_Analyse saves them, with its mean probabilities."""
    read = []
    for name, path in lu.find_images(photographs).items():
        record, mean_probability = lu.read_image(
            *llava, lu.open_image(path), PROMPTS, max_new_tokens=6
        )
        for prompt, grey in zip(
            record["prompts"], lu.read_grey(llava[0], lu.grey_prefix(*llava), record["prompts"])
        ):
            prompt["grey"] = grey
        read.append(({"name": name, "objects": [], **record}, mean_probability))
    return read


@pytest.fixture(scope="session")
def records(read):
    return [record for record, _ in read]


@pytest.fixture(scope="session")
def results(llava, llava_folder, read, tmp_path_factory):
    """A folder of results."""
    folder = tmp_path_factory.mktemp("results")
    run = lu.describe_run(*llava, llava_folder, 0.0, {"own": PROMPTS}, top_k=10)
    part = lu.new_part(run)
    lu.start_run(folder, run)
    for record, mean_probability in read:
        lu.save(lu.record_path(folder, record["name"]), record)
        lu.add_to_part(part, record["name"], mean_probability)
    lu.save(lu.part_path(folder, 0), part)
    return folder


@pytest.fixture(scope="session")
def blocked(tmp_path_factory):
    """A folder for PYTHONPATH in which importing torch or transformers raises."""
    folder = tmp_path_factory.mktemp("blocked")
    for name in ("torch", "transformers", "transformer_lens"):
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')")
    return folder
