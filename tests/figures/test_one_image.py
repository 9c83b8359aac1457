"""figures.one_image: what is drawn is what was read."""

import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from llava_lens import store
from llava_lens.data import crop
from llava_lens.figures import one_image, style
from llava_lens.figures.style import drawn
from tests.figures.drawing import NASTY, drawn_without_warnings, labels_of, title_of, watch


@pytest.fixture
def record(results):
    return store.Results(results).record()


def test_every_token_is_drawn_without_warnings(run, record):
    """All kinds of tokens at the positions and in the cells: `$`, tags, Cyrillic, CJK, control
    characters, one token twice."""
    run = {**run, "tokens": NASTY + run["tokens"][len(NASTY) :]}
    boxes = {"$a_b$": [5.0, 5.0, 20.0, 30.0], "outside": [0.0, 0.0, 0.0, 0.0]}
    record["objects"] = [{"category": name, "box": box} for name, box in boxes.items()]
    watch(record, **{"$a_b$": True, "狗": False, "Привет": False})
    prompt, all_ids = record["prompts"][0], np.arange(len(NASTY))
    for readings in (record["patches"], prompt["readings"]):
        readings["top_ids"] = np.resize(all_ids, readings["top_ids"].shape)
    prompt["token_ids"] = np.resize(all_ids, len(prompt["token_ids"]))
    drawn_without_warnings(
        lambda: one_image.plot_top1(run, prompt),
        lambda: one_image.plot_series(run, prompt, "jsd_prev"),
        lambda: one_image.plot_patches(run, record, [0, 3, 5]),
        lambda: one_image.plot_words(run, record, ["$a_b$", "狗", "Привет"], [0, 5]),
    )


def test_the_table_of_answers_is_of_one_image_and_its_texts_are_text(tables, record):
    answers = tables.answers.assign(question="<b>" + "?" * 1000, mediated=0.25)
    table = one_image.table_of_answers(answers, record["name"])
    assert table.data["answer"].tolist() == [prompt["answer"] for prompt in record["prompts"]]
    html = table.to_html()
    assert "&lt;b&gt;" in html and "<b>" not in html and "?" * 498 not in html and ">0.25<" in html


def test_the_large_crop_is_the_models_image(record):
    seen = one_image.large_crop(record, 112).resize((56, 56), Image.Resampling.BOX)
    wanted = np.asarray(crop.open_crop(record), float)
    assert np.abs(np.asarray(seen, float) - wanted).mean() < 5 < wanted.std()


def test_top1_figure_shows_the_loaded_tokens_and_probabilities(run, record):
    prompt, n_layers = record["prompts"][0], len(run["layers"])
    figure = one_image.plot_top1(run, prompt)
    panels = [axis for axis in figure.axes if axis.texts]
    cells = [[text.get_text() for text in axis.texts] for axis in panels]
    words = np.hstack([np.reshape(texts, (n_layers, -1)) for texts in cells])
    colours = np.hstack([axis.collections[0].get_array().reshape(n_layers, -1) for axis in panels])
    ids = prompt["readings"]["top_ids"][:, :, 0]
    assert words.tolist() == [[drawn(run["tokens"][i], 9) for i in row] for row in ids]
    np.testing.assert_array_equal(colours, prompt["readings"]["top_probs"][:, :, 0])
    columns = [label for axis in panels for label in labels_of(axis.xaxis)]
    assert columns == [drawn(run["tokens"][i], 10) for i in prompt["token_ids"]]


@pytest.mark.parametrize("series", ["jsd_prev", "jsd_final", "entropy"])
def test_series_are_drawn_in_bits_up_to_their_bound(run, record, series):
    """The values are bits (their tests are in analysis); so are the label and the scale's end."""
    prompt, n_layers = record["prompts"][0], len(run["layers"])
    figure = one_image.plot_series(run, prompt, series)
    panels = [axis for axis in figure.axes if axis.get_ylabel() == "layer"]
    bars = [axis for axis in figure.axes if axis.get_ylabel().endswith("(bits)")]
    assert len(bars) == len(panels)
    meshes = [axis.collections[0] for axis in panels]
    bound = np.log2(len(run["tokens"])) if series == "entropy" else 1
    assert {mesh.get_clim() for mesh in meshes} == {(0, bound)}
    values = np.hstack([mesh.get_array().reshape(n_layers, -1) for mesh in meshes])
    np.testing.assert_array_equal(np.ma.filled(values, np.nan), prompt["readings"][series])


def test_of_some_layers_each_row_has_its_own_label(run, record):
    """Every third of the 5 layers was read: a position on the axis is no layer's number."""
    run, positions = {**run, "layers": ["emb", "3", "5"]}, [0, 3, 5]
    for readings in (record["patches"], record["prompts"][0]["readings"]):
        readings.update({name: values[positions] for name, values in readings.items()})
    figure = one_image.plot_top1(run, record["prompts"][0])
    assert labels_of(figure.axes[0].yaxis) == ["emb", "3", "5"]
    watch(record, tree=False)
    patches = one_image.plot_patches(run, record, [0, 1, 2]).axes[1:4]
    words = one_image.plot_words(run, record, ["tree"], [0, 1, 2]).axes[:3]
    for row in (patches, words):
        assert [title_of(axis) for axis in row] == ["layer emb", "layer 3", "layer 5"]


