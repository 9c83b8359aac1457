"""One folder of results: records and parts, resuming, several processes, one run at a time."""

import multiprocessing
import os
import shutil
import tracemalloc

import numpy as np
import pytest

from llava_lens import checks, pickles, store
from llava_lens.data import prompts
from tests.hostile import D_VOCAB, N_LAYERS, PART, RECORD, RUN, save_results
from tests.test_pickles import assert_same

NAMES = ["china.jpg", "flower.jpg", "grace_hopper.jpg"]


@pytest.fixture
def run():
    return {**RUN, "top_k": 2}


@pytest.fixture
def read():
    """A record per photograph with its mean probabilities, as a reader gives them."""
    rng = np.random.default_rng(0)
    means = rng.dirichlet(np.ones(D_VOCAB), size=(3, 3, N_LAYERS)).astype(np.float32)
    return [({**RECORD, "name": name}, mean) for name, mean in zip(NAMES, means, strict=True)]


@pytest.fixture
def results(read, run, tmp_path_factory):
    out = store.Results(tmp_path_factory.mktemp("results"))
    out.begin(run)
    for record, mean in read:
        out.add(record, mean)
    return out.folder


def test_save_and_load_give_the_same(results, read):
    saved = store.Results(results)
    assert_same(list(saved.records()), [record for record, _ in read])
    assert saved.record("flower.jpg")["name"] == "flower.jpg"
    assert saved.record()["name"] == "china.jpg"
    with pytest.raises(ValueError, match="one of its 3 images, for instance china.jpg"):
        saved.record("chnia.jpg")


def test_the_same_run_goes_on_and_another_is_refused_with_both_values(tmp_path, run):
    run, own = run | {"chat": "a" * 300}, prompts.as_prompts(["Is it?"])
    store.Results(tmp_path).begin({**run, "top_k": 3})
    store.Results(tmp_path).begin(run)  # there are no records of the other yet
    pickles.save(store.Results(tmp_path).record_path("a.jpg"), {})
    store.Results(tmp_path).begin({**run, "packages": {}})  # of the same run, with other packages
    for key, now, message in (
        ("top_k", 5, "top_k: 2 there, 5 now.* choose another folder"),
        ("words", "1", "words: 0 there, 1 now"),  # words.json was extended in between
        ("own_prompts", own, r"own_prompts: \[\] there, .*Is it\?.* now"),
        ("chat", "b" * 300, "chat: a{100} there, b{100} now"),
    ):
        with pytest.raises(ValueError, match=message):
            store.Results(tmp_path).begin({**run, key: now})
    assert store.Results(tmp_path).run["top_k"] == 2


def test_an_earlier_run_is_continued_unless_there_is_one(tmp_path, results, run, capsys):
    store.Results(tmp_path / "new").continue_from(results)
    new, before = store.Results(tmp_path / "new"), store.Results(results)
    assert_same(list(new.records()), list(before.records()))
    np.testing.assert_array_equal(new.mean_probability(), before.mean_probability())
    assert_same(new.run, before.run)
    with pytest.raises(ValueError, match="top_k: 2 there, 5 now"):
        new.begin({**run, "top_k": 5})
    pickles.save(tmp_path / "own/run.pkl", run)
    store.Results(tmp_path / "own").continue_from(results)
    assert "holds a run already" in capsys.readouterr().out
    assert not store.Results(tmp_path / "own").names


def test_a_copy_that_was_cut_off_is_made_again(tmp_path, results, monkeypatch):
    saves = iter([pickles.save, pickles.save, full])
    monkeypatch.setattr(store, "save", lambda *what: next(saves)(*what))
    with pytest.raises(OSError, match="No space"):
        store.Results(tmp_path).continue_from(results)
    monkeypatch.undo()
    (tmp_path / "images/x.pkl.7.tmp").write_bytes(b"half")
    store.Results(tmp_path).continue_from(results)
    assert store.Results(tmp_path).names == store.Results(results).names
    assert not list(tmp_path.rglob("*.tmp"))


