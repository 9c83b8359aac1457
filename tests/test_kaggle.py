"""Kaggle without Kaggle: made-up machines, and what is pushed to it."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from llava_lens import kaggle as kaggle_py
from llava_lens.kaggle import PIP_4BIT, PIP_LENS, PIP_P100
from tests.conftest import ROOT


def gpu(name, capability, mib, works=True, free=None):
    """What `probe_gpus` says of a GPU."""
    free = (mib if works else 0) << 20 if free is None else free
    about = {"name": name, "capability": capability, "works": works}
    return {**about, "free": free, "total": mib << 20}


def machine(torch, *gpus):
    """What `probe_gpus` says of a machine."""
    return {"torch": torch, "cuda": "12.8", "gpus": list(gpus)}


T4 = gpu("Tesla T4", [7, 5], 15_360)
T4_X2 = machine("2.10.0+cu128", T4, T4)
# torch 2.10 has no kernels for it, torch 2.7.1 has.
P100 = machine("2.10.0+cu128", gpu("Tesla P100-PCIE-16GB", [6, 0], 16_384, works=False))
P100_WITH_ITS_TORCH = machine("2.7.1+cu126", gpu("Tesla P100-PCIE-16GB", [6, 0], 16_384))
NEW_GPU = machine("2.10.0+cu128", T4, gpu("New GPU", [13, 0], 99_999, works=False))
KAGGLES_OWN = {"transformers": "5.0.0"}
PREPARED = {"transformers": "5.24.0", "transformer-lens": "4.3.0"}


@pytest.fixture
def kaggle(monkeypatch):
    """Runs `prepare_kaggle`, or `prepare_quantize`, on a made-up machine and returns the packages
    that pip was asked for."""

    def prepare(probed, packages, imported=(), pip_status=0, quantize=None):
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
        kaggle_py.prepare_quantize(quantize) if quantize else kaggle_py.prepare_kaggle()
        return asked

    return prepare


def test_the_machine_is_said(kaggle, capsys):
    kaggle(T4_X2, PREPARED)
    said = capsys.readouterr().out
    assert said.count("Tesla T4, compute capability 7.5, 15,360 MiB") == 2
    assert "torch 2.10.0+cu128, built for CUDA 12.8" in said
    assert os.environ["HF_HOME"].startswith("/tmp")


@pytest.mark.parametrize(
    "probed, packages, quantize, asked",
    [
        (T4_X2, KAGGLES_OWN, None, PIP_LENS),
        (T4_X2, PREPARED, None, []),
        (T4_X2, {**PREPARED, "transformers": "5.24.1"}, None, ["transformers==5.24.0"]),
        (T4_X2, {"transformers": "5.24.0"}, None, ["transformer-lens==4.3.0"]),
        (T4_X2, {**PREPARED, None: None}, None, []),  # what is left of a package that was removed
        (T4_X2, PREPARED, "4bit", PIP_4BIT),
        (T4_X2, {**PREPARED, "bitsandbytes": "0.50.2"}, "4bit", []),
        # A P100 gets the last torch for it with its companions.
        (P100, KAGGLES_OWN, None, PIP_P100 + PIP_LENS),
        (P100, PREPARED, None, PIP_P100),
        (P100_WITH_ITS_TORCH, PREPARED, None, []),
    ],
)
def test_only_the_tested_versions_will_do(kaggle, probed, packages, quantize, asked):
    """Where nothing is missing, torch may be imported already."""
    imported = [] if asked else ["torch", "transformers"]
    assert kaggle(probed, packages, imported, quantize=quantize) == asked


def test_what_kaggle_installs_is_what_was_tested():
    """Pins are in the ranges of requirements.txt, of their newest minor version; torchvision and
    torchaudio are those made for the pinned torch."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    tested = map(Requirement, (line for line in lines if not line.startswith("#")))
    ranges = {one.name: one.specifier for one in tested}
    pins = dict(pin.split("==") for pin in PIP_LENS + PIP_4BIT + PIP_P100)
    for name in pins.keys() & ranges.keys():
        assert pins[name] in ranges[name], name
        major, minor, _ = map(int, pins[name].split("."))
        assert name == "torch" or f"{major}.{minor + 1}" not in ranges[name], name
    major, minor, patch = map(int, pins["torch"].split("."))
    companions = {"torchvision": f"0.{minor + 15}.{patch}", "torchaudio": pins["torch"]}
    assert pins.items() >= companions.items() and pins.keys() - companions <= ranges.keys()


