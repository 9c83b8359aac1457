"""lens_utils: saving, loading, one folder of results, what people see of tokens and crops."""

import os
import pickle
import shutil

import numpy as np
import pytest

from llava_lens import checks, kinds, pickles, store, text
from llava_lens.data import crop, images, prompts


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def empty_part(run):
    shape = len(run["segments"]), len(run["layers"]), len(run["tokens"])
    n_images, sums = np.zeros(shape[0], int), np.zeros(shape)
    return {"images": [], "skipped": {}, "n_images": n_images, "sums": sums}


def test_save_and_load_give_the_same(results, records):
    loaded = list(store.Results(results).records())
    assert len(loaded) == 3
    assert_same(loaded, sorted(records, key=lambda record: record["name"]))


def test_arrays_of_any_shape_and_size_come_back(tmp_path):
    """Of no number, of no axis, in another order, and of the sizes at which pickle begins a new
    frame."""
    odd = [np.zeros(0), np.zeros((0, 3), np.uint8), np.array(2.5), np.arange(6).reshape(2, 3).T]
    sizes = [np.zeros(2**16 + more, np.uint8) for more in range(-90, 10)]
    for value in (odd, sizes, *([array] for array in sizes)):
        pickles.save(tmp_path / "a.pkl", value)
        assert_same(pickles.load(tmp_path / "a.pkl"), value)


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    pickles.save(tmp_path / "a.pkl", {"x": np.arange(3)})
    with pytest.raises(ValueError, match="function .* can't be saved: results are numpy arrays"):
        pickles.save(tmp_path / "a.pkl", {"x": np.arange(9), "y": lambda: 0})  # fails half-way

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pickles.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        pickles.save(tmp_path / "a.pkl", {"x": np.arange(9)})
    assert pickles.load(tmp_path / "a.pkl")["x"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["a.pkl"]


@pytest.mark.parametrize(
    "value, check, message",
    [
        ((1, 2), None, "TUPLE2"),
        ({"x": (1, 2, 3)}, None, "it has a tuple"),
        (np.array(["dog"]), None, "can't be saved"),
        (np.zeros(3, ">f4"), None, "can't be saved"),
        (np.float32(1), None, "can't be saved"),
        ({"format_version": 2}, checks.check_run, "its format version is 2"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, value, check, message):
    with pytest.raises(ValueError, match=message):
        pickles.save(tmp_path / "a.pkl", value, *([check] if check else []))
    assert os.listdir(tmp_path) == []


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval])
def test_a_strangers_pickle_runs_nothing(tmp_path, function):
    mark = tmp_path / "ran"
    argument = str(mark) if function is os.mkdir else f"__import__('os').mkdir({str(mark)!r})"
    for value in (
        Attack(function, argument),
        {"x": [np.arange(2), Attack(function, argument)]},
        np.array([Attack(function, argument)], dtype=object),
    ):
        (tmp_path / "attack.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(ValueError, match="attack.pkl"):
            pickles.load(tmp_path / "attack.pkl")
        assert not mark.exists()
    pickle.loads(pickle.dumps(Attack(function, argument)))  # the attack is a real one
    assert mark.exists()


def test_a_damaged_file_is_named(tmp_path, results):
    whole = next((results / "images").glob("*.pkl")).read_bytes()
    (tmp_path / "half.pkl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="half.pkl"):
        pickles.load(tmp_path / "half.pkl")


def test_the_same_run_goes_on_and_another_is_refused(tmp_path, run):
    store.Results(tmp_path).begin({**run, "top_k": 3})
    store.Results(tmp_path).begin(run)  # there are no records of the other yet
    pickles.save(store.Results(tmp_path).record_path("a.jpg"), {})
    store.Results(tmp_path).begin({**run, "packages": {}})  # of the same run, with other packages
    with pytest.raises(ValueError, match="top_k: 10 there, 5 now"):
        store.Results(tmp_path).begin({**run, "top_k": 5})
    assert store.Results(tmp_path).run["top_k"] == 10


def test_an_earlier_run_is_continued_unless_there_is_one(tmp_path, results, run, capsys):
    store.Results(tmp_path / "new").continue_from(results)
    new, before = store.Results(tmp_path / "new"), store.Results(results)
    assert_same(list(new.records()), list(before.records()))
    np.testing.assert_array_equal(new.mean_probability(), before.mean_probability())
    assert_same(new.run, before.run)
    with pytest.raises(ValueError, match="top_k: 10 there, 5 now"):
        new.begin({**run, "top_k": 5})
    pickles.save(tmp_path / "own/run.pkl", run)
    store.Results(tmp_path / "own").continue_from(results)
    assert "holds a run already" in capsys.readouterr().out
    assert os.listdir(tmp_path / "own") == ["run.pkl"]


def test_a_copy_that_was_cut_off_is_made_again(tmp_path, results, monkeypatch):
    whole, saved = pickles.save, []

    def save_two(path, value, *more):
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        saved.append(path)
        whole(path, value, *more)

    monkeypatch.setattr(store, "save", save_two)
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
    assert list(copy.left(paths)) == ["new.jpg"]
    assert list(store.Results(tmp_path / "none").left(paths)) == list(paths)
    pickles.save(copy.part_path(1), {**empty_part(run), "images": ["china.jpg"]})
    twice = "1.pkl' counts in 'china.jpg', as another part does: delete one of the two"
    with pytest.raises(ValueError, match=twice):
        store.Results(tmp_path).names  # noqa: B018 (a property that raises)
    copy.part_path(1).unlink()
    copy.record_path("china.jpg").unlink()
    gone = "0.pkl' counts in 'china.jpg', but .* is gone: put it back, .* its images are read again"
    with pytest.raises(ValueError, match=gone):
        store.Results(tmp_path).left(paths)


def test_half_a_copy_and_nothing_at_all_are_named(tmp_path, results, run):
    shutil.copytree(results / "images", tmp_path / "images")
    half = store.Results(tmp_path)
    with pytest.raises(ValueError, match="holds records but no run.pkl"):
        half.begin(run)
    with pytest.raises(FileNotFoundError, match="No parts"):
        half.mean_probability()
    (tmp_path / "notes.tmp").touch()
    (tmp_path / "images/a.jpg.pkl.7.tmp").touch()
    half.continue_from()
    assert (tmp_path / "notes.tmp").exists() and not (tmp_path / "images/a.jpg.pkl.7.tmp").exists()


@pytest.mark.parametrize(
    "key, there, now, message",
    [
        ("seed", 0, 1, "seed: 0 there, 1 now"),
        ("model", "a", "b", "model: a there, b now"),
        (
            "own_prompts",
            prompts.as_prompts(["What is left?"]),
            prompts.as_prompts(["What is right?"]),
            r"own_prompts: .*What is left\?.* there, .*What is right\?.* now",
        ),
        ("chat", "a" * 300, "b" * 300, r"chat: a{100} there, b{100} now"),
    ],
)
def test_what_differs_is_named_with_both_values(tmp_path, run, key, there, now, message):
    pickles.save(tmp_path / "run.pkl", {**run, key: there})
    pickles.save(store.Results(tmp_path).record_path("a.jpg"), {})
    with pytest.raises(ValueError, match=message):
        store.Results(tmp_path).begin({**run, key: now})


def test_an_image_that_is_not_there_is_refused_with_what_is(results):
    with pytest.raises(ValueError, match="one of its 3 images, for instance china.jpg"):
        store.Results(results).record("chnia.jpg")


def test_the_record_is_the_one_that_was_chosen(results):
    record = store.Results(results).record("flower.jpg")
    assert record["name"] == "flower.jpg"
    assert record["prompts"][1]["question"] == kinds.question_of("object")
    assert store.Results(results).record()["name"] == "china.jpg"


def test_another_format_version_is_refused(tmp_path, run):
    pickles.save(tmp_path / "run.pkl", {**run, "format_version": 99})
    with pytest.raises(ValueError, match="format version is 99"):
        store.Results(tmp_path).run  # noqa: B018 (a property that raises)


def test_results_are_found_or_asked_for(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="Make_Analyse"):
        store.Results.find(tmp_path)
    pickles.save(tmp_path / "deep" / "one" / "run.pkl", run)
    assert store.Results.find(tmp_path).folder == tmp_path / "deep" / "one"
    with pytest.raises(FileNotFoundError, match="No records"):
        store.Results(tmp_path / "deep" / "one").records()
    with pytest.raises(ValueError, match="No image was read into .* run Make_Analyse"):
        store.Results(tmp_path / "deep" / "one").record()
    pickles.save(tmp_path / "two" / "run.pkl", run)
    with pytest.raises(ValueError, match="Several results"):
        store.Results.find(tmp_path)


def test_mean_over_images_is_of_means_over_positions(results, read):
    mean = store.Results(results).mean_probability()
    expected = np.mean([its for _, its in read], axis=0, dtype=float)
    np.testing.assert_allclose(mean, expected, atol=1e-11)
    np.testing.assert_allclose(mean.sum(axis=-1), 1, atol=1e-6)


def test_a_segment_without_positions_does_not_count(tmp_path, read, run):
    results, (first, mean), (second, its_mean) = store.Results(tmp_path), *read[:2]
    mean = mean.copy()
    mean[2] = np.nan
    results.begin(run)
    results.add(first, mean)
    results.add(second, its_mean)
    (part,) = store.Results(tmp_path).parts.values()
    np.testing.assert_allclose(part["sums"][2], its_mean[2], atol=1e-11)
    assert part["n_images"].tolist() == [2, 2, 1]
    np.testing.assert_array_equal(store.Results(tmp_path).mean_probability()[2], part["sums"][2])
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
        assert len(whole.parts) == n_parts and len(whole.names) == 20
        return sum(part["sums"] for part in whole.parts.values())

    one = total(tmp_path / "one", range(20), 1)
    other = total(tmp_path / "three", rng.permutation(20), 3)
    np.testing.assert_allclose(one, other, rtol=1e-13)  # rounding of float64 only
    np.testing.assert_allclose(one, np.sum(means, axis=0, dtype=float), atol=1e-10)


def test_results_see_what_they_add(tmp_path, read, run):
    results = store.Results(tmp_path)
    results.begin(run)
    results.add(*read[0])
    assert results.names == [read[0][0]["name"]] == [record["name"] for record in results.records()]


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
    assert list(whole.parts) == [3] and len(whole.names) == 2 and whole.skipped == {}


def test_the_crop_is_what_the_model_saw(results, llava, photographs):
    record = store.Results(results).record()
    assert crop.open_crop(record).size == (56, 56)
    processor = llava[1].image_processor
    image = images.open_image(photographs / record["name"])
    pixels = processor(images=image, return_tensors="np")["pixel_values"][0]
    back = pixels.transpose(1, 2, 0) * processor.image_std + processor.image_mean
    assert np.abs(np.asarray(crop.open_crop(record)) / 255 - back).mean() < 0.03  # JPEG


def test_printable():
    assert text.printable("▁dog") == "▁dog" and text.printable("Привет") == "Привет"
    assert text.printable("<0x0A>") == "<0x0A>"
    assert text.printable("\n") == "U+000A" and text.printable("\U000e0001") == "U+E0001"
    assert text.printable("abcdef", 4) == "abc…"
    assert text.printable("a狗", glyphs=frozenset({ord("a")})) == "aU+72D7"