def test_only_what_is_counted_is_read_and_what_is_counted_must_be_there(tmp_path, results, run):
    """A run killed between record and part leaves a record that does not count; a record that is
    gone can't be taken out of the sums."""
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    paths = {name: tmp_path / name for name in ("china.jpg", "new.jpg")}
    copy = store.Results(tmp_path)
    shutil.copy(copy.record_path("china.jpg"), copy.record_path("new.jpg"))
    assert "new.jpg" not in [record["name"] for record in copy.records()]
    assert list(copy.unread(paths)) == ["new.jpg"]
    assert list(store.Results(tmp_path / "none").unread(paths)) == list(paths)
    pickles.save(copy.part_path(1), {**PART, "images": ["china.jpg"]})
    twice = "1.pkl' counts 'china.jpg', as another part does: delete one of the two"
    with pytest.raises(ValueError, match=twice):
        store.Results(tmp_path).names  # noqa: B018 (a property that raises)
    copy.part_path(1).unlink()
    copy.record_path("china.jpg").unlink()
    gone = "0.pkl' counts 'china.jpg', but .* is gone: put it back, .* its images are read again"
    with pytest.raises(ValueError, match=gone):
        store.Results(tmp_path).unread(paths)


def test_half_a_copy_and_nothing_at_all_are_named(tmp_path, results, run):
    shutil.copytree(results / "images", tmp_path / "images")
    half = store.Results(tmp_path)
    shutil.copytree(results / "parts", tmp_path / "parts")
    without = "is a folder without run.pkl, perhaps half of a copy: get it again, set go_on_from"
    for use in (lambda: half.begin(run), lambda: half.names):
        with pytest.raises(ValueError, match=without):
            use()
    (tmp_path / "notes.tmp").touch()
    (tmp_path / "images/a.jpg.pkl.7.tmp").touch()
    half.continue_from()
    assert (tmp_path / "notes.tmp").exists() and not (tmp_path / "images/a.jpg.pkl.7.tmp").exists()


def test_results_are_found_or_asked_for(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="Make_Analyse"):
        store.Results.find(tmp_path)
    pickles.save(tmp_path / "deep" / "one" / "run.pkl", run)
    found = store.Results.find(tmp_path)
    assert found.folder == tmp_path / "deep" / "one"
    for call in (lambda: next(found.records()), found.record, found.mean_probability):
        with pytest.raises(FileNotFoundError, match="No image was read into .* run Make_Analyse"):
            call()
    pickles.save(tmp_path / "two" / "run.pkl", {**run, "format_version": 99})
    with pytest.raises(ValueError, match="Several results"):
        store.Results.find(tmp_path)
    with pytest.raises(ValueError, match="format version is 99"):
        store.Results.find(tmp_path / "two").run  # noqa: B018 (a property that raises)


def test_means_are_over_images_with_positions(tmp_path, read, run):
    results, (first, mean), (second, its_mean) = store.Results(tmp_path), *read[:2]
    mean = mean.copy()
    mean[2] = np.nan
    results.begin(run)
    results.add(first, mean)
    assert results.names == [record["name"] for record in results.records()] == NAMES[:1]
    results.add(second, its_mean)
    of_all = store.Results(tmp_path).mean_probability()
    np.testing.assert_allclose(of_all[2], its_mean[2], atol=1e-11)
    np.testing.assert_allclose(of_all[:2], (mean[:2] + its_mean[:2]) / 2, atol=1e-7)
    with pytest.raises(ValueError, match=f"{second['name']!r} is counted already"):
        results.add(second, its_mean)


