"""Both notebooks in an imitation of Kaggle's folders."""

import shutil

import pytest
from nbclient.exceptions import CellExecutionError

from tests.conftest import ROOT
from tests.test_kaggle import T4_X2
from tests.test_notebooks import execute

# Where Kaggle mounts the images, and the code: from a zip, and from the GitHub repository.
LAYOUTS = {
    "zip": ("coco-data-100", "llava-lens"),
    "owner": ("datasets/someone/coco-data-100", "datasets/someone/llava-lens"),
    "github": ("coco-data-100", "llava-lens/llava-logit-lens-main"),
}


@pytest.fixture(params=LAYOUTS)
def kaggle_folders(request, tmp_path, photographs, monkeypatch):
    """`/kaggle` below tmp_path, read-only inputs mounted in one of LAYOUTS, and copies of the
    notebooks that look there."""
    mounted, code = (tmp_path / "kaggle/input" / place for place in LAYOUTS[request.param])
    shutil.copytree(photographs, mounted / "val2017")
    (mounted / "val2017/instances_test.json").rename(mounted / "instances_val2017.json")
    (mounted.parent / "aaa-pictures").mkdir()
    shutil.copy(photographs / "flower.jpg", mounted.parent / "aaa-pictures")

    shutil.copytree(ROOT / "llava_lens", code / "llava_lens")
    shutil.copy(ROOT / "lens_utils.py", code)
    machine = code / "llava_lens/kaggle.py"
    # This machine's torch has no GPU; Kaggle's has.
    here = machine.read_text().replace("/kaggle/input", str(tmp_path / "kaggle/input"))
    machine.write_text(f"{here}\n\nprobe_gpus = lambda: {T4_X2!r}\n")
    for name in ("Make_Analyse.ipynb", "Visualise_Analyse.ipynb"):
        text = (ROOT / name).read_text().replace("/kaggle/input", str(tmp_path / "kaggle/input"))
        (tmp_path / name).write_text(text)
    before = {path: path.read_bytes() for path in mounted.parent.rglob("*") if path.is_file()}
    (tmp_path / "kaggle/working").mkdir()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    # What is attached is read-only on Kaggle: nothing may have been written to it.
    attached = {
        path
        for folder in (mounted, code, tmp_path / "kaggle/input/make-analyse")
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert all(
        path.read_bytes() == before[path] if path in before else path.suffix in (".pkl", ".pyc")
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

    shutil.move(working / "results", inputs / "make-analyse/results")
    text, _ = execute(
        kaggle_folders / "Make_Analyse.ipynb",
        working,
        go_on_from=str(inputs / "make-analyse"),
        **parameters,
    )
    assert "2 of 3 images are to be read" in text and "3 images read" in text
    shutil.rmtree(working / "results")

    text, figures = execute(kaggle_folders / "Visualise_Analyse.ipynb", working)
    assert figures == 15 and "3 images read with" in text


@pytest.mark.parametrize("kaggle_folders", ["zip"], indirect=True)
def test_without_the_code_or_images_the_remedy_is_said(kaggle_folders):
    inputs = kaggle_folders / "kaggle/input"
    for path in inputs.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(CellExecutionError, match="choose Add Input, search for COCO-data-100"):
        execute(kaggle_folders / "Make_Analyse.ipynb", kaggle_folders / "kaggle/working")
    next(inputs.rglob("lens_utils.py")).unlink()
    for name in ("Make_Analyse.ipynb", "Visualise_Analyse.ipynb"):
        with pytest.raises(CellExecutionError, match="No module named 'lens_utils'"):
            execute(kaggle_folders / name, kaggle_folders / "kaggle/working")
