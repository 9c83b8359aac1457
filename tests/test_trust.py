"""What strangers and accidents bring: code among results, links, other images under the same names,
two runs in one folder. A test per point of an audit; each failed before its point was mended."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

# ---- Code from a stranger's data set ------------------------------------------------------------

NOTEBOOKS = ("Make_Analyse.ipynb", "Visualise_Analyse.ipynb")
MODULES = sorted(path.name for path in ROOT.glob("lens_*.py"))


@pytest.fixture
def attached(tmp_path, monkeypatch):
    """Makes data sets with small modules (a line of code each) below an imitation of Kaggle's
    inputs."""
    monkeypatch.chdir(tmp_path)

    def attach(data_set, code="", modules=MODULES, *more):
        folder = tmp_path / "kaggle/input" / data_set
        for name in (*modules, *more):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"print('{code}')" if name in modules else "")
        return folder

    return attach


def import_utils(notebook, tmp_path):
    """Run a notebook's first code cell in `tmp_path`, import lens_utils: `(output, error)`."""
    cells = json.loads((ROOT / notebook).read_text())["cells"]
    code = "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"])
    code = code.replace("/kaggle", str(tmp_path / "kaggle")) + "\nimport lens_utils"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS)
@pytest.mark.parametrize("place", ["{}", "datasets/someone/{}"])
def test_code_is_not_taken_from_results(attached, tmp_path, notebook, place):
    """Whatever comes first by name; the one that is taken is named."""
    attached(place.format("aaa"), "STRANGER", MODULES, "deep/results/run.pkl")
    attached(place.format("bbb"), "STRANGER", ["lens_utils.py"])
    attached(place.format("ccc/deep"), "STRANGER")
    mine = attached(place.format("lens-utils"), "mine")
    attached(place.format("zzz"), "mine")  # the same once more
    said, error = import_utils(notebook, tmp_path)
    assert "STRANGER" not in said and said.count("mine") == 1, error
    assert f"lens_*.py from {mine}" in said or f"lens_*.py from {mine.parent / 'zzz'}" in said


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_no_code_or_several_stop_the_notebook(attached, tmp_path, notebook):
    attached("aaa", "STRANGER", MODULES, "run.pkl")
    said, error = import_utils(notebook, tmp_path)
    assert not said and "lens_utils.py is missing" in error and "no run.pkl" in error
    one, other = attached("one", "1"), attached("other", "2")
    said, error = import_utils(notebook, tmp_path)
    assert not said and str(one) in error and str(other) in error and "differ" in error
    shutil.rmtree(one)
    for module in MODULES:
        (tmp_path / module).write_text("print('beside')")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/run.pkl").touch()
    said, error = import_utils(notebook, tmp_path)
    assert not said and "differ" in error
    shutil.rmtree(other)
    said, _ = import_utils(notebook, tmp_path)
    assert said.count("beside") == 1 and f"lens_*.py from {tmp_path}" in said
