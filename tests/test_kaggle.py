"""Kaggle without Kaggle: made-up machines, and what is pushed to it."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from llava_lens import kaggle as kaggle_py
from tests.conftest import ROOT


def gpu_found(name, capability, works, free, total):
    return {"name": name, "capability": capability, "works": works, "free": free, "total": total}


def gpu(name, capability, mib, works=True):
    total = mib << 20
    return gpu_found(name, capability, works, total - 2**28 if works else 0, total)


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
        ((machine("2.10.0+cu128"), PREPARED), "There is no GPU: choose GPU T4 x2 under"),
        ((P100, PREPARED, ["torch"]), "torch==2.7.1.* imported already: choose Run > Restart"),
        (
            (T4_X2, KAGGLES_OWN, ["transformers"]),
            "transformer-lens==4.3.0.* imported already: choose Run > Restart",
        ),
        ((T4_X2, KAGGLES_OWN, [], 1), "turn the internet on(.|\n)*name resolution failed"),
        ((NEW_GPU, PREPARED), "can't compute on a New GPU: choose GPU T4 x2"),
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
            gpu_found("Tesla T4", [7, 5], True, 15_000, 15_360),
            gpu_found("Tesla P100-PCIE-16GB", [6, 0], False, 0, 16_384),
            gpu_found("Odd GPU", [9, 0], False, 70_000, 80_000),
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
    code = "import sys; from llava_lens.kaggle import probe_gpus\n"
    code += "print(probe_gpus(), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{'torch': '2.") and done.stdout.endswith("'gpus': []} False\n")


@pytest.mark.parametrize("folder", ["make-analyse", "visualise-analyse"])
def test_kernel_metadata_names_what_is_there(folder):
    metadata = json.loads((ROOT / "kaggle" / folder / "kernel-metadata.json").read_text())
    assert (ROOT / "kaggle" / folder / metadata["code_file"]).is_file()
    assert metadata["id"].split("/")[1] == metadata["title"].lower().replace(" ", "-") == folder
    data_set = json.loads((ROOT / "kaggle/llava-lens/dataset-metadata.json").read_text())
    assert data_set["id"].split("/")[1] == data_set["title"] == "llava-lens"
    assert data_set["id"] in metadata["dataset_sources"]


def test_the_second_kernel_takes_the_output_of_the_first():
    first, second = (
        json.loads((ROOT / "kaggle" / name / "kernel-metadata.json").read_text())
        for name in ("make-analyse", "visualise-analyse")
    )
    assert (
        second["kernel_sources"] == [first["id"]]
        and first["enable_internet"]
        and first["machine_shape"] == "NvidiaTeslaT4"
        and not second["enable_gpu"]
    )