def test_sums_are_the_same_in_any_order_and_parts(tmp_path, read, run):
    rng, (record, _) = np.random.default_rng(0), read[0]
    alpha, shape = np.full(len(run["tokens"]), 0.01), (3, len(run["layers"]))
    means = [rng.dirichlet(alpha, size=shape).astype(np.float32) for _ in range(20)]

    def total(folder, order, n_parts):
        parts = [store.Results(folder) for _ in range(n_parts)]
        for process, part in enumerate(parts):
            part.begin(run, process)
        for at in order:
            parts[at % n_parts].add({**record, "name": str(at)}, means[at])
        whole = store.Results(folder)
        assert len(whole.names) == 20
        return whole.whole["sums"]

    one = total(tmp_path / "one", range(20), 1)
    other = total(tmp_path / "three", rng.permutation(20), 3)
    np.testing.assert_allclose(one, other, rtol=1e-13)  # rounding of float64 only
    np.testing.assert_allclose(one, np.sum(means, axis=0, dtype=float), atol=1e-10)


def test_a_process_goes_on_with_its_own_part(tmp_path, read, run):
    """What it could not read is told until it was read."""
    (first, mean), (second, its_mean) = read[:2]
    results = store.Results(tmp_path)
    results.begin(run, 3)
    results.skip(first["name"], "it is damaged")
    results.skip(second["name"], "it is too")
    results.add(first, mean)
    again = store.Results(tmp_path)
    again.begin(run, 3)
    assert again.names == [first["name"]] and again.skipped == {second["name"]: "it is too"}
    again.add(second, its_mean)
    whole = store.Results(tmp_path)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["3.pkl"]
    assert len(whole.names) == 2 and whole.skipped == {}


def test_deleted_results_are_noticed(tmp_path, read, run):
    out = store.Results(tmp_path / "results")
    out.begin(run)
    out.add(*read[0])
    shutil.rmtree(out.folder)
    with pytest.raises(FileNotFoundError, match="was deleted .*run this again"):
        out.add(*read[1])
    assert not out.folder.exists()
    again = store.Results(out.folder)
    again.begin(run)
    again.add(*read[1])
    assert again.names == store.Results(out.folder).names == NAMES[1:2]


def test_images_and_annotations_that_changed_are_named(results):
    """Those that are not asked for don't matter."""
    saved, paths = store.Results(results), dict.fromkeys(NAMES, results)
    digests = {name: RECORD[name] for name in ("image_digest", "annotations_digest")}
    assert saved.unread(paths, dict.fromkeys(NAMES, digests)) == {}
    changed = {NAMES[0]: digests | {"image_digest": "1"}, NAMES[2]: digests}
    changed[NAMES[1]] = digests | {"annotations_digest": "1"}
    which = r"china.jpg \(image\), flower.jpg \(annotations\)\. Choose another folder"
    with pytest.raises(ValueError, match=f"2 images changed after reading into .*: {which}"):
        saved.unread(paths, changed)
    assert saved.unread(paths, {NAMES[2]: digests}) == {}


def test_a_second_run_in_one_folder_says_so_and_stops(tmp_path, results):
    own, half = store.Results(tmp_path), tmp_path / "images/x.pkl.7.tmp"
    message = f"Another run is writing to .*{tmp_path.name}.*wait for its end, or choose another"
    with pytest.raises(KeyboardInterrupt), own.held():
        store.Results(results).continue_from()  # it's another folder
        half.parent.mkdir()
        half.write_bytes(b"of the other run")
        with pytest.raises(ValueError, match=message):
            store.Results(tmp_path).continue_from(results)
        assert half.exists() and store.Results(tmp_path).names == []  # to read it is no matter
        raise KeyboardInterrupt
    store.Results(tmp_path).continue_from(results)
    assert not half.exists() and store.Results(tmp_path).names == NAMES


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(ValueError, match="lock' is a link"), store.Results(tmp_path).held():
        pytest.fail("it is held")
    assert (tmp_path / "elsewhere").read_text() == "precious"


