"""The front door: the whole pipeline on a tiny random model, and what it says of bad input."""

import os
import subprocess
import sys

import numpy as np
import pytest

import lens_utils as lens
from llava_lens import kaggle
from llava_lens.data.annotations import Annotations
from llava_lens.store import Results
from tests.conftest import ROOT
from tests.test_kaggle import T4_X2


@pytest.fixture(scope="module")
def whole(llava_folder, photographs, tmp_path_factory):
    """`(images, results folder)` of one run over the photographs, made as Make_Analyse makes it."""
    images = lens.load_images(photographs)
    folder = tmp_path_factory.mktemp("whole") / "results"
    lens.analyse(images, folder, model=llava_folder, device="cpu", max_new_tokens=3)
    return images, folder


def test_images_and_what_is_annotated(photographs, capsys):
    images = lens.load_images(photographs, limit=np.int64(2))
    assert list(images.paths) == ["china.jpg", "flower.jpg"] and images.folder == photographs
    assert images.annotations.categories == ["temple", "tree", "umbrella"]
    assert list(images.annotations.objects) == ["china.jpg"]
    said = capsys.readouterr().out
    found = f"2 images under {photographs}, 1 of them annotated with 3 categories\n"
    assert said == found + "Annotations were read from instances_test.json\n"


def test_every_image_is_read_and_every_table_counts_it(whole):
    images, folder = whole
    results = lens.open_results(folder)
    tables = lens.tabulate(results)
    assert results.names == list(images.paths)
    asked = {name: results.record(name)["prompts"] for name in results.names}
    kinds = [prompt["kind"] for prompt in asked["china.jpg"]]
    assert kinds == ["object", "presence", "presence", "colour", "relation", "description"]
    first = tables.answers.query("token == 0")
    assert len(first) == 6 * sum(map(len, asked.values()))  # layers x prompts
    assert set(tables.layers["image"]) == set(images.paths)
    said = first.drop_duplicates(["image", "prompt"]).groupby("image")["answer"].apply(list)
    for name, prompts in asked.items():
        assert said[name] == [prompt["answer"] for prompt in prompts]
    np.testing.assert_allclose(tables.mean_probability.sum(-1), 1, atol=1e-4)


def test_a_record_is_read_once(whole, monkeypatch):
    _, folder = whole
    read, once = [], Results.record
    monkeypatch.setattr(Results, "record", lambda self, name: read.append(name) or once(self, name))
    lens.tabulate(lens.open_results(folder))
    assert sorted(read) == ["china.jpg", "flower.jpg", "grace_hopper.jpg"]


def test_a_run_goes_on_from_what_is_there(whole, llava_folder, tmp_path, capsys):
    """It stops after the first image that it reads, goes on, and ends with the same records."""
    images, folder = whole
    settings = dict(model=llava_folder, device="cpu", max_new_tokens=3)
    lens.analyse(images, tmp_path, **settings, hours=0.0)
    said = capsys.readouterr().out
    assert "with 2 images left" in said
    assert "the explorer's page of china.jpg (a notebook shows it)" in said
    assert len(Results(tmp_path).names) == 1
    lens.analyse(images, tmp_path, **settings)
    said = capsys.readouterr().out
    assert (
        f"To read into {tmp_path}: 2 of 3 images\n" in said
        and said.count("the explorer's page") == 1
    )
    for name in images.paths:
        one, other = (Results(at).record_path(name).read_bytes() for at in (folder, tmp_path))
        assert one == other
    lens.analyse(images, tmp_path / "more", **settings, go_on_from=tmp_path)
    assert f"To read into {tmp_path / 'more'}: 0 of 3 images" in capsys.readouterr().out
    other = images._replace(annotations=Annotations({}, {}, [], []))
    with pytest.raises(ValueError, match=r"1 image changed .* china.jpg \(annotations\)"):
        lens.analyse(other, tmp_path, **settings)


@pytest.mark.parametrize("processes", [1, 2])
def test_no_other_run_writes_to_the_folder_meanwhile(whole, tmp_path, monkeypatch, processes):
    """It is held around whatever reads the images."""
    settings, refused = dict(model=str(ROOT / "demo/model"), device="cpu", processes=processes), []

    def another(*_, **__):
        with pytest.raises(ValueError, match="^Another run is writing to .* choose another folder"):
            lens.analyse(whole[0], tmp_path, **settings)
        refused.append(tmp_path)

    for reader in ("llava_lens.model.images.read_images", "accelerate.notebook_launcher"):
        monkeypatch.setattr(reader, another)
    lens.analyse(whole[0], tmp_path, **settings)
    assert refused == [tmp_path]
    with Results(tmp_path).held():  # no longer
        pass


