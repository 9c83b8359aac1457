"""A whole run: shared by processes, killed, resumed."""

import os
import random
import resource
import signal
import socket
import time

import numpy as np
import pytest
import torch
from accelerate import notebook_launcher

from llava_lens import store
from llava_lens.data import annotations as data_annotations
from llava_lens.data import images
from llava_lens.model import images as model_images
from llava_lens.model import load

N_IMAGES = 2


def assert_close(a, b, where=""):
    """Equal but for the last bits of products of matrices, which depend on where in memory they
    lie."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_close(a[key], b[key], f"{where} {key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for at, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_close(one, other, f"{where} {at}")
    elif isinstance(a, np.ndarray):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=where)
    else:
        assert a == b or where.endswith("last_layer_jsd"), where


def assert_same_results(results, others):
    results, others = store.Results(results), store.Results(others)
    assert_close(results.run, others.run)
    assert results.names == others.names
    for record, its in zip(results.records(), others.records(), strict=True):
        assert_close(record, its, record["name"])
    assert_close(results.mean_probability(), others.mean_probability())


def free_port() -> str:
    """Not the same one for every attempt: that of one that was killed may be held for a while."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return str(held.getsockname()[1])


@pytest.fixture(scope="module")
def attempt(llava_folder, photographs, tmp_path_factory):
    """A function that runs a whole run in a forked process, after `first` there, and kills it after
    `seconds`; returns the exit status (-9: killed) and the error."""
    image_paths = dict(list(images.find_images(photographs).items())[:N_IMAGES])
    annotations, _, categories, *_ = data_annotations.read_annotations(photographs)
    settings = load.Settings(str(llava_folder), "float32", "cpu", max_new_tokens=4)
    error_file = tmp_path_factory.mktemp("attempt") / "error.txt"

    def attempt(results, first=lambda: None, seconds=None, processes=1):
        error_file.write_text("")
        child = os.fork()
        # By both of them, whoever comes first; so that the processes that it launches die with it.
        os.setpgid(child, 0)
        if child == 0:
            try:
                torch.set_num_threads(1)  # a pool of threads does not survive a fork
                os.environ["ACCELERATE_USE_CPU"] = "1"
                first()
                store.Results(results).continue_from()
                arguments = image_paths, annotations, categories, results, settings
                notebook_launcher(
                    model_images.read_images,
                    arguments,
                    num_processes=processes,
                    use_port=free_port(),
                )
                os._exit(0)
            except BaseException as error:
                error_file.write_text(f"{type(error).__name__}: {error}")
            finally:
                os._exit(1)
        end = time.time() + (120 if seconds is None else seconds)
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.time() < end:
            time.sleep(0.005)
        if done == (0, 0):
            os.killpg(child, signal.SIGKILL)
            done = os.waitpid(child, 0)
            assert seconds is not None, "a run that takes two minutes hangs"
        return os.waitstatus_to_exitcode(done[1]), error_file.read_text()

    return attempt


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, attempt):
    results = tmp_path_factory.mktemp("unbroken")
    assert attempt(results) == (0, "")
    return results


def test_two_processes_share_the_images_and_change_nothing(tmp_path, attempt, unbroken):
    assert attempt(tmp_path / "two", processes=2) == (0, "")
    parts = store.Results(tmp_path / "two").parts
    assert [len(part["images"]) for part in parts.values()] == [1, 1]
    assert sorted(parts[0]["images"] + parts[1]["images"]) == store.Results(unbroken).names
    assert_same_results(tmp_path / "two", unbroken)


def test_the_same_list_again_reads_nothing_twice(tmp_path, attempt, unbroken):
    """As when a notebook's cell is run again: with the list of before, and then by another number
    of processes."""
    assert attempt(tmp_path / "results") == (0, "")
    assert attempt(tmp_path / "results", processes=2) == (0, "")
    assert_same_results(tmp_path / "results", unbroken)


def test_fewer_images_than_processes(tmp_path, attempt, unbroken):
    assert attempt(tmp_path / "results", processes=3) == (0, "")
    assert_same_results(tmp_path / "results", unbroken)


def uncounted(results):
    """Records that do not count yet, and so are read again."""
    saved = {path.name.removesuffix(".pkl") for path in results.glob("images/*.pkl")}
    return saved - set(store.Results(results).names if (results / "run.pkl").exists() else [])


def die_at(step: int):
    """Make this process kill itself at its `step`-th step of saving: whenever a file is to be
    written, to be renamed or has been renamed."""
    steps, (save, fsync, replace) = iter(range(step + 1)), (store.save, os.fsync, os.replace)

    def dying(function, after=False):
        def die_or_do(*arguments, **named):
            done = function(*arguments, **named) if after else None
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return done if after else function(*arguments, **named)

        return die_or_do

    store.save, os.fsync, os.replace = dying(save), dying(fsync), dying(replace, after=True)


def test_killed_at_every_step_of_saving_and_at_random_moments(tmp_path, attempt, unbroken):
    """Each run is killed and started again until it ends: with the results of the unbroken one,
    having read at most one image twice per kill."""

    def seconds_of_whole(number):
        start = time.time()
        assert attempt(tmp_path / f"whole{number}") == (0, "")
        return time.time() - start

    # The least, so that other work on the machine does not make the kills come too late.
    seconds = min(map(seconds_of_whole, range(4)))
    rng, kills = random.Random(0), 0
    n_steps = 3 * (1 + 2 * N_IMAGES)  # run.pkl, then record and part of each image
    by_folder = [[dict(first=lambda step=step: die_at(step))] for step in range(n_steps)]
    by_folder += [[dict(seconds=rng.uniform(0, 0.8) * seconds) for _ in range(3)] for _ in range(3)]
    for number, killers in enumerate(by_folder):
        results = tmp_path / str(number)
        for killer in killers:
            status, error = attempt(results, **killer)
            assert status == -9 or status == 0 and "seconds" in killer, error
            kills += status == -9
            assert len(uncounted(results)) <= 1
        assert attempt(results) == (0, "")
        assert_same_results(results, unbroken)
        assert not uncounted(results) and not list(results.rglob("*.tmp"))
    assert kills >= 20


def test_two_processes_killed_and_gone_on_with_by_one(tmp_path, attempt, unbroken):
    rng, kills = random.Random(1), 0
    for _ in range(5):
        status, error = attempt(tmp_path / "results", seconds=rng.uniform(0.3, 1.5), processes=2)
        assert status == -9 or (status, error) == (0, "")
        kills += status == -9
        assert len(uncounted(tmp_path / "results")) <= 2  # one for each process
    assert kills and attempt(tmp_path / "results") == (0, "")
    assert_same_results(tmp_path / "results", unbroken)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, attempt, unbroken):
    results = tmp_path / "results"
    size = max(path.stat().st_size for path in unbroken.rglob("images/*.pkl"))
    # A limit on the size of files fails in the middle of a write, as a full disk does.
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, size - 1000))  # noqa: E731
    status, error = attempt(results, limit)
    assert status == 1 and error.startswith("OSError: [Errno 27]")
    assert not list(results.rglob("*.tmp"))
    assert attempt(results) == (0, "")
    assert_same_results(results, unbroken)
