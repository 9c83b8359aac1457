"""Both notebooks, run top to bottom in fresh kernels, in an imitation of Kaggle's folders."""

import shutil

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

from llava_lens import store
from tests.conftest import ROOT
from tests.test_kaggle import T4_X2


def executed(path, folder, upto=None, **parameters):
    """A notebook, run in `folder` up to a code cell, with parameters set as papermill does."""
    notebook = nbformat.read(ROOT / path, as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    at = next(number for number, tag in enumerate(tags) if "parameters" in tag)
    settings = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(settings))
    if upto:
        last = next(n for n, cell in enumerate(notebook.cells) if upto in cell.source)
        notebook.cells = notebook.cells[: last + 1]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def shown_by(notebook):
    """What it printed, and its number of figures."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    data = [output.get("data", {}) for output in outputs]
    printed = "".join(output.get("text", "") for output in outputs)
    texts = "".join(each.get("text/markdown", "") for each in data)
    return printed + texts, sum("image/png" in each for each in data)


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
    broken = (photographs / "china.jpg").read_bytes()[:5000]
    (mounted / "val2017/aaa_broken.jpg").write_bytes(broken)
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kaggle_folders", ["owner"], indirect=True)
def test_from_photographs_to_figures(kaggle_folders, blocked, monkeypatch):
    """Modules, images and results found by what is in the attached folders; a broken image is named
    and skipped; a run out of time goes on from its attached output; the second notebook has no
    torch."""
    inputs, working = kaggle_folders
    make, visualise = (working.parents[1] / name for name in NOTEBOOKS)
    settings = dict(model=str(ROOT / "demo/model"), max_new_tokens=3)
    text, _ = shown_by(executed(make, working, hours=0.0, device="cpu", **settings))
    assert "Tesla T4" in text and "4 images under" in text
    assert "1 of them annotated with 3 categories" in text
    assert "The time is over with 2 images left" in text
    with pytest.raises(CellExecutionError, match="torch sees no GPU"):
        executed(make, working, processes=1, **settings)

    attached = shutil.move(working / "results", inputs / "make-analyse/results")
    settings |= dict(go_on_from=str(inputs / "make-analyse"), device="cpu")
    before = files_under(attached)
    text, _ = shown_by(executed(make, working, **settings))
    assert "To read into results: 3 of 4 images" in text and "3 images read" in text
    assert "skipped val2017__aaa_broken.jpg" in text and files_under(attached) == before
    shutil.rmtree(attached)
    shutil.move(working / "results", attached)
    records = {record["name"]: record for record in store.Results(attached).records()}
    names = ["china.jpg", "flower.jpg", "grace_hopper.jpg"]
    assert list(records) == [f"val2017__{name}" for name in names]
    kinds = [prompt["kind"] for prompt in records["val2017__china.jpg"]["prompts"]]
    assert kinds == ["object", "presence", "presence", "colour", "relation", "description"]

    monkeypatch.setenv("PYTHONPATH", str(blocked))
    parameters = dict(image="val2017__china.jpg", prompt=4)
    notebook = executed(visualise, working, **parameters)
    text, figures = shown_by(notebook)
    page, _ = HTMLExporter(template_name="classic").from_notebook_node(notebook)
    # Which nbconvert gives to an image without an alternative text.
    assert page.count(" alt=") >= 12 and "No description has been provided" not in page
    # The crop, the prompt, patches, top tokens of three segments, means by segment and kind,
    # answers, settling, route, knockout; no category has a word in this vocabulary.
    assert figures == 12
    assert "3 images read with" in text and "3 images with 10 prompts" in text
    saved = {path.name for path in (working / "report/figures").iterdir()}
    of_image = {"val2017__china.jpg_4_prompt.png", "val2017__china.jpg_patches.png"}
    assert of_image | {"settling.png", "mean_series.png"} <= saved
    pages = {path.name for path in (working / "report/explorer").iterdir()}
    assert {"val2017__china.jpg.html", "index.html"} <= pages
    summary = pd.read_csv(working / "report/summary.csv")
    prompts = [prompt for record in records.values() for prompt in record["prompts"]]
    n_layers = len(store.Results(attached).run["layers"])
    assert len(summary) == n_layers * sum(len(prompt["answer_ids"]) for prompt in prompts)


@pytest.mark.parametrize("kaggle_folders", ["zip", "github"], indirect=True)
def test_the_code_and_the_images_are_found_or_the_remedy_is_said(kaggle_folders):
    """The demo's scenes beside the code are not taken for them."""
    inputs, working = kaggle_folders
    make = working.parents[1] / NOTEBOOKS[0]
    text, _ = shown_by(executed(make, working, upto="lens.load_images("))
    assert "lens_utils.py" in text and "4 images under" in text and "1 of them annotated" in text
    for path in inputs.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(CellExecutionError, match="choose Add Input, search for COCO-data-100"):
        executed(make, working, upto="lens.load_images(")
