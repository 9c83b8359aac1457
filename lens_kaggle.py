"""The machine: whether this is Kaggle, what its GPUs can do, what must be installed there; what a
file is before it is opened, and which process holds a folder.

It runs before torch is imported, so it imports only the standard library. It knows nothing of
images, models or results.
"""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

__all__ = [
    "KAGGLE_INPUT", "on_kaggle", "data_sets", "probe_gpus", "prepare_kaggle",
    "check_file", "files_under", "locked",
]  # fmt: skip

# Let idle torch threads sleep: with one of two cores busy, spinning made reading an image 50 times
# slower. Torch reads this when it is imported, and the notebooks import this module first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
KAGGLE_INPUT = Path("/kaggle/input")
# Tested against the rest of Kaggle's image. torch 2.7.1 is the last with P100 kernels; torchvision
# and torchaudio must match it.
# transformers 5.24 renamed its cache argument, and TransformerLens 4.3 then fills no cache.
PIP_LENS = ["transformer-lens==4.3.0", "transformers==5.23.0"]
PIP_P100 = ["torch==2.7.1", "torchvision==0.22.1", "torchaudio==2.7.1"]
# Computes on each GPU: whether torch has kernels for it is then not a question of version numbers.
PROBE = """
import json, torch
gpus = []
for number in range(torch.cuda.device_count()):
    about = torch.cuda.get_device_properties(number)
    gpu = {"name": about.name, "capability": [about.major, about.minor]}
    try:
        gpu["works"] = torch.ones(8, device=f"cuda:{number}").sum().item() == 8
        gpu["free"], gpu["total"] = torch.cuda.mem_get_info(number)
    except RuntimeError:
        gpu["works"], gpu["free"], gpu["total"] = False, 0, about.total_memory
    gpus.append(gpu)
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""


def on_kaggle() -> bool:
    """Whether this runs in a Kaggle notebook."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def data_sets() -> list[Path]:
    """The data sets attached on Kaggle, mounted as `<slug>` or as `datasets/<owner>/<slug>`."""
    paths = sorted([*KAGGLE_INPUT.glob("*"), *KAGGLE_INPUT.glob("datasets/*/*")])
    return [path for path in paths if path.is_dir() and path != KAGGLE_INPUT / "datasets"]


def probe_gpus() -> dict:
    """What torch can do on this machine, tried in a process of its own.

    In one of its own because torch, once imported, can't be replaced any more, and a process that
    has used a GPU can't be forked. Returns

    - `torch`: its version, or the error that importing it gave
    - `cuda`: the version of CUDA that it was built for, None without
    - `gpus`: per GPU `name`, `capability` `[major, minor]`, `works` (a sum on it is right), `free`
      and `total` bytes
    """
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if done.returncode:
        return {"torch": (done.stderr.strip() or "none").splitlines()[-1], "cuda": None, "gpus": []}
    return json.loads(done.stdout.splitlines()[-1])


def prepare_kaggle() -> None:
    """On Kaggle: print what machine this is and install what is missing. Elsewhere: nothing.

    Must run before torch is imported. Raises RuntimeError with the remedy if the machine can't do
    the work.
    """
    if not on_kaggle():
        print("Not on Kaggle: nothing to install here, requirements.txt has what is needed.")
        return
    # 13.5 GB of weights would fill /kaggle/working, and be saved with the notebook's output.
    os.environ.setdefault("HF_HOME", "/tmp/huggingface")
    machine = probe_gpus()
    for gpu in machine["gpus"]:
        capability = ".".join(map(str, gpu["capability"]))
        print(f"GPU: {gpu['name']}, compute capability {capability}, {gpu['total'] >> 20:,} MiB")
    torch = f"torch {machine['torch']}"
    print(f"{torch}, built for CUDA {machine['cuda'] or '(none)'}")
    unfit = [gpu for gpu in machine["gpus"] if not gpu["works"]]
    problem = ""
    if not machine["cuda"]:
        problem = f"{torch} can't be used, or has no code for any GPU: choose Run > Factory reset"
    elif not machine["gpus"]:
        problem = "There is no GPU: choose one under Settings > Accelerator (GPU T4 x2 or P100)"
    elif unfit and unfit[0]["capability"] >= [7, 0]:
        name = unfit[0]["name"]
        problem = f"{torch} can't compute on a {name}: choose another under Settings > Accelerator"
    if problem:
        raise RuntimeError(f"{problem}, then run all cells again.")
    installed = {f"{package.name}=={package.version}" for package in metadata.distributions()}
    _install(PIP_P100 * bool(unfit) + [each for each in PIP_LENS if each not in installed])


def _install(packages: list[str]) -> None:
    if not packages:
        return
    if imported := sorted({"torch", "transformers"} & sys.modules.keys()):
        raise RuntimeError(
            f"{', '.join(packages)} must be installed, but {' and '.join(imported)} of a version "
            "that can't be used is imported already: choose Run > Restart & clear cell outputs, "
            "then run all cells from the top."
        )
    print("pip install", *packages, flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"pip could not install {' '.join(packages)}: turn the internet on (Settings > Turn on "
            "internet; it asks for a verified phone number once) and run this cell again.\n"
            f"{done.stderr[-1000:]}"
        )


# ---- Files and processes -----------------------------------------------------------------------

MOST_DEPTH = 64  # of folders


def check_file(path, most_bytes: int, follow_links: bool = True) -> None:
    """Raise ValueError unless `path` is a plain file of at most `most_bytes`, before it is opened:
    to open a pipe would wait for ever. Raises OSError if there is none."""
    about = os.stat(path, follow_symlinks=follow_links)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is a link or no file")
    if about.st_size > most_bytes:
        raise ValueError(f"it has more than {most_bytes >> 20} MiB")


def files_under(folder, is_left_out: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """The paths of all files at or under `folder`, but for folders that are left out; links to
    folders are not followed. Raises ValueError where folders go more than MOST_DEPTH deep."""
    for where, folders, files in os.walk(folder):
        here = Path(where)
        if len(here.parts) - len(Path(folder).parts) > MOST_DEPTH:
            raise ValueError(f"{str(folder)!r} has folders more than {MOST_DEPTH} deep.")
        folders[:] = [name for name in folders if not is_left_out(here / name)]
        yield from (here / name for name in files)


@contextmanager
def locked(folder):
    """Hold a folder for one run, all of whose processes are launched within.

    Its file `lock` has the number of the process that holds it; the lock of one that is gone is
    taken over. Raises ValueError if another run holds it.
    """
    lock, mine = Path(folder) / "lock", str(os.getpid())
    lock.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(lock):
        if holder := _holder_of(lock):
            raise ValueError(
                f"Another run (process {holder}) is writing to {str(folder)!r}: wait for its end, "
                f"or choose another folder (or delete {str(lock)!r} if there is no such run)."
            )
        lock.unlink()
    with open(lock, "x") as file:  # fails if another run has just made it
        file.write(mine)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # the folder was deleted meanwhile
            if lock.read_text() == mine:
                lock.unlink()


def _holder_of(lock: Path) -> int | None:
    """The process that holds a lock; None for one that is gone, this one, or what is no number."""
    try:
        check_file(lock, 20, follow_links=False)
        number = int(re.fullmatch(rb"[1-9]\d{0,8}", lock.read_bytes())[0])
        os.kill(number, 0)  # only asks whether it is there
    except PermissionError:  # it is, and another user's
        return number
    except (ValueError, TypeError, ProcessLookupError):
        return None
    return None if number == os.getpid() else number