def test_patches_stand_where_they_were_in_the_crop(run, record):
    """Word and colour of row r, column c of the grid are drawn at that place of the crop."""
    figure = one_image.plot_patches(run, record, [4])
    axis, size = figure.axes[1], crop.open_crop(record).size[0]
    top = record["patches"]["top_ids"][4, :, 0].reshape(run["grid"])
    for text in axis.texts:
        x, y = text.get_position()
        token = run["tokens"][top[int(y * 4 / size), int(x * 4 / size)]]
        assert text.get_text() == drawn(token.removeprefix("▁") or "▁", 10)
    assert len(axis.texts) == 16
    probs = record["patches"]["top_probs"][4, :, 0]
    np.testing.assert_array_equal(np.asarray(axis.images[1].get_array()).ravel(), probs)
    assert list(axis.images[1].get_extent()) == [0, size, size, 0]


def test_words_are_drawn_from_the_record(run, record):
    """The whole probability of the word in every patch, at the layers that are asked for; what is
    not annotated is marked so."""
    probs = watch(record, temple=True, tree=False)
    figure = one_image.plot_words(run, record, ["tree", "temple"], [5, 2])
    axes, cells = figure.axes[:4], [("tree", 5), ("tree", 2), ("temple", 5), ("temple", 2)]
    for axis, (category, layer) in zip(axes, cells, strict=True):
        values = np.asarray(axis.images[1].get_array())
        np.testing.assert_array_equal(values.ravel(), probs[category][layer])
        assert title_of(axis) == f"layer {layer}"
    labels = [axis.get_ylabel() for axis in axes]
    assert labels == ["tree\n(not annotated)", "", "temple", ""]


def a_large_prompt(n_pos, n_layers):
    """A run with twenty tokens, and a prompt of which three positions are the answer's."""
    rng, shape = np.random.default_rng(0), (n_layers, n_pos)
    readings = {
        "top_ids": rng.integers(20, size=(*shape, 1)).astype(np.uint8),
        "top_probs": rng.random((*shape, 1), np.float32),
        "jsd_final": rng.random(shape, np.float32),
    }
    prompt = {"question": "Why? " * 300, "answer": "\u0600" * 5000, "readings": readings}
    ids = {"token_ids": np.arange(n_pos) % 20, "n_prompt": n_pos - 3}
    layers = ["emb", *map(str, range(1, n_layers))]
    return {"layers": layers, "tokens": [f"▁{i}" for i in range(20)]}, prompt | ids


@pytest.mark.parametrize("n_layers, n_pos", [(33, 4000), (201, 4000), (3, 65), (3, 64)])
def test_of_a_long_prompt_the_last_positions_are_drawn(n_layers, n_pos):
    run, prompt = a_large_prompt(n_pos, n_layers)
    n_shown = min(64, 4000 // n_layers)
    style.use_style()
    for plot in (one_image.plot_top1, partial(one_image.plot_series, series="jsd_final")):
        start = time.process_time()
        figure = plot(run, prompt)
        if n_layers > 3:  # a small one is no matter of time or width
            figure.canvas.draw()
            assert time.process_time() - start < 20
            width = figure.get_tightbbox().width  # as it is shown, with all that belongs to it
            assert width < 13 and figure.get_size_inches()[1] * 150 < 2**15
        panels = [axis for axis in figure.axes if axis.get_xlabel() or axis.get_ylabel() == "layer"]
        ticks = [tick for axis in panels for tick in axis.get_xticklabels() if tick.get_text()]
        assert len(ticks) == n_shown
        assert [tick.get_text() for tick in ticks][-1] == f"▁{(n_pos - 1) % 20}"
        assert [tick.get_fontweight() for tick in ticks].count("bold") == 3
        title = panels[0].get_title(loc="left")
        assert (f"last {n_shown} of {n_pos:,} positions" in title) == (n_pos > 64)


def test_of_a_fine_grid_the_colours_are_drawn_and_of_many_boxes_the_largest():
    rng = np.random.default_rng(0)
    run = {"grid": [64, 64], "image_size": 640}
    run |= {"layers": ["emb", "1", "2"], "tokens": ["▁a"] * 20}
    patches = {
        "top_ids": rng.integers(20, size=(3, 4096, 1)).astype(np.uint8),
        "top_probs": rng.random((3, 4096, 1), np.float32),
    }
    boxes = [[at / 100, 1.0, 100.0, 1 + at / 10] for at in range(5000)]
    objects = [{"category": "a long name " * 500, "box": box} for box in boxes]
    black = np.zeros((640, 640, 3), np.uint8)
    record = {"crop": black, "patches": patches, "objects": objects}
    start = time.process_time()
    figure = one_image.plot_patches(run, record, [0, 1, 2, 0, 1])
    figure.canvas.draw()
    assert time.process_time() - start < 20
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert len(heights) == 100 and max(heights) == 1 + 499.9
    assert max(len(text.get_text()) for text in figure.axes[0].texts) <= 30
    assert figure.get_tightbbox().width < 13
