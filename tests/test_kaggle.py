"""lens_kaggle: Kaggle without Kaggle. Made-up machines, and both notebooks in an imitation of its
folders."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from nbclient.exceptions import CellExecutionError

from llava_lens import kaggle as kaggle_py
from tests.conftest import ROOT
from tests.test_notebooks import execute


def gpu(name, capability, mib, works=True):
    total = mib << 20
    free = total - 2**28 if works else 0
    return {"name": name, "capability": capability, "works": works, "free": free, "total": total}


def machine(torch, *gpus):
    """What `probe_gpus` says of it."""
    return {"torch": torch, "cuda": "12.8", "gpus": list(gpus)}


T4 = gpu("Tesla T4", [7, 5], 15_360)
T4_X2 = machine("2.10.0+cu128", T4, T4)
# torch 2.10 has no kernels for it, torch 2.7.1 has.
P100 = machine("2.10.0+cu128", gpu("Tesla P100-PCIE-16GB", [6, 0], 16_384, works=False))
P100_WITH_ITS_TORCH = machine("2.7.1+cu126", gpu("Tesla P100-PCIE-16GB", [6, 0], 16_384))
NEW_GPU = machine("2.10.0+cu128", T4, gpu("New GPU", [13, 0], 99_999, works=False))
KAGGLES_OWN = {"transformers": "5.0.0"}
PREPARED = {"transformers": "5.23.0", "transformer-lens": "4.3.0"}
PIP_P100 = ["torch==2.7.1", "torchvision==0.22.1", "torchaudio==2.7.1"]
PIP_LENS = ["transformer-lens==4.3.0", "transformers==5.23.0"]


@pytest.fixture
def kaggle(monkeypatch):
    """Runs `prepare_kaggle` on a made-up machine and returns the packages that pip was asked
    for."""

    def prepare(probed, packages, imported=(), pip_status=0):
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
        monkeypatch.delenv("HF_HOME", raising=False)
        found = [SimpleNamespace(name=name, version=packages[name]) for name in packages]
        monkeypatch.setattr(kaggle_py.metadata, "distributions", lambda: iter(found))
        others = {k: v for k, v in sys.modules.items() if k not in ("torch", "transformers")}
        monkeypatch.setattr(kaggle_py.sys, "modules", dict.fromkeys(imported) | others)
        asked = []

        def fake_run(command, **options):
            if command[:2] == [sys.executable, "-c"]:
                return subprocess.CompletedProcess(command, 0, f"hello\n{json.dumps(probed)}\n", "")
            assert command[:5] == [sys.executable, "-m", "pip", "install", "--quiet"]
            asked.extend(command[5:])
            error = "Could not find a version: name resolution failed"
            return subprocess.CompletedProcess(command, pip_status, "", error)

        monkeypatch.setattr(kaggle_py.subprocess, "run", fake_run)
        kaggle_py.prepare_kaggle()
        return asked

    return prepare


def test_two_t4_need_transformer_lens_and_its_transformers(kaggle, capsys):
    assert kaggle(T4_X2, KAGGLES_OWN) == PIP_LENS
    said = capsys.readouterr().out
    assert said.count("Tesla T4, compute capability 7.5, 15,360 MiB") == 2
    assert "torch 2.10.0+cu128, built for CUDA 12.8" in said
    assert os.environ["HF_HOME"].startswith("/tmp")


def test_a_p100_gets_the_last_torch_for_it_with_its_companions(kaggle):
    assert kaggle(P100, KAGGLES_OWN) == PIP_P100 + PIP_LENS
    assert kaggle(P100, PREPARED) == PIP_P100


@pytest.mark.parametrize("probed", [T4_X2, P100_WITH_ITS_TORCH])
def test_nothing_is_installed_twice(kaggle, probed):
    assert kaggle(probed, PREPARED, imported=["torch", "transformers"]) == []


@pytest.mark.parametrize(
    "packages, asked",
    [
        ({**PREPARED, "transformers": "5.24.0"}, ["transformers==5.23.0"]),
        ({**PREPARED, "transformers": "5.23.1"}, ["transformers==5.23.0"]),
        ({**PREPARED, "transformer-lens": "4.2.0"}, ["transformer-lens==4.3.0"]),
        ({"transformers": "5.23.0"}, ["transformer-lens==4.3.0"]),
        ({**PREPARED, None: None}, []),  # what is left of a package that was removed
    ],
)
def test_only_the_tested_versions_will_do(kaggle, packages, asked):
    assert kaggle(T4_X2, packages) == asked


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((machine("2.10.0+cu128"), PREPARED), "There is no GPU: choose one"),
        ((P100, PREPARED, ["torch"]), "torch==2.7.1.* imported already: choose Run > Restart"),
        (
            (T4_X2, KAGGLES_OWN, ["transformers"]),
            "transformer-lens==4.3.0.* imported already: choose Run > Restart",
        ),
        ((T4_X2, KAGGLES_OWN, [], 1), "turn the internet on(.|\n)*name resolution failed"),
        ((NEW_GPU, PREPARED), "can't compute on a New GPU: choose another"),
        (
            ({"torch": "none", "cuda": None, "gpus": []}, PREPARED),
            "torch none can't be used, or has no code for any GPU: choose Run > Factory reset",
        ),
    ],
)
def test_what_cannot_work_is_said_with_its_remedy(kaggle, arguments, message):
    with pytest.raises(RuntimeError, match=message):
        kaggle(*arguments)


def test_off_kaggle_nothing_is_looked_at(monkeypatch, capsys):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setattr(kaggle_py.subprocess, "run", None)
    kaggle_py.prepare_kaggle()
    assert "Not on Kaggle" in capsys.readouterr().out


FAKE_TORCH = """
import sys
from types import SimpleNamespace

