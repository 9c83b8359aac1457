"""A whole run: shared by processes, killed, resumed."""
import os
import subprocess
import sys

import numpy as np
import pytest

import lens_utils as lu
from conftest import ROOT

READ = """
import sys
import lens_utils as lu
from accelerate import notebook_launcher

def read():
    lu.read_images(lu.images_left(results, image_paths), annotations, categories, results, model, "float32", "cpu", max_new_tokens=4)

if __name__ == "__main__":
    model, images, results, processes = sys.argv[1:]
    image_paths, (annotations, categories) = lu.find_images(images), lu.read_annotations(images)
    lu.take_over(results)
    notebook_launcher(read, num_processes=int(processes))
"""


def start(folder, model, images, results, processes=1):
    """Start a run in a process of its own."""
    (folder / "read.py").write_text(READ)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, folder / "read.py", model, images, results, str(processes)]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def assert_close(a, b, where=""):
    """Equal but for the last bits of products of matrices, which depend on where in memory they lie."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_close(a[key], b[key], f"{where} {key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for at, (one, other) in enumerate(zip(a, b)):
            assert_close(one, other, f"{where} {at}")
    elif isinstance(a, np.ndarray):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=where)
    else:
        assert a == b or where.endswith("last_layer_jsd"), where


def assert_same_results(results, others):
    run, other = lu.load_run(results), lu.load_run(others)
    assert_close(run, other)
    assert lu.images_read(results, run) == lu.images_read(others, other)
    for record, its in zip(lu.load_records(results, run), lu.load_records(others, other)):
        assert_close(record, its, record["name"])
    assert_close(lu.load_mean_probability(results, run), lu.load_mean_probability(others, other))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, llava_folder, photographs):
    folder = tmp_path_factory.mktemp("unbroken")
    process = start(folder, llava_folder, photographs, folder / "results")
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    return folder / "results"


def test_two_processes_share_the_images_and_change_nothing(tmp_path, llava_folder, photographs, unbroken):
    process = start(tmp_path, llava_folder, photographs, tmp_path / "two", 2)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and "in 2 processes" in out, out
    run = lu.load_run(tmp_path / "two")
    parts = lu.load_parts(tmp_path / "two", run)
    assert [len(part["images"]) for part in parts] == [2, 1] and sorted(parts[0]["images"] + parts[1]["images"]) == lu.images_read(unbroken, run)
    assert_same_results(tmp_path / "two", unbroken)
