"""llava_lens.model.images.read_images: whole runs, shared by processes, killed, resumed."""

import random
import time
from functools import partial

import numpy as np
import pytest

from llava_lens import pickles, store
from llava_lens.data import images
from llava_lens.data.annotations import annotate
from llava_lens.model import load
from tests.conftest import PROMPTS
from tests.model.runs import die_at, die_drawing, limit_files, run_in_process, use_torch

N_IMAGES = 2
COMPUTED = {"knockout", "own", "counterfactual", "mediated"}  # plain numbers that the model gave


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
    elif isinstance(a, np.ndarray) or COMPUTED & {*where.split()}:
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


@pytest.fixture(scope="module")
def attempt(llava_folder, photographs):
    """Runs a whole run in a process of its own, as `run_in_process` does."""
    image_paths = dict(list(images.find_images(photographs).items())[:N_IMAGES])
    annotations = annotate(photographs, images.find_images(photographs))

    def attempt(results, settings, **options):
        settings = load.Settings(str(llava_folder), "float32", "cpu", **settings)
        arguments = image_paths, annotations, results, settings
        return run_in_process(arguments, **options)

    return attempt


def unbroken(folder, attempt, **settings):
    """`(folder, attempt)`: the results of an unbroken run, and its settings held."""
    attempt = partial(attempt, settings=settings)
    assert attempt(folder) == (0, "")
    return folder, attempt


@pytest.fixture(scope="module")
def whole(tmp_path_factory, attempt):
    """With all that is read."""
    return unbroken(tmp_path_factory.mktemp("whole"), attempt, max_new_tokens=4)


@pytest.fixture(scope="module")
def short(tmp_path_factory, attempt):
    """With one prompt, no knockout and no route, which takes half the time."""
    settings = dict(prompts=PROMPTS[:1], knockout=False, route=False, max_new_tokens=2)
    return unbroken(tmp_path_factory.mktemp("short"), attempt, **settings)


def test_two_processes_share_the_images_and_change_nothing(tmp_path, whole):
    unbroken, attempt = whole
    assert attempt(tmp_path / "two", processes=2) == (0, "")
    results = store.Results(tmp_path / "two")
    parts = [pickles.load(results.part_path(process)) for process in (0, 1)]
    assert [len(part["images"]) for part in parts] == [1, 1]
    assert sorted(parts[0]["images"] + parts[1]["images"]) == store.Results(unbroken).names
    assert_same_results(tmp_path / "two", unbroken)


def test_the_same_list_again_reads_nothing_twice(tmp_path, whole):
    """As when a notebook's cell is run again: with the list of before, and then by another number
    of processes, which may be more than the images."""
    unbroken, attempt = whole
    for processes in (3, 1, 2):
        assert attempt(tmp_path, processes=processes) == (0, "")
        assert_same_results(tmp_path, unbroken)


def test_processes_end_that_are_launched_after_torch_was_used(tmp_path, short):
    unbroken, attempt = short
    assert attempt(tmp_path, processes=2, first=use_torch) == (0, "")
    assert_same_results(tmp_path, unbroken)


def uncounted(results):
    """Records that do not count yet, and so are read again."""
    saved = {path.name.removesuffix(".pkl") for path in results.glob("images/*.pkl")}
    return saved - set(store.Results(results).names if (results / "run.pkl").exists() else [])


def assert_goes_on(results, short):
    """Started again, a run that was stopped ends with the results of the unbroken one."""
    unbroken, attempt = short
    assert attempt(results) == (0, "")
    assert_same_results(results, unbroken)
    assert not uncounted(results) and not list(results.rglob("*.tmp"))


STEPS = range(3 * (1 + 2 * N_IMAGES))  # three for run.pkl, and for record and part of each image


@pytest.mark.parametrize("die", [die_drawing, *(partial(die_at, step) for step in STEPS)])
def test_killed_at_every_step_of_saving_and_while_it_draws_a_bar(tmp_path, short, die):
    """At most one image is read twice."""
    assert short[1](tmp_path / "results", first=die) == (-9, "")
    assert len(uncounted(tmp_path / "results")) <= 1
    assert_goes_on(tmp_path / "results", short)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments(tmp_path, short, processes, request):
    """At most one image per process is read twice."""
    results, attempt = tmp_path / "results", short[1]
    start = time.time()
    assert attempt(tmp_path / "whole", processes=processes) == (0, "")
    seconds, kills = time.time() - start, 0
    rng = random.Random(request.node.name)
    for _ in range(4):
        killed_after = rng.uniform(0, 0.8) * seconds
        status, error = attempt(results, seconds=killed_after, processes=processes)
        assert status == -9 or (status, error) == (0, "")
        kills += status == -9
        assert len(uncounted(results)) <= processes
    assert kills
    assert_goes_on(results, short)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, short):
    results, attempt = tmp_path / "results", short[1]
    size = max(path.stat().st_size for path in short[0].rglob("images/*.pkl"))
    status, error = attempt(results, first=partial(limit_files, size - 1000))
    assert status == 1 and error.startswith("OSError: ")
    assert "can't be used (File too large): make room" in error
    assert not list(results.rglob("*.tmp"))
    assert_goes_on(results, short)
