"""Both notebooks, run top to bottom in a fresh kernel."""

import shutil

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from llava_lens import store
from tests.conftest import ROOT


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


@pytest.fixture
def tmp_path(tmp_path):
    """A folder with the project's code in it, as the notebooks need it beside them."""
    shutil.copy(ROOT / "lens_utils.py", tmp_path)
    shutil.copytree(ROOT / "llava_lens", tmp_path / "llava_lens")
    return tmp_path


@pytest.mark.timeout(300)
def test_from_photographs_to_figures(tmp_path, llava_folder, photographs, blocked, monkeypatch):
    """A broken image among them is named and skipped; the second notebook has no torch."""
    images = shutil.copytree(photographs, tmp_path / "images")
    (images / "aaa_broken.jpg").write_bytes((photographs / "china.jpg").read_bytes()[:5000])
    parameters = dict(model=str(llava_folder), images=str(images), max_new_tokens=4)
    text, _ = shown_by(executed("Make_Analyse.ipynb", tmp_path, **parameters))
    assert "4 images" in text and "3 images read" in text and "skipped aaa_broken.jpg" in text
    assert "1 of them annotated with 3 categories" in text
    records = {record["name"]: record for record in store.Results(tmp_path / "results").records()}
    assert list(records) == ["china.jpg", "flower.jpg", "grace_hopper.jpg"]
    kinds = [prompt["kind"] for prompt in records["china.jpg"]["prompts"]]
    assert kinds == ["object", "presence", "presence", "colour", "relation", "description"]

    monkeypatch.setenv("PYTHONPATH", str(blocked))
    parameters = dict(image="china.jpg", prompt=4)
    notebook = executed("Visualise_Analyse.ipynb", tmp_path, **parameters)
    text, figures = shown_by(notebook)
    page, _ = HTMLExporter(template_name="classic").from_notebook_node(notebook)
    # Which nbconvert gives to an image without an alternative text.
    assert page.count(" alt=") >= 12 and "No description has been provided" not in page
    # The crop, the prompt, patches, top tokens of three segments, means by segment and kind,
    # answers, settling, route, knockout; no category has a word in this vocabulary.
    assert figures == 12
    assert "3 images with 10 prompts" in text
    saved = {path.name for path in (tmp_path / "report/figures").iterdir()}
    of_image = {"china.jpg_4_prompt.png", "china.jpg_patches.png"}
    assert of_image | {"settling.png", "mean_series.png"} <= saved
    pages = {path.name for path in (tmp_path / "report/explorer").iterdir()}
    assert {"china.jpg.html", "index.html"} <= pages
    summary = pd.read_csv(tmp_path / "report/summary.csv")
    prompts = [prompt for record in records.values() for prompt in record["prompts"]]
    assert len(summary) == 6 * sum(len(prompt["answer_ids"]) for prompt in prompts)
