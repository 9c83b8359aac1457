"""Both notebooks in an imitation of Kaggle's folders."""

import shutil

import pytest
from nbclient.exceptions import CellExecutionError

from tests.conftest import ROOT
from tests.test_kaggle import T4_X2
from tests.test_notebooks import executed, shown_by

# Where Kaggle mounts the images, and the code: from a zip, and from the GitHub repository.
LAYOUTS = {
    "zip": ("coco-data-100", "llava-lens"),
    "owner": ("datasets/someone/coco-data-100", "datasets/someone/llava-lens"),
    "github": ("coco-data-100", "llava-lens/llava-logit-lens-main"),
}
NOTEBOOKS = "Make_Analyse.ipynb", "Visualise_Analyse.ipynb"


def files_under(folder):
    """The content of each file, by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def kaggle_folders(request, tmp_path, photographs, monkeypatch):
    """`/kaggle` below tmp_path, read-only inputs mounted in one of LAYOUTS, and copies of the
    notebooks that look there: its `input` and `working`."""
    inputs, working = tmp_path / "kaggle/input", tmp_path / "kaggle/working"
    mounted, code = (inputs / place for place in LAYOUTS[request.param])
    shutil.copytree(photographs, mounted / "val2017")
    (mounted / "val2017/instances_test.json").rename(mounted / "instances_val2017.json")
    (mounted.parent / "aaa-pictures").mkdir()
    shutil.copy(photographs / "flower.jpg", mounted.parent / "aaa-pictures")

    shutil.copytree(ROOT / "llava_lens", code / "llava_lens")
    shutil.copy(ROOT / "lens_utils.py", code)
    # The data set with the code holds annotated images too, which aren't meant.
    scenes = "annotations.json", "scene_00.png", "scene_01.png"
    (code / "demo/scenes").mkdir(parents=True)
    for name in scenes:
        shutil.copy(ROOT / "demo/scenes" / name, code / "demo/scenes")
    for path in (code / "llava_lens/kaggle.py", *(tmp_path / name for name in NOTEBOOKS)):
        source = path if path.exists() else ROOT / path.name
        path.write_text(source.read_text().replace("/kaggle/input", str(inputs)))
    with (code / "llava_lens/kaggle.py").open("a") as machine:
        machine.write(f"\n\nprobe_gpus = lambda: {T4_X2!r}\n")  # this machine has no GPU
    before = files_under(inputs)
    working.mkdir()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    yield inputs, working
    # What is attached is read-only on Kaggle: nothing may have been written to it.
    results = inputs / "make-analyse"
    for path, content in files_under(inputs).items():
        assert before.get(path) == content or path.suffix == ".pyc" or results in path.parents


@pytest.mark.parametrize("kaggle_folders", ["owner"], indirect=True)
def test_both_notebooks_as_kaggle_runs_them(kaggle_folders):
    """Modules, images and results found by what is in the attached folders; a run out of time goes
    on from its attached output."""
    inputs, working = kaggle_folders
    make, visualise = (working.parents[1] / name for name in NOTEBOOKS)
    settings = dict(model=str(ROOT / "demo/model"), max_new_tokens=3)
    text, _ = shown_by(executed(make, working, hours=0.0, device="cpu", **settings))
    assert "Tesla T4" in text and "3 images under" in text and "1 of them annotated" in text
    assert "The time is over with 2 images left" in text
    with pytest.raises(CellExecutionError, match="torch sees no GPU"):
        executed(make, working, processes=1, **settings)

    attached = shutil.move(working / "results", inputs / "make-analyse/results")
    settings |= dict(go_on_from=str(inputs / "make-analyse"), device="cpu")
    before = files_under(attached)
    text, _ = shown_by(executed(make, working, **settings))
    assert "2 of 3 images are to be read" in text and "3 images read" in text
    assert files_under(attached) == before
    shutil.rmtree(attached)
    shutil.move(working / "results", attached)

    text, figures = shown_by(executed(visualise, working))
    assert figures == 12 and "3 images read with" in text


@pytest.mark.parametrize("kaggle_folders", ["zip", "github"], indirect=True)
def test_the_code_and_the_images_are_found_or_the_remedy_is_said(kaggle_folders):
    """The demo's scenes beside the code are not taken for them."""
    inputs, working = kaggle_folders
    make = working.parents[1] / NOTEBOOKS[0]
    text, _ = shown_by(executed(make, working, upto="lens.load_images("))
    assert "lens_utils.py" in text and "3 images under" in text and "1 of them annotated" in text
    for path in inputs.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(CellExecutionError, match="choose Add Input, search for COCO-data-100"):
        executed(make, working, upto="lens.load_images(")
