"""Both notebooks, run top to bottom in a fresh kernel."""

import shutil

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from llava_lens import store
from tests.conftest import ROOT


def execute(path, folder, **parameters):
    """Run a notebook in `folder`, with parameters set as papermill does; return what it printed and
    its number of figures."""
    notebook = nbformat.read(ROOT / path, as_version=4)
    at = next(
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    )
    settings = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(settings))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    text = "".join(
        output.get("text", "") + str(output.get("data", {}).get("text/markdown", ""))
        for output in outputs
    )
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    return text, figures


@pytest.fixture
def tmp_path(tmp_path):
    """A folder with the project's code in it, as the notebooks need it beside them."""
    shutil.copy(ROOT / "lens_utils.py", tmp_path)
    shutil.copytree(ROOT / "llava_lens", tmp_path / "llava_lens")
    return tmp_path


def test_from_photographs_to_figures(tmp_path, llava_folder, photographs, blocked, monkeypatch):
    """A broken image among them is named and skipped; the second notebook has no torch."""
    images = shutil.copytree(photographs, tmp_path / "images")
    (images / "aaa_broken.jpg").write_bytes((photographs / "china.jpg").read_bytes()[:5000])
    parameters = dict(model=str(llava_folder), images=str(images), max_new_tokens=4)
    text, _ = execute("Make_Analyse.ipynb", tmp_path, **parameters)
    assert "4 images" in text and "3 images read" in text and "skipped aaa_broken.jpg" in text
    assert "1 of them annotated with 3 categories" in text
    records = {record["name"]: record for record in store.Results(tmp_path / "results").records()}
    assert list(records) == ["china.jpg", "flower.jpg", "grace_hopper.jpg"]
    kinds = [prompt["kind"] for prompt in records["china.jpg"]["prompts"]]
    assert kinds == ["object", "presence", "presence", "colour", "relation", "description"]

    monkeypatch.setenv("PYTHONPATH", str(blocked))
    text, figures = execute("Visualise_Analyse.ipynb", tmp_path, image="china.jpg", prompt=4)
    # The crop, top-1, both JSDs, entropy, patches, top tokens of three segments, means by segment
    # and kind, answers, settling, route, knockout; no category has a word in this vocabulary.
    assert figures == 15
    assert "3 images with 10 prompts" in text
    saved = {path.name for path in (tmp_path / "report/figures").iterdir()}
    of_image = {"china.jpg_4_top1.png", "china.jpg_patches.png"}
    assert of_image | {"settling.png", "mean_series.png"} <= saved
    assert (tmp_path / "report/explorer/china.jpg.html").exists()
    assert (tmp_path / "report/explorer/index.html").exists()
    summary = pd.read_csv(tmp_path / "report/summary.csv")
    prompts = [prompt for record in records.values() for prompt in record["prompts"]]
    assert len(summary) == 6 * sum(len(prompt["answer_ids"]) for prompt in prompts)


def test_second_notebook_says_what_is_missing(tmp_path):
    with pytest.raises(CellExecutionError, match="run Make_Analyse.ipynb first"):
        execute("Visualise_Analyse.ipynb", tmp_path, results=str(tmp_path))
