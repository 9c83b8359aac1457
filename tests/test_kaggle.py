"""Kaggle without Kaggle: recorded machines, and both notebooks in an imitation of its folders."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from nbclient.exceptions import CellExecutionError

import lens_utils as lu
from conftest import ROOT
from test_notebooks import execute

# What `nvidia-smi` and torch said on the machines in question.
P100 = "Tesla P100-PCIE-16GB, 6.0, 16384\n"
T4_X2 = "Tesla T4, 7.5, 15360\nTesla T4, 7.5, 15360\n"
TORCH_2_10 = ("2.10.0+cu128", ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"])
TORCH_2_7_1 = ("2.7.1+cu126", ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"])
KAGGLES_OWN = {"transformers": "5.0.0"}
PREPARED = {"transformers": "5.23.0", "transformer-lens": "4.3.0"}


@pytest.fixture
def fake_nvidia_smi(tmp_path, monkeypatch):
    """Puts an `nvidia-smi` first on the PATH that prints what is given."""

    def fake(output: str, exit_status: int = 0):
        script = tmp_path / "bin" / "nvidia-smi"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\nprintf '{output}'\nexit {exit_status}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")

    return fake


@pytest.fixture
def kaggle(fake_nvidia_smi, monkeypatch):
    """Runs `prepare_kaggle` on a recorded machine and returns the packages that pip was asked for."""

    def prepare(smi, torch, packages, imported=(), pip_status=0):
        fake_nvidia_smi(smi)
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
        monkeypatch.delenv("HF_HOME", raising=False)
        monkeypatch.setattr(lu, "find_torch", lambda: torch)
        monkeypatch.setattr(
            "importlib.metadata.version",
            lambda name: packages[name] if name in packages else missing(name),
        )
        monkeypatch.setattr(
            lu.sys,
            "modules",
            dict.fromkeys(imported)
            | {k: v for k, v in sys.modules.items() if k not in ("torch", "transformers")},
        )
        asked, run = [], subprocess.run

        def fake_run(command, **options):
            if command[0] == "nvidia-smi":
                return run(command, **options)
            assert command[:5] == [sys.executable, "-m", "pip", "install", "--quiet"]
            asked.extend(command[5:])
            return subprocess.CompletedProcess(
                command, pip_status, "", "Could not find a version: name resolution failed"
            )

        monkeypatch.setattr(lu.subprocess, "run", fake_run)
        lu.prepare_kaggle()
        return asked

    return prepare


def missing(name):
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


def test_two_t4_need_transformer_lens_alone(kaggle, capsys):
    assert kaggle(T4_X2, TORCH_2_10, KAGGLES_OWN) == ["transformer-lens==4.3.0"]
    said = capsys.readouterr().out
    assert (
        said.count("Tesla T4, compute capability 7.5, 15,360 MiB") == 2
        and "torch 2.10.0+cu128" in said
        and "sm_75" in said
    )
    assert os.environ["HF_HOME"].startswith("/tmp")


def test_a_p100_gets_the_last_torch_for_it_with_its_companions(kaggle):
    assert kaggle(P100, TORCH_2_10, KAGGLES_OWN) == [
        "torch==2.7.1",
        "torchvision==0.22.1",
        "torchaudio==2.7.1",
        "transformer-lens==4.3.0",
    ]


@pytest.mark.parametrize("smi, torch", [(T4_X2, TORCH_2_10), (P100, TORCH_2_7_1)])
def test_nothing_is_installed_twice(kaggle, smi, torch):
    assert kaggle(smi, torch, PREPARED) == []


@pytest.mark.parametrize(
    "machine, message",
    [
        (("", TORCH_2_10, PREPARED), "There is no GPU: choose one"),
        ((P100, TORCH_2_10, PREPARED, ["torch"]), "imported already: choose Run > Restart"),
        (
            (T4_X2, TORCH_2_10, KAGGLES_OWN, ["transformers"]),
            "imported already: choose Run > Restart",
        ),
        ((T4_X2, TORCH_2_10, KAGGLES_OWN, [], 1), "turn the internet on"),
        (("New GPU, 13.0, 99999\n", TORCH_2_10, PREPARED), "no code for a New GPU"),
        ((T4_X2, ("none", []), PREPARED), "can't be used or has no code for any GPU"),
    ],
)
def test_what_cannot_work_is_said_with_its_remedy(kaggle, machine, message):
    with pytest.raises(RuntimeError, match=message):
        kaggle(*machine)


def test_off_kaggle_nothing_is_looked_at(monkeypatch, capsys):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setattr(lu.subprocess, "run", None)
    lu.prepare_kaggle()
    assert "Not on Kaggle" in capsys.readouterr().out


def test_a_broken_driver_is_no_gpu(fake_nvidia_smi):
    fake_nvidia_smi("NVIDIA-SMI has failed", exit_status=9)
    assert lu.find_gpus() == []


def test_torch_is_asked_in_another_process():
    version, architectures = lu.find_torch()
    assert version[0] == "2" and isinstance(architectures, list)


@pytest.mark.parametrize(
    "capability, architectures, runs",
    [
        ((6, 0), TORCH_2_10[1], False),
        ((6, 0), TORCH_2_7_1[1], True),
        ((7, 5), TORCH_2_10[1], True),
        ((8, 9), TORCH_2_10[1], True),
        ((7, 0), ["sm_75"], False),
        ((10, 0), TORCH_2_10[1], True),
        ((9, 0), ["sm_90a"], True),
        ((6, 0), [], False),
    ],
)
def test_runs_on(capability, architectures, runs):
    assert lu.runs_on(capability, architectures) is runs


GIB = 2**30
WEIGHTS = 7_063_427_072 * 2


@pytest.mark.parametrize(
    "free, device_map",
    [
        ([], {"": "cpu"}),
        ([15.5 * GIB], {"": 0}),
        ([3 * GIB, 15.5 * GIB], {"": 1}),
        ([14.0 * GIB] * 2, "balanced"),
        ([14.5 * GIB] * 2, {"": 0}),
    ],
)
def test_placement(free, device_map):
    assert lu.placement(WEIGHTS, free) == device_map


@pytest.mark.parametrize("free", [[8 * GIB], [7 * GIB, 7 * GIB]])
def test_no_room_is_said_in_numbers(free):
    with pytest.raises(MemoryError, match=r"13\.2 GiB.* free are only"):
        lu.placement(WEIGHTS, free)


@pytest.fixture(params=["coco-data-100", "datasets/someone/coco-data-100"])
def kaggle_folders(request, tmp_path, photographs, monkeypatch):
    """`/kaggle` below tmp_path, read-only inputs mounted in one of the two layouts, and copies of the notebooks that look there."""
    mounted = tmp_path / "kaggle/input" / request.param
    shutil.copytree(photographs, mounted / "val2017")
    (mounted / "val2017/instances_test.json").rename(mounted / "instances_val2017.json")
    (mounted.parent / "aaa-pictures").mkdir()
    shutil.copy(photographs / "flower.jpg", mounted.parent / "aaa-pictures")
    helper = mounted.parent / "lens-utils"
    helper.mkdir()
    code = (ROOT / "lens_utils.py").read_text().replace("/kaggle", str(tmp_path / "kaggle"))
    # This machine's torch has no GPU code; Kaggle's has.
    (helper / "lens_utils.py").write_text(code + f"\n\nfind_torch = lambda: {TORCH_2_10!r}\n")
    for name in ("Make_Analyse.ipynb", "Visualise_Analyse.ipynb"):
        (tmp_path / name).write_text(
            (ROOT / name).read_text().replace("/kaggle", str(tmp_path / "kaggle"))
        )
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


def test_both_notebooks_as_kaggle_runs_them(kaggle_folders, fake_nvidia_smi):
    """Helper, images and results found by what is in the attached folders; a run out of time goes on from its attached output."""
    fake_nvidia_smi(T4_X2)
    working, inputs = kaggle_folders / "kaggle/working", kaggle_folders / "kaggle/input"
    parameters = dict(model=str(ROOT / "demo/model"), max_new_tokens=3, device="cpu")
    text, _ = execute(kaggle_folders / "Make_Analyse.ipynb", working, hours=0.0, **parameters)
    assert "Tesla T4" in text and "3 images under" in text and "1 of them annotated" in text
    assert "The time is over with 2 images left" in text
    with pytest.raises(CellExecutionError, match="torch sees no GPU"):
        execute(kaggle_folders / "Make_Analyse.ipynb", working, **{**parameters, "device": None})

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
    # As in test_notebooks, and one of words: the demo's vocabulary has a colour that is annotated.
    assert figures == 16 and "3 images read with" in text


@pytest.mark.parametrize("kaggle_folders", ["coco-data-100"], indirect=True)
def test_without_the_helper_or_images_the_remedy_is_said(kaggle_folders, fake_nvidia_smi):
    fake_nvidia_smi(T4_X2)
    inputs = kaggle_folders / "kaggle/input"
    for path in inputs.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(CellExecutionError, match="choose Add Input, search for COCO-data-100"):
        execute(kaggle_folders / "Make_Analyse.ipynb", kaggle_folders / "kaggle/working")
    next(inputs.rglob("lens_utils.py")).unlink()
    for name in ("Make_Analyse.ipynb", "Visualise_Analyse.ipynb"):
        with pytest.raises(CellExecutionError, match="lens_utils.py is missing"):
            execute(kaggle_folders / name, kaggle_folders / "kaggle/working")


@pytest.mark.parametrize("folder", ["make-analyse", "visualise-analyse"])
def test_kernel_metadata_names_what_is_there(folder):
    metadata = json.loads((ROOT / "kaggle" / folder / "kernel-metadata.json").read_text())
    assert (ROOT / "kaggle" / folder / metadata["code_file"]).is_file()
    assert metadata["id"].split("/")[1] == metadata["title"].lower().replace(" ", "-") == folder
    helper = json.loads((ROOT / "kaggle/lens-utils/dataset-metadata.json").read_text())
    assert helper["id"] in metadata["dataset_sources"]


def test_the_second_kernel_takes_the_output_of_the_first():
    first, second = (
        json.loads((ROOT / "kaggle" / name / "kernel-metadata.json").read_text())
        for name in ("make-analyse", "visualise-analyse")
    )
    assert (
        second["kernel_sources"] == [first["id"]]
        and first["enable_internet"]
        and not second["enable_gpu"]
    )
