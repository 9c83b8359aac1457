"""What this machine can do, and what must be installed on Kaggle. Runs before torch is imported."""

import json
import os
import subprocess
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path

from llava_lens.text import require

KAGGLE_INPUT = Path("/kaggle/input")
STARTED = time.monotonic()  # of the session, from which hours are counted
# Kaggle's image has an older transformers.
PIP_LENS = ["transformer-lens==4.3.0", "transformers==5.24.0"]
PIP_4BIT = ["bitsandbytes==0.50.2"]
# Kaggle no longer offers the P100. The last torch with its kernels is 2.7.1; torchvision and
# torchaudio must match it.
PIP_P100 = ["torch==2.7.1", "torchvision==0.22.1", "torchaudio==2.7.1"]
# A sum on each GPU shows whether torch has kernels for it; version numbers don't tell.
PROBE = """
import json, torch
gpus = []
for number in range(torch.cuda.device_count()):
    device = torch.cuda.get_device_properties(number)
    gpu = {"name": device.name, "capability": [device.major, device.minor]}
    try:
        gpu["works"] = torch.ones(8, device=f"cuda:{number}").sum().item() == 8
        gpu["free"], gpu["total"] = torch.cuda.mem_get_info(number)
    except RuntimeError:
        gpu["works"], gpu["free"], gpu["total"] = False, 0, device.total_memory
    gpus.append(gpu)
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""


def on_kaggle() -> bool:
    """Whether this runs in a Kaggle notebook."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def data_sets() -> list[Path]:
    """The folders of attached data sets: `<slug>` or `datasets/<owner>/<slug>`."""
    paths = sorted([*KAGGLE_INPUT.glob("*"), *KAGGLE_INPUT.glob("datasets/*/*")])
    return [path for path in paths if path.is_dir() and path != KAGGLE_INPUT / "datasets"]


def deadline_after(hours: float) -> float:
    """`time.monotonic()` when so many hours of the session are over. Raises ValueError."""
    wrong = f"hours is {hours!r}: it must be a number of 0 or more."
    require(type(hours) in (int, float) and hours >= 0, wrong)
    return STARTED + 3600 * hours


def probe_gpus() -> dict:
    """What torch can do on this machine, tried in another process: torch, once imported, can't be
    replaced, and a process that has used a GPU can't be forked.

    - `torch`: its version, or the error of importing it; `cuda`: what it was built for, or None
    - `gpus`: for each `name`, `capability` `[major, minor]`, `works` (a sum on it is right), `free`
      and `total` bytes
    """
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if done.returncode:
        return {"torch": (done.stderr.strip() or "none").splitlines()[-1], "cuda": None, "gpus": []}
    return json.loads(done.stdout.splitlines()[-1])


def gpus_for(device: str | None) -> list[dict]:
    """The GPUs that torch sees now (`probe_gpus`), which takes some seconds; for "cpu" none, at
    once. Raises ValueError, which names those that are here, for a `device` that is not."""
    if device == "cpu":
        return []
    gpus = probe_gpus()["gpus"]
    usable = ["cuda"] * bool(gpus) + [f"cuda:{number}" for number in range(len(gpus))]
    sees = f"device is {device!r}, and torch sees {len(gpus)} GPUs here"
    known = device is None or device in usable
    require(known, f"{sees}: set it to one of {['None', 'cpu', *usable]}.")
    return gpus


def prepare_kaggle() -> None:
    """On Kaggle, before torch is imported: print what machine this is and install what is missing.
    Elsewhere: nothing. Raises RuntimeError with the remedy if the machine can't do the work."""
    # A widget for progress could not be seen in the saved page.
    warnings.filterwarnings("ignore", message="IProgress not found")
    if not on_kaggle():
        print("Not on Kaggle: nothing to install here, requirements.txt has what is needed.")
        return
    # 13.5 GB of weights would fill /kaggle/working, and be saved with the notebook's output.
    os.environ.setdefault("HF_HOME", "/tmp/huggingface")
    machine = probe_gpus()
    for gpu in machine["gpus"]:
        capability = ".".join(map(str, gpu["capability"]))
        print(f"GPU: {gpu['name']}, compute capability {capability}, {gpu['total'] >> 20:,} MiB")
    torch, choose_t4 = f"torch {machine['torch']}", "choose GPU T4 x2 under Settings > Accelerator"
    print(f"{torch}, built for CUDA {machine['cuda'] or '(none)'}")
    unfit = [gpu for gpu in machine["gpus"] if not gpu["works"]]
    old = bool(unfit) and unfit[0]["capability"][0] < 7  # for it an older torch is installed
    then = "then run all cells again."
    if not machine["cuda"]:
        what = f"{torch} can't be used, or has no code for any GPU"
        raise RuntimeError(f"{what}: choose Run > Factory reset, {then}")
    if not machine["gpus"] or unfit and not old:
        what = f"{torch} can't compute on a {unfit[0]['name']}" if unfit else "There is no GPU"
        raise RuntimeError(f"{what}: {choose_t4}, {then}")
    _install(PIP_P100 * old + PIP_LENS)


def prepare_quantize(quantize: str | None) -> None:
    """On Kaggle, before torch is imported: install what `quantize` needs. Elsewhere: nothing."""
    if quantize and on_kaggle():
        _install(PIP_4BIT)


def _install(packages: list[str]) -> None:
    """Install those of `packages` that are missing here, or are of another version."""
    installed = {f"{package.name}=={package.version}" for package in metadata.distributions()}
    packages = [package for package in packages if package not in installed]
    if not packages:
        return
    if imported := sorted({"torch", "transformers"} & sys.modules.keys()):
        what = f"{', '.join(packages)} must be installed, but {' and '.join(imported)} was imported"
        remedy = "choose Run > Restart & clear cell outputs, then run all cells from the top."
        raise RuntimeError(f"{what} already: {remedy}")
    print("pip install", *packages, flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        what = f"pip could not install {' '.join(packages)}: turn the internet on"
        where = "(Settings > Turn on internet; it asks for a verified phone number once)"
        raise RuntimeError(f"{what} {where} and run this cell again.\n{done.stderr[-1000:]}")