def test_the_end_of_a_launched_process_gives_nothing_back(tmp_path):
    """accelerate's notebook_launcher forks its processes while the run holds the folder."""
    with store.Results(tmp_path).held():
        process = multiprocessing.get_context("fork").Process(target=list)
        process.start()
        process.join()
        assert process.exitcode == 0
        with pytest.raises(ValueError, match="Another run"):
            store.Results(tmp_path).continue_from()


# ---- What others made ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["00", "0 (1)", "1_", "x", "100", "-1", "²", "sub/1"])
def test_a_part_by_another_name_is_named(results, name):
    odd = results / "parts" / f"{name}.pkl"
    odd.parent.mkdir(exist_ok=True)
    shutil.copy(results / "parts/0.pkl", odd)
    with pytest.raises(ValueError, match="is no part: .* Rename it, or delete it") as error:
        store.Results(results).names  # noqa: B018 (a property that raises)
    assert repr(str(odd)) in str(error.value)


def test_sums_are_added_up_while_they_are_read(tmp_path):
    """99 empty parts take no more memory than one."""
    run = {**RUN, "tokens": [str(i) for i in range(10_000)]}
    sums = np.zeros((3, N_LAYERS, 10_000))  # 720 kB
    empty = {"images": [], "skipped": {}, "n_images": np.zeros(3, int), "sums": sums}
    pickles.save(tmp_path / "run.pkl", run)
    for process in range(100):
        pickles.save(tmp_path / f"parts/{process}.pkl", empty, compresslevel=1)
    tracemalloc.start()
    whole = store.Results(tmp_path).whole
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert whole["sums"].shape == sums.shape and peak < 15 * sums.nbytes


def test_all_records_together_have_a_bound(results, monkeypatch):
    rows = checks.n_rows(RECORD, RUN)
    assert rows == (N_LAYERS + 20) * (2 + 1)  # two tokens of an answer, one watched word
    monkeypatch.setattr(store, "MOST_ROWS", 3 * rows)
    assert len(list(store.Results(results).records())) == 3
    monkeypatch.setattr(store, "MOST_ROWS", 3 * rows - 1)
    with pytest.raises(ValueError, match="more answers than can be shown: read fewer images"):
        list(store.Results(results).records())


def test_a_folder_that_cannot_be_read_or_written_is_named_with_what_to_do(results, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(results))

    for name, call in (
        ("scandir", lambda: store.Results.find(results)),
        ("scandir", lambda: store.Results(results).names),
        ("stat", lambda: store.Results(results).run),
        ("open", lambda: store.Results(results).held().__enter__()),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, denied)
            with pytest.raises(OSError, match=r"results.* \(Permission denied\): change its perm"):
                call()


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_said_and_what_was_saved_stays(tmp_path, read, run, monkeypatch):
    out = store.Results(tmp_path)
    out.begin(run)
    out.add(*read[0])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        message = "flower.jpg.pkl' can't be used .No space left on device.: make room or choose"
        with pytest.raises(OSError, match=message):
            out.add(*read[1])
    again = store.Results(tmp_path)
    assert again.names == ["china.jpg"] and not list(tmp_path.rglob("*.tmp"))
    again.begin(run)
    again.add(*read[1])
    assert store.Results(tmp_path).names == NAMES[:2]


@pytest.mark.parametrize("linked", ["run.pkl", "parts", "images", "parts/0.pkl", "images/00a.pkl"])
def test_links_in_results_are_refused_when_read(tmp_path, linked):
    results = store.Results(save_results(tmp_path / "results", ["a", "b"]))
    (tmp_path / "linked").symlink_to(results.folder)  # to the whole folder a user may link
    assert len(list(store.Results.find(tmp_path / "linked").records())) == 2
    (results.folder / linked).rename(tmp_path / "elsewhere")
    (results.folder / linked).symlink_to(tmp_path / "elsewhere")
    for call in (
        lambda: list(store.Results(results.folder).records()),
        lambda: store.Results(tmp_path / "new").continue_from(results.folder),
    ):
        with pytest.raises(ValueError, match="is a link"):
            call()
