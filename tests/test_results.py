"""Saving, loading, tables, figures, report: the half that works without torch."""

import os
import pickle
import shutil
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import lens_utils as lu
from conftest import ROOT


@pytest.fixture
def run(results):
    return lu.load_run(results)


@pytest.fixture
def tables(results, run):
    return lu.summarise(lu.load_records(results, run), run)


@pytest.fixture
def mean(results, run):
    return lu.load_mean_probability(results, run)


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b):
            assert_same(one, other)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def test_save_and_load_give_the_same(results, records, run):
    loaded = list(lu.load_records(results, run))
    assert len(loaded) == 3
    assert_same(loaded, sorted(records, key=lambda record: record["name"]))


def test_a_file_is_whole_or_absent(tmp_path):
    lu.save(tmp_path / "a.pkl", {"x": np.arange(3)})
    with pytest.raises(Exception):
        lu.save(tmp_path / "a.pkl", {"x": np.arange(9), "y": lambda: 0})  # fails half-way
    assert lu.load(tmp_path / "a.pkl")["x"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["a.pkl"]


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
            lu.load(tmp_path / "attack.pkl")
        assert not mark.exists()
    pickle.loads(pickle.dumps(Attack(function, argument)))  # the attack is a real one
    assert mark.exists()


def test_a_damaged_file_is_named(tmp_path, results):
    whole = next((results / "images").glob("*.pkl")).read_bytes()
    (tmp_path / "half.pkl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="half.pkl"):
        lu.load(tmp_path / "half.pkl")


def test_the_same_run_goes_on_and_another_is_refused(tmp_path, run):
    lu.start_run(tmp_path, {**run, "top_k": 3})
    lu.start_run(tmp_path, run)  # there are no records of the other yet
    lu.save(lu.record_path(tmp_path, "a.jpg"), {})
    lu.start_run(tmp_path, {**run, "packages": {}})  # of the same run, with other packages
    with pytest.raises(ValueError, match="top_k: 10 there, 5 now"):
        lu.start_run(tmp_path, {**run, "top_k": 5})
    assert lu.load_run(tmp_path)["top_k"] == 10


def test_an_earlier_run_is_taken_over_unless_there_is_one(tmp_path, results, run, capsys):
    lu.take_over(tmp_path / "new", results)
    assert_same(list(lu.load_records(tmp_path / "new", run)), list(lu.load_records(results, run)))
    np.testing.assert_array_equal(
        lu.load_mean_probability(tmp_path / "new", run), lu.load_mean_probability(results, run)
    )
    with pytest.raises(ValueError, match="top_k: 10 there, 5 now"):
        lu.start_run(tmp_path / "new", {**run, "top_k": 5})
    lu.save(tmp_path / "own/run.pkl", run)
    lu.take_over(tmp_path / "own", results)
    assert "holds a run already" in capsys.readouterr().out and os.listdir(tmp_path / "own") == [
        "run.pkl"
    ]


def test_a_copy_that_was_cut_off_is_made_again(tmp_path, results, run, monkeypatch):
    whole, saved = lu.save, []

    def save_two(path, value):
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        saved.append(path)
        whole(path, value)

    monkeypatch.setattr(lu, "save", save_two)
    with pytest.raises(OSError, match="No space"):
        lu.take_over(tmp_path, results)
    monkeypatch.undo()
    (tmp_path / "images/x.pkl.7.tmp").write_bytes(b"half")
    lu.take_over(tmp_path, results)
    assert lu.images_read(tmp_path, run) == lu.images_read(results, run) and not list(
        tmp_path.rglob("*.tmp")
    )


def test_only_what_is_counted_is_read_and_what_is_counted_must_be_there(tmp_path, results, run):
    """A run killed between record and part leaves a record that does not count; a record that is gone can't be taken out of the sums."""
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    paths = {name: tmp_path / name for name in ("china.jpg", "new.jpg")}
    shutil.copy(lu.record_path(tmp_path, "china.jpg"), lu.record_path(tmp_path, "new.jpg"))
    assert "new.jpg" not in [record["name"] for record in lu.load_records(tmp_path, run)]
    assert list(lu.images_left(tmp_path, paths)) == ["new.jpg"] and list(
        lu.images_left(tmp_path / "none", paths)
    ) == list(paths)
    lu.save(lu.part_path(tmp_path, 1), {**lu.new_part(run), "images": ["china.jpg"]})
    with pytest.raises(
        ValueError, match="1.pkl' counts in 'china.jpg', which another part does as well"
    ):
        lu.images_read(tmp_path, run)
    lu.part_path(tmp_path, 1).unlink()
    lu.record_path(tmp_path, "china.jpg").unlink()
    with pytest.raises(
        ValueError,
        match=r"counts in 'china.jpg', but .* is gone: .* and its 3 images are read again",
    ):
        lu.images_left(tmp_path, paths)


def test_half_a_copy_and_nothing_at_all_are_named(tmp_path, results, run):
    shutil.copytree(results / "images", tmp_path / "images")
    with pytest.raises(ValueError, match="holds records but no run.pkl"):
        lu.start_run(tmp_path, run)
    with pytest.raises(FileNotFoundError, match="No parts"):
        lu.load_mean_probability(tmp_path, run)
    (tmp_path / "notes.tmp").touch()
    (tmp_path / "images/a.jpg.pkl.7.tmp").touch()
    lu.take_over(tmp_path)
    assert (tmp_path / "notes.tmp").exists() and not (tmp_path / "images/a.jpg.pkl.7.tmp").exists()


def test_what_differs_is_named_to_the_item(tmp_path, run):
    lu.save(
        tmp_path / "run.pkl",
        {
            **run,
            "prompts": {"seed": 0, "own": [{"question": "a" * 200}, {"question": "What is left?"}]},
        },
    )
    lu.save(lu.record_path(tmp_path, "a.jpg"), {})
    now = {
        **run,
        "prompts": {"seed": 0, "own": [{"question": "a" * 200}, {"question": "What is right?"}]},
    }
    with pytest.raises(
        ValueError, match="prompts, own, 1, question: What is left\\? there, What is right\\? now"
    ):
        lu.start_run(tmp_path, now)


@pytest.mark.parametrize(
    "choice, message",
    [
        (("chnia.jpg", 0, []), "one of its 3 images, for instance china.jpg"),
        ((None, 3, []), "has the prompts 0 to 2"),
        ((None, -1, []), "prompt is -1"),
        ((None, 0, [0, 6]), r"layers are 0 \(emb\) to 5"),
    ],
)
def test_a_sample_that_is_not_there_is_refused_with_what_is(results, run, choice, message):
    with pytest.raises(ValueError, match=message):
        lu.load_sample(results, run, *choice)


def test_the_sample_is_the_one_that_was_chosen(results, run):
    record, prompt = lu.load_sample(results, run, "flower.jpg", 1, [])
    assert record["name"] == "flower.jpg" and prompt["question"] == lu.object_question()
    assert lu.load_sample(results, run, None, 0, [5])[0]["name"] == "china.jpg"


def test_another_format_version_is_refused(tmp_path, run):
    lu.save(tmp_path / "run.pkl", {**run, "format_version": 99})
    with pytest.raises(ValueError, match="format version is 99"):
        lu.load_run(tmp_path)


def test_results_are_found_or_asked_for(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="Make_Analyse"):
        lu.find_results(tmp_path)
    lu.save(tmp_path / "deep" / "one" / "run.pkl", run)
    assert lu.find_results(tmp_path) == tmp_path / "deep" / "one"
    with pytest.raises(FileNotFoundError, match="No records"):
        lu.load_records(tmp_path / "deep" / "one", run)
    lu.save(tmp_path / "two" / "run.pkl", run)
    with pytest.raises(ValueError, match="Several results"):
        lu.find_results(tmp_path)


def test_settling_layer_against_a_loop():
    rank = np.random.default_rng(0).integers(1, 3, (6, 500))
    rank[-1] = 1
    for column, settled in zip(rank.T, lu.settling_layer(rank)):
        assert (column[settled:] == 1).all() and (settled == 0 or column[settled - 1] != 1)


def test_layer_table_against_a_loop(tables, records):
    layers = tables["layers"]
    for record in records:
        for number, prompt in enumerate(record["prompts"]):
            for segment, positions in (
                ("prompt", range(prompt["n_prompt"])),
                ("answer", range(prompt["n_prompt"], len(prompt["token_ids"]))),
            ):
                rows = layers[
                    (layers["image"] == record["name"])
                    & (layers["prompt"] == number)
                    & (layers["segment"] == segment)
                ]
                for series in ("jsd_prev", "jsd_final", "entropy"):
                    expected = [
                        np.mean([row[at] for at in positions]) for row in prompt["readings"][series]
                    ]
                    np.testing.assert_allclose(
                        rows.sort_values("layer")[series], expected, rtol=1e-5
                    )
    images = layers[layers["segment"] == "image"]
    assert len(images) == 3 * 6 and set(images["kind"]) == {"image"}


def test_answer_table(tables, records, run):
    answers = tables["answers"]
    assert len(answers) == 6 * sum(
        len(prompt["answer_ids"]) for record in records for prompt in record["prompts"]
    )
    last = answers[answers["layer"] == 5]
    # What the lens reads last is what the model said.
    assert (last["rank"] == 1).all() and (last["top1"] == last["token_label"]).all()
    assert (answers["settling_layer"] <= 5).all()
    graded = answers[answers["truth"].notna()]
    assert (
        set(graded["kind"]) == {"object"}
        and (graded["right"] == [lu.is_right(a, "temple") for a in graded["answer"]]).all()
    )
    assert answers[answers["truth"].isna()]["right"].isna().all()
    # The same whichever comes first.
    turned = [
        {**record, "prompts": record["prompts"][1:] + record["prompts"][:1]} for record in records
    ]
    again = lu.summarise(turned, run)["answers"]
    assert (
        again["right"].isna().sum() == answers["right"].isna().sum()
        and again["right"].dropna().sum() == answers["right"].dropna().sum()
    )


def test_mean_over_images_is_of_means_over_positions(results, read, run):
    mean = lu.load_mean_probability(results, run)
    np.testing.assert_allclose(
        mean, np.mean([its for _, its in read], axis=0, dtype=float), atol=1e-11
    )
    np.testing.assert_allclose(mean.sum(axis=-1), 1, atol=1e-6)


def test_a_segment_without_positions_does_not_count(tmp_path, read, run):
    part, first, second = lu.new_part(run), read[0][1].copy(), read[1][1]
    first[2] = np.nan
    lu.add_to_part(part, "a", first)
    lu.add_to_part(part, "b", second)
    np.testing.assert_allclose(part["sums"][2], second[2], atol=1e-11)
    assert part["n_images"].tolist() == [2, 2, 1]


def test_sums_are_the_same_in_any_order_and_parts(read, run):
    rng = np.random.default_rng(0)
    means = [
        rng.dirichlet(np.full(len(run["tokens"]), 0.01), size=(3, len(run["layers"]))).astype(
            np.float32
        )
        for _ in range(20)
    ]

    def total(order, n_parts):
        parts = [lu.new_part(run) for _ in range(n_parts)]
        for at in order:
            lu.add_to_part(parts[at % n_parts], str(at), means[at])
        return sum(part["sums"] for part in parts)

    np.testing.assert_array_equal(total(range(20), 1), total(rng.permutation(20), 3))
    np.testing.assert_allclose(total(range(20), 1), np.sum(means, axis=0, dtype=float), atol=1e-10)


@pytest.mark.parametrize(
    "answer, truth, right",
    [
        ("Left", "left", True),
        ("dog.", "dog", True),
        ("traffic light", "traffic light", True),
        ("hot dog", "dog", False),
        ("", "no", False),
    ],
)
def test_is_right(answer, truth, right):
    assert lu.is_right(answer, truth) is right


def test_figures_draw_every_token_without_warnings(results, run, tables):
    """All kinds of tokens at the positions and in the cells: `$`, tags, Cyrillic, CJK, control characters, one token twice."""
    tokens = list(run["tokens"])
    nasty = ["$x^2$", "</b>", "▁狗", "Привет", "\u200b", "\t", "<0x0A>", "🙂", "▁$", "a" * 40]
    tokens[: len(nasty)] = nasty
    run = {**run, "tokens": tokens}
    record = next(lu.load_records(results, run))
    record["objects"] = [
        {"box": (5.0, 5.0, 20.0, 30.0), "category": "$a_b$"},
        {"box": (0.0, 0.0, 0.0, 0.0), "category": "outside"},
    ]
    record["patches"]["top_ids"] = np.resize(
        np.arange(len(nasty)), record["patches"]["top_ids"].shape
    )
    prompt = record["prompts"][0]
    prompt["token_ids"] = np.resize(np.arange(len(nasty)), len(prompt["token_ids"]))
    prompt["readings"]["top_ids"] = np.resize(
        np.arange(len(nasty)), prompt["readings"]["top_ids"].shape
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a missing glyph is one
        warnings.filterwarnings(
            "ignore", message=".*deprecated"
        )  # between matplotlib and what it builds on
        lu.use_style()
        mean = np.linspace(1, 0, len(tokens))[None].repeat(len(run["layers"]), 0)
        for figure in (
            lu.plot_top1(run, prompt),
            lu.plot_jsd(run, prompt, "jsd_prev"),
            lu.plot_jsd(run, prompt, "jsd_final"),
            lu.plot_top_tokens(lu.top_tokens(mean, run), run, "title"),
            lu.plot_mean_jsd(tables["layers"], run),
            lu.plot_mean_jsd(tables["layers"], run, by="kind"),
            lu.plot_answers(tables["answers"], run),
            lu.plot_settling(tables["answers"], run),
            lu.plot_patches(run, record, [0, 3, 5]),
            lu.plot_words(run, record, ["狗", "Привет"], [0, 5]),
        ):
            figure.canvas.draw()
            plt.close(figure)


def test_top1_figure_shows_the_loaded_tokens_and_probabilities(results, run):
    prompt = next(lu.load_records(results, run))["prompts"][0]
    figure = lu.plot_top1(run, prompt)
    panels = [axis for axis in figure.axes if axis.texts]
    words = np.hstack(
        [
            np.reshape([text.get_text() for text in axis.texts], (len(run["layers"]), -1))
            for axis in panels
        ]
    )
    colours = np.hstack(
        [axis.collections[0].get_array().reshape(len(run["layers"]), -1) for axis in panels]
    )
    ids = prompt["readings"]["top_ids"][:, :, 0]
    assert words.tolist() == [[lu.printable(run["tokens"][i], 9) for i in row] for row in ids]
    np.testing.assert_array_equal(colours, prompt["readings"]["top_probs"][:, :, 0])
    columns = [label.get_text() for axis in panels for label in axis.get_xticklabels()]
    assert columns == [lu.printable(run["tokens"][i], 10) for i in prompt["token_ids"]]
    plt.close(figure)


def test_patches_stand_where_they_were_in_the_crop(results, run):
    """Word and colour of row r, column c of the grid are drawn at that place of the crop."""
    record = next(lu.load_records(results, run))
    figure = lu.plot_patches(run, record, [4])
    axis, size = figure.axes[1], lu.seen_crop(record).size[0]
    top = record["patches"]["top_ids"][4, :, 0].reshape(run["grid"], run["grid"])
    for text in axis.texts:
        x, y = text.get_position()
        assert text.get_text() == lu.printable(
            run["tokens"][top[int(y * 4 / size), int(x * 4 / size)]].removeprefix("▁") or "▁", 7
        )
    assert len(axis.texts) == 16
    np.testing.assert_array_equal(
        np.asarray(axis.images[1].get_array()).ravel(), record["patches"]["top_probs"][4, :, 0]
    )
    plt.close(figure)


def test_the_crop_is_what_the_model_saw(results, run, llava, photographs):
    record = next(lu.load_records(results, run))
    assert lu.seen_crop(record).size == (56, 56)
    pixels = llava[1].image_processor(
        images=lu.open_image(photographs / record["name"]), return_tensors="np"
    )["pixel_values"][0]
    back = (
        pixels.transpose(1, 2, 0) * llava[1].image_processor.image_std
        + llava[1].image_processor.image_mean
    )
    assert np.abs(np.asarray(lu.seen_crop(record)) / 255 - back).mean() < 0.03  # JPEG


def test_words_are_drawn_from_both_spellings(results, run):
    """By hand: `temple` and `▁temple` in one patch are added, in others stand alone, elsewhere nothing is drawn."""
    record = next(lu.load_records(results, run))
    run = {
        **run,
        "tokens": ["temple", "▁temple", *(f"other{i}" for i in range(len(run["tokens"]) - 2))],
    }
    record["patches"]["top_ids"] = np.full_like(record["patches"]["top_ids"], 9)
    record["patches"]["top_probs"] = np.zeros_like(record["patches"]["top_probs"])
    for patch, rank, token, prob in [
        (0, 0, 1, 0.5),
        (0, 3, 0, 0.25),
        (5, 1, 0, 0.125),
        (15, 9, 1, 0.0625),
    ]:
        (
            record["patches"]["top_ids"][5, patch, rank],
            record["patches"]["top_probs"][5, patch, rank],
        ) = token, prob
    figure = lu.plot_words(run, record, ["temple"], [5])
    drawn = np.ma.filled(figure.axes[0].images[1].get_array().astype(float), np.nan).ravel()
    expected = np.full(16, np.nan)
    expected[[0, 5, 15]] = 0.75, 0.125, 0.0625
    np.testing.assert_array_equal(drawn, expected)
    plt.close(figure)
    with pytest.raises(ValueError, match="'frisbee' is not one token"):
        lu.plot_words(run, record, ["frisbee"], [5])


def test_words_to_look_for_end_with_a_control():
    run = {"tokens": ["▁dog", "red", "▁cat", "tree"]}
    record = {
        "objects": [{"category": "dog", "color": "red"}, {"category": "hot dog", "color": None}]
    }
    assert lu.words_to_look_for(run, record, ["cat", "dog", "hot dog", "tree"]) == [
        "dog",
        "red",
        "cat",
    ]
    assert lu.words_to_look_for(run, {"objects": []}, []) == []


def test_printable():
    assert (
        lu.printable("▁dog") == "▁dog"
        and lu.printable("Привет") == "Привет"
        and lu.printable("<0x0A>") == "<0x0A>"
    )
    assert lu.printable("\n") == "U+000A" and lu.printable("\U000e0001") == "U+E0001"
    assert lu.printable("abcdef", 4) == "abc…"


def test_report_counts_what_was_loaded(run, tables, mean):
    text = lu.report(run, tables, mean)
    first = tables["answers"].query("token == 0 and layer == 0")
    objects = first[first["kind"] == "object"]
    assert (
        "3 images with 9 prompts" in text
        and "In which order" not in text
        and "too few images for an interval" in text
    )
    assert (
        f"| object | 3 | {objects['right'].mean():.0%} of 3 (" in text
        and f") | {objects['settling_layer'].median():g} (" in text
    )
    wrong = objects[~objects["right"].astype(bool)]
    assert f"{len(wrong)} of 3 answers with a known truth" in text and all(
        lu._as_code(image) in text for image in wrong["image"]
    )
    changes = tables["layers"].query("segment == 'image'").groupby("layer")["jsd_prev"].mean()
    assert (
        f"Image positions change most at layer {changes.idxmax()} (" in text
        and f", by {changes.max():.2f} bits" in text
    )


def settled(**kinds):
    """A table of first answer tokens: layers per kind, an image each."""
    return pd.DataFrame(
        [
            {
                "image": f"{number}.jpg",
                "kind": kind,
                "settling_layer": layer,
                "readable_layer": layer,
            }
            for kind, layers in kinds.items()
            for number, layer in enumerate(layers)
        ]
    )


def test_an_order_is_claimed_only_where_a_paired_test_allows_it():
    noise = np.arange(20) % 3
    colours_objects, colours_relations, objects_relations = lu.order_of_kinds(
        settled(colour=3 + noise, object=3 + noise[::-1], relation=6 + noise)
    )
    assert "no sure order" in colours_objects
    assert (
        "colours become readable before answers about the arrangement of objects: colours earlier on 20 and later on 0 of the 20 images"
        in colours_relations
    )
    assert "objects become readable before answers about the arrangement" in objects_relations


def test_an_order_is_found_in_either_direction_and_not_from_few_images():
    noise = np.arange(20) % 3
    assert (
        "objects become readable before answers about colours: objects earlier on 20"
        in lu.order_of_kinds(settled(colour=6 + noise, object=3 + noise))[0]
    )
    assert (
        "6 images have both, too few"
        in lu.order_of_kinds(settled(colour=[3] * 6, object=[6] * 6))[0]
    )
    assert (
        "readable at the same layer"
        in lu.order_of_kinds(settled(colour=[3] * 9, object=[3] * 9))[0]
    )


def test_the_order_is_that_of_the_test_not_of_the_mean():
    """Most images one layer later, a few very much earlier: the mean and the rank test differ in direction."""
    sentence = lu.order_of_kinds(settled(colour=[3] * 25 + [31] * 3, object=[4] * 25 + [3] * 3))[0]
    assert (
        "colours become readable before answers about objects: colours earlier on 25 and later on 3 of the 28"
        in sentence
    )


def test_settling_table():
    """By hand; the interval narrows with the number of images and does not exist below six."""
    rng = np.random.default_rng(0)

    def table(n):
        answers = settled(colour=rng.integers(2, 9, n)).assign(
            token=0, layer=0, right=[True, None] * (n // 2) + [False] * (n % 2)
        )
        return answers, lu.settling_table(answers).loc["colour"]

    answers, many = table(400)
    _, few = table(12)
    _, five = table(5)
    assert (
        many["median"] == answers["settling_layer"].median()
        and many["images"] == 400
        and many["graded"] == 200
        and many["right"] == 1
    )
    assert (
        many["low"] <= many["median"] <= many["high"]
        and many["high"] - many["low"] < few["high"] - few["low"]
    )
    assert np.isnan(five["low"]) and five["graded"] == 3


def test_an_answer_that_never_settles_is_drawn_and_named(run, tables, mean):
    answers = tables["answers"].assign(settling_layer=len(run["layers"]))
    figure = lu.plot_settling(answers, run)
    axis = figure.axes[0]
    assert axis.get_xticklabels()[-1].get_text() == "never" and axis.get_xlim()[1] > len(
        run["layers"]
    )
    plt.close(figure)
    assert "| never (too few images for an interval) |" in lu.report(
        run, {**tables, "answers": answers}, mean
    )


def test_the_peak_has_a_range(run):
    sure, unsure = np.zeros((30, 6)), np.random.default_rng(0).random((30, 6))
    sure[:, 4] = 1
    sure[:, 0] = np.nan  # as at the embedding, which has no layer before it
    assert lu._peak_range(run, sure) == "4 (4 to 4)"
    low, high = lu._peak_range(run, unsure)[3:-1].split(" to ")
    assert low != high


def test_readable_layer_by_hand():
    probs = np.array(
        [[0.1, 0.3, 0.0], [0.95, 0.3, 0.0], [0.5, 0.3, 0.9], [0.91, 0.3, 0.1], [1.0, 0.3, 0.5]]
    )
    assert lu.readable_layer(probs).tolist() == [3, 0, 4]


def test_no_text_of_a_stranger_is_mark_up_in_the_report(run, tables, mean):
    nasty = "`<script>alert(1)</script>` $x$ *b* | a_b_"
    answers = tables["answers"].assign(
        answer=nasty, truth="dog", right=False, question=nasty, image=nasty
    )
    text = lu.report(run, {**tables, "answers": answers}, mean)
    assert (
        "<script" not in text
        and "$" not in text
        and "*b*" not in text
        and "&#60;script&#62;" in text
    )


def test_second_half_needs_neither_torch_nor_transformers(results, blocked):
    code = f"import lens_utils as lu; run = lu.load_run({str(results)!r}); print(lu.report(run, lu.summarise(lu.load_records({str(results)!r}, run), run), lu.load_mean_probability({str(results)!r}, run)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(blocked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "3 images" in done.stdout, done.stderr