print("a warning of a library")
GPUS = {gpus!r}
__version__, version = "2.10.0+cu128", SimpleNamespace(cuda="12.8")


def properties(number):
    name, (major, minor), _, total, _ = GPUS[number]
    return SimpleNamespace(name=name, major=major, minor=minor, total_memory=total)


def ones(count, device):
    one = GPUS[int(device.removeprefix("cuda:"))][2]
    if one is None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
    return SimpleNamespace(sum=lambda: SimpleNamespace(item=lambda: count * one))


cuda = SimpleNamespace(
    device_count=lambda: len(GPUS),
    get_device_properties=properties,
    mem_get_info=lambda number: (GPUS[number][4], GPUS[number][3]),
)
"""


@pytest.fixture
def fake_torch(tmp_path, monkeypatch):
    """Puts a torch before the real one that has the GPUs which are given: name, capability, what
    it makes of a one (None: an error), total and free memory."""

    def fake(*gpus):
        (tmp_path / "torch.py").write_text(FAKE_TORCH.replace("{gpus!r}", repr(gpus)))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return fake


def test_a_gpu_works_if_torch_computes_on_it(fake_torch):
    fake_torch(
        ("Tesla T4", (7, 5), 1.0, 15_360, 15_000),
        ("Tesla P100-PCIE-16GB", (6, 0), None, 16_384, 16_000),
        ("Odd GPU", (9, 0), 0.5, 80_000, 70_000),
    )
    assert kaggle_py.probe_gpus() == {
        "torch": "2.10.0+cu128",
        "cuda": "12.8",
        "gpus": [
            {
                "name": "Tesla T4",
                "capability": [7, 5],
                "works": True,
                "free": 15_000,
                "total": 15_360,
            },
            {
                "name": "Tesla P100-PCIE-16GB",
                "capability": [6, 0],
                "works": False,
                "free": 0,
                "total": 16_384,
            },
            {
                "name": "Odd GPU",
                "capability": [9, 0],
                "works": False,
                "free": 70_000,
                "total": 80_000,
            },
        ],
    }


def test_a_broken_driver_is_no_gpu(fake_torch):
    fake_torch()
    assert kaggle_py.probe_gpus()["gpus"] == []


def test_a_torch_that_cannot_be_imported_says_why(blocked, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(blocked))
    said = "ImportError: torch is blocked"
    assert kaggle_py.probe_gpus() == {"torch": said, "cuda": None, "gpus": []}


def test_torch_is_asked_in_another_process(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code = "import llava_lens.kaggle as kaggle_py, sys; print(kaggle_py.probe_gpus(), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{'torch': '2.") and done.stdout.endswith("'gpus': []} False\n")


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
