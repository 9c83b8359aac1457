"""Both notebooks in an imitation of Kaggle's folders."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from nbclient.exceptions import CellExecutionError

from tests.conftest import ROOT
from tests.test_kaggle import T4_X2
from tests.test_notebooks import execute


@pytest.fixture(params=["coco-data-100", "datasets/someone/coco-data-100"])
def kaggle_folders(request, tmp_path, photographs, monkeypatch):
    """`/kaggle` below tmp_path, read-only inputs mounted in one of the two layouts, and copies of
    the notebooks that look there."""
    mounted = tmp_path / "kaggle/input" / request.param
    shutil.copytree(photographs, mounted / "val2017")
    (mounted / "val2017/instances_test.json").rename(mounted / "instances_val2017.json")
    (mounted.parent / "aaa-pictures").mkdir()
    shutil.copy(photographs / "flower.jpg", mounted.parent / "aaa-pictures")
    helper = mounted.parent / "lens-utils"
    helper.mkdir()

    def copy(path, folder, more=""):
        code = path.read_text().replace("/kaggle", str(tmp_path / "kaggle"))
        (folder / path.name).write_text(code + more)

    # This machine's torch has no GPU; Kaggle's has.
    probe = {"lens_kaggle.py": f"\n\nprobe_gpus = lambda: {T4_X2!r}\n"}
    for module in ROOT.glob("lens_*"):
        copy(module, helper, probe.get(module.name, ""))
    for name in ("Make_Analyse.ipynb", "Visualise_Analyse.ipynb"):
        copy(ROOT / name, tmp_path)
    before = {path: path.read_bytes() for path in mounted.parent.rglob("*") if path.is_file()}
    (tmp_path / "kaggle/working").mkdir()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    # What is attached is read-only on Kaggle: nothing may have been written to it.
    attached = {
        path
        for folder in (mounted, helper, tmp_path / "kaggle/input/make-analyse")
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert all(
        path.read_bytes() == before[path] if path in before else path.suffix == ".pkl"
        for path in attached
    )


def test_both_notebooks_as_kaggle_runs_them(kaggle_folders):
    """Modules, images and results found by what is in the attached folders; a run out of time goes
    on from its attached output."""
    working, inputs = kaggle_folders / "kaggle/working", kaggle_folders / "kaggle/input"
    parameters = dict(model=str(ROOT / "demo/model"), max_new_tokens=3, device="cpu")
    text, _ = execute(kaggle_folders / "Make_Analyse.ipynb", working, hours=0.0, **parameters)
    assert "Tesla T4" in text and "3 images under" in text and "1 of them annotated" in text
    assert "The time is over with 2 images left" in text
    with pytest.raises(CellExecutionError, match="torch sees no GPU"):
        execute(
            kaggle_folders / "Make_Analyse.ipynb",
            working,
            **{**parameters, "device": None, "processes": 1},
        )

    text, _ = execute(kaggle_folders / "Make_Analyse.ipynb", working, **parameters)
    assert "3 images read, 2 of them in this session" in text
    shutil.move(working / "results", inputs / "make-analyse/results")
    text, _ = execute(
        kaggle_folders / "Make_Analyse.ipynb",
        working,
        go_on_from=str(inputs / "make-analyse"),
        **parameters,
    )
    assert "3 images read, 0 of them in this session" in text
    shutil.rmtree(working / "results")

    text, figures = execute(kaggle_folders / "Visualise_Analyse.ipynb", working)
    assert figures == 15 and "3 images read with" in text


@pytest.mark.parametrize("kaggle_folders", ["coco-data-100"], indirect=True)
def test_without_the_helper_or_images_the_remedy_is_said(kaggle_folders):
    inputs = kaggle_folders / "kaggle/input"
    for path in inputs.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(CellExecutionError, match="choose Add Input, search for COCO-data-100"):
        execute(kaggle_folders / "Make_Analyse.ipynb", kaggle_folders / "kaggle/working")
    next(inputs.rglob("lens_utils.py")).unlink()
    for name in ("Make_Analyse.ipynb", "Visualise_Analyse.ipynb"):
        with pytest.raises(CellExecutionError, match=r"lens_\* are missing: put all 14 files"):
            execute(kaggle_folders / name, kaggle_folders / "kaggle/working")


SPY = """
import builtins, os, sys
real = builtins.__import__
def spy(name, *args, **kwargs):
    if name == "torch" and name not in sys.modules:
        print(os.environ.get("OMP_WAIT_POLICY"))
    return real(name, *args, **kwargs)
builtins.__import__ = spy
"""


@pytest.mark.parametrize(
    "imports", ["import lens_kaggle, accelerate", "import lens_model", "import lens_read"]
)
def test_torchs_idle_threads_sleep(imports):
    """Spinning, they take the core that another process needs; torch reads it when imported."""
    environment = {name: value for name, value in os.environ.items() if "OMP" not in name}
    command = [sys.executable, "-c", SPY + imports]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "PASSIVE", done.stderr
    cells = json.loads((ROOT / "Make_Analyse.ipynb").read_text(encoding="utf-8"))["cells"]
    source = "".join(line for cell in cells for line in cell["source"])
    assert source.index("import lens_kaggle") < source.index("import notebook_launcher")