def test_what_was_saved_names_what_was_skipped_and_what_is_of_elsewhere(
    whole, llava_folder, photographs, tmp_path, capsys
):
    """Of a run in 4 bit."""
    folder = whole[1]
    for name, upto in (("aaa_broken.jpg", 5000), ("flower.jpg", None)):
        (tmp_path / name).write_bytes((photographs / "flower.jpg").read_bytes()[:upto])
    mine = lens.load_images(tmp_path)
    settings = dict(model=llava_folder, device="cpu", prompts=["What is it?"], max_new_tokens=1)
    lens.analyse(mine, tmp_path / "results", **settings, quantize="4bit")
    lens.what_was_saved(tmp_path / "results", mine)
    said = capsys.readouterr().out
    assert "1 image read" in said and "skipped aaa_broken.jpg: " in said
    lens.what_was_saved(folder, mine)
    said = capsys.readouterr().out
    assert "All statistics count 2 images not under" in said and "china.jpg" in said
    run = lens.open_results(tmp_path / "results").run
    assert "(float32, 4 bit), 1 skipped, in " in capsys.readouterr().out
    assert run["quantize"] == "4bit" and run["last_layer_jsd"] <= 1e-5
    (prompt,) = Results(tmp_path / "results").record("flower.jpg")["prompts"]
    assert (prompt["kind"], prompt["question"]) == ("own", "What is it?")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prompts": [" "]}, "Prompt 0 is empty"),
        ({"prompts": None}, "prompts is None: it must be a list"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": "5"}, "top_k is '5': it must be None or a whole number of 1 or more"),
        ({"seed": 0.5}, "seed is 0.5: it must be None or a whole number\\."),
        ({"dtype": "fp16"}, "dtype is 'fp16': it must be one of float32"),
        ({"quantize": "8bit"}, "quantize is '8bit': it must be None or '4bit'"),
        ({"device": "cuda"}, "device is 'cuda', and torch sees 0 GPUs"),
        ({"model": "demo"}, "'demo' is neither"),
        ({"model": "demo/none"}, "'demo' has no 'none' in it"),
        ({"tok_k": 5, "model": "demo"}, "There is no setting 'tok_k': the nearest is 'top_k'"),
        ({"prosesses": 2}, "There is no setting 'prosesses': the nearest is 'processes'"),
        ({"route": "False"}, "route is 'False': it must be True or False"),
        ({"processes": "two"}, "processes is 'two': it must be None or a whole number of 1"),
        ({"hours": "8"}, "hours is '8': it must be a number of 0 or more"),
        ({"hours": -1}, "hours is -1: it must be a number of 0 or more"),
    ],
)
def test_bad_settings_are_named(whole, llava_folder, tmp_path, settings, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=message):
        lens.analyse(whole[0], tmp_path, **{"model": llava_folder, "device": "cpu", **settings})
    assert not any(tmp_path.rglob("*.pkl"))


def test_a_misspelt_setting_of_look_and_a_folder_in_place_of_its_content_are_named():
    with pytest.raises(ValueError, match="images must be what load_images returns"):
        lens.analyse("demo/scenes")
    with pytest.raises(ValueError, match="results must be what open_results returns"):
        lens.tabulate("results")
    with pytest.raises(ValueError, match="no setting 'foldr': the nearest is 'folder'"):
        lens.look("none.jpg", "?", model="none", foldr="pages")
    with pytest.raises(ValueError, match="look has no prompts"):
        lens.look("none.jpg", "?", prompts=["Is there a dog?"])


@pytest.mark.parametrize(
    "device, run, n_probes",
    [(None, ("float16", 2), 1), ("cuda:1", ("float16", 1), 1), ("cpu", ("float32", 1), 0)],
)
def test_gpus_are_looked_for_once(whole, tmp_path, monkeypatch, device, run, n_probes):
    """For the default dtype, the device and the number of processes."""
    probed, runs = [], []

    def read(*arguments, n=1):
        runs.append((arguments[3].dtype, n))

    def launch(reader, arguments, num_processes):
        reader(*arguments, n=num_processes)

    monkeypatch.setattr(kaggle, "probe_gpus", lambda: probed.append(1) or T4_X2)
    monkeypatch.setattr("llava_lens.model.images.read_images", read)
    monkeypatch.setattr("accelerate.notebook_launcher", launch)
    lens.analyse(whole[0], tmp_path, model=ROOT / "demo/model", device=device)
    assert runs == [run] and len(probed) == n_probes


def test_an_image_without_a_question_is_skipped_by_name(whole, llava_folder, tmp_path):
    """Relations need two objects; the main object, that none of its size was dropped."""
    known = whole[0].annotations
    as_large = known.objects["china.jpg"][0] | {"category": "unknown", "crowd": True}
    hidden = known._replace(dropped={"china.jpg": [as_large]})
    for annotations, kind in ((Annotations({}, {}, [], []), "relation"), (hidden, "object")):
        paths = {"china.jpg": whole[0].paths["china.jpg"]}
        alone = whole[0]._replace(annotations=annotations, paths=paths)
        asked = {"model": llava_folder, "device": "cpu", "kinds": [kind]}
        with pytest.raises(ValueError, match=f"china.jpg: none of the kinds .* it: {kind}"):
            lens.analyse(alone, tmp_path, **asked)


@pytest.mark.parametrize(
    "folder, limit, message",
    [
        ("nowhere", None, "'nowhere' is no folder"),
        ("demo/example.png", None, "is a file, not a folder"),
        ("demo/scenes", 0, "limit is 0"),
        ("demo/scenes", True, "limit is True"),
    ],
)
def test_bad_images_are_named(folder, limit, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        lens.load_images(folder, limit)


def test_no_results_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run Make_Analyse.ipynb first"):
        lens.open_results(tmp_path)


def test_torchs_idle_threads_sleep_and_nothing_imports_torch():
    """Spinning, they take the core that another process needs; torch reads it when imported."""
    code = "import lens_utils, os, sys\n"
    code += "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if "OMP" not in name}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "PASSIVE False\n", done.stderr