RESTART = "imported already: choose Run > Restart"
NO_TORCH = {"torch": "none", "cuda": None, "gpus": []}
FACTORY_RESET = "torch none can't be used, or has no code for any GPU: choose Run > Factory reset"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((machine("2.10.0+cu128"), PREPARED), "There is no GPU: choose GPU T4 x2 under"),
        ((P100, PREPARED, ["torch"]), f"torch==2.7.1.* {RESTART}"),
        ((T4_X2, KAGGLES_OWN, ["transformers"]), f"transformer-lens==4.3.0.* {RESTART}"),
        ((T4_X2, PREPARED, ["torch"], 0, "4bit"), f"bitsandbytes==0.50.2.* {RESTART}"),
        ((T4_X2, KAGGLES_OWN, [], 1), "turn the internet on(.|\n)*name resolution failed"),
        ((NEW_GPU, PREPARED), "can't compute on a New GPU: choose GPU T4 x2"),
        ((NO_TORCH, PREPARED), FACTORY_RESET),
    ],
)
def test_what_cannot_work_is_said_with_its_remedy(kaggle, arguments, message):
    with pytest.raises(RuntimeError, match=message):
        kaggle(*arguments)


def test_off_kaggle_nothing_is_looked_at(monkeypatch, capsys):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setattr(kaggle_py.subprocess, "run", None)
    monkeypatch.setattr(kaggle_py.metadata, "distributions", None)
    kaggle_py.prepare_kaggle()
    kaggle_py.prepare_quantize("4bit")
    assert "Not on Kaggle" in capsys.readouterr().out


# Each GPU: its name, capability, what it makes of a one (None: an error), free and total memory.
FAKE_TORCH = """
from types import SimpleNamespace

print("a warning of a library")
GPUS = {gpus!r}
__version__, version = "2.10.0+cu128", SimpleNamespace(cuda="12.8")


def properties(number):
    name, (major, minor), _, _, total = GPUS[number]
    return SimpleNamespace(name=name, major=major, minor=minor, total_memory=total)


def ones(count, device):
    one = GPUS[int(device.removeprefix("cuda:"))][2]
    if one is None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
    return SimpleNamespace(sum=lambda: SimpleNamespace(item=lambda: count * one))


cuda = SimpleNamespace(
    device_count=lambda: len(GPUS),
    get_device_properties=properties,
    mem_get_info=lambda number: GPUS[number][3:],
)
"""
GIB = 1 << 30


@pytest.mark.parametrize(
    "gpus, found",
    [
        ([], []),  # as with a broken driver
        (
            [
                ("Tesla T4", (7, 5), 1.0, GIB, 2 * GIB),
                ("Tesla P100-PCIE-16GB", (6, 0), None, GIB, 2 * GIB),
                ("Odd GPU", (9, 0), 0.5, GIB, 2 * GIB),
            ],
            [
                gpu("Tesla T4", [7, 5], 2048, True, GIB),
                gpu("Tesla P100-PCIE-16GB", [6, 0], 2048, False, 0),
                gpu("Odd GPU", [9, 0], 2048, False, GIB),
            ],
        ),
    ],
)
def test_a_gpu_works_if_torch_computes_on_it(gpus, found, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(FAKE_TORCH.replace("{gpus!r}", repr(gpus)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert kaggle_py.probe_gpus() == machine("2.10.0+cu128", *found)


def test_a_torch_that_cannot_be_imported_says_why(blocked, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(blocked))
    said = "ImportError: torch is blocked"
    assert kaggle_py.probe_gpus() == {"torch": said, "cuda": None, "gpus": []}


def test_a_device_that_is_not_here_is_named_with_those_that_are(monkeypatch):
    monkeypatch.setattr(kaggle_py, "probe_gpus", lambda: T4_X2)
    for device in (None, "cuda", "cuda:1"):
        assert kaggle_py.gpus_for(device) == [T4, T4]
    usable = r"sees 2 GPUs here: .* one of \['None', 'cpu', 'cuda', 'cuda:0', 'cuda:1'\]"
    with pytest.raises(ValueError, match=f"device is 'cuda:2', and torch {usable}"):
        kaggle_py.gpus_for("cuda:2")


def test_the_real_torch_is_asked(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": []}
    assert kaggle_py.probe_gpus() == found


def test_the_kernels_and_the_data_set_name_each_other():
    def metadata(path):
        return json.loads((ROOT / "kaggle" / path).read_text(encoding="utf-8"))

    folders = "make-analyse", "visualise-analyse"
    first, second = (metadata(f"{folder}/kernel-metadata.json") for folder in folders)
    data_set = metadata("llava-lens/dataset-metadata.json")
    assert data_set["id"].split("/")[1] == data_set["title"] == "llava-lens"
    for folder, kernel in zip(folders, (first, second), strict=True):
        assert (ROOT / "kaggle" / folder / kernel["code_file"]).is_file()
        assert kernel["id"].split("/")[1] == kernel["title"].lower().replace(" ", "-") == folder
        assert data_set["id"] in kernel["dataset_sources"]
    assert second["kernel_sources"] == [first["id"]] and not second["enable_gpu"]
    assert first["enable_internet"] and first["machine_shape"] == "NvidiaTeslaT4"
