"""figures.one_image: what is drawn is what was read."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from llava_lens import schema, store
from llava_lens.data import crop
from llava_lens.figures import one_image, style
from llava_lens.figures.style import drawn
from tests.figures.drawing import NASTY, drawn_without_warnings, labels_of, overlap, title_of, watch

SERIES = ["jsd_prev", "jsd_final", "entropy"]


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
        lambda: one_image.plot_prompt(run, prompt),
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
    shown = one_image.large_crop(record)
    assert shown.alt == f"The image {record['name']} as the model saw it"
    seen = Image.open(io.BytesIO(shown.data)).resize((56, 56), Image.Resampling.BOX)
    wanted = np.asarray(crop.open_crop(record), float)
    assert np.abs(np.asarray(seen, float) - wanted).mean() < 5 < wanted.std()


def panels_of(figure):
    """The rows of four panels, top-1, JSD to the previous and the last layer, entropy."""
    panels = [axis for axis in figure.axes if axis.images]
    return [panels[at : at + 4] for at in range(0, len(panels), 4)]


def a_large_prompt(n_pos, n_layers, n_answer=4):
    """A run with twenty tokens, and a prompt whose answer is read at the last `n_answer`."""
    rng, shape = np.random.default_rng(0), (n_layers, n_pos)
    readings = {
        "top_ids": rng.integers(20, size=(*shape, 1)).astype(np.uint8),
        "top_probs": rng.random((*shape, 1), np.float32),
        **{name: rng.random(shape, np.float32) for name in SERIES},
    }
    readings["jsd_prev"][0] = np.nan
    prompt = {"question": "ЩЩЩЩ " * 300, "answer": "\u0600" * 5000, "readings": readings}
    ids = {"token_ids": np.arange(n_pos) % 20, "n_prompt": n_pos - n_answer + 1}
    layers = ["emb", *map(str, range(1, n_layers))]
    return {"layers": layers, "tokens": [f"▁{i}{'x' * i}" for i in range(20)]}, prompt | ids


@pytest.mark.parametrize("n_answer, widest", [(1, 1), (2, 2), (11, 11), (20, 10)])
def test_the_prompts_figure_shows_all_that_was_read(n_answer, widest):
    """Once, first where the answer is read: an answer of n tokens at the n last positions."""
    n_pos, n_layers = n_answer + 20, 3
    run, prompt = a_large_prompt(n_pos, n_layers, n_answer)
    tokens, readings = run["tokens"], prompt["readings"]
    figure = one_image.plot_prompt(run, prompt)
    rows = panels_of(figure)
    positions = [*range(20, n_pos), *range(20)]
    n_columns = [axis.images[0].get_array().shape[1] for axis, *_ in rows]
    assert n_columns == [widest] * (n_answer // widest) + [10, 10]
    cells = [[text.get_text() for text in axis.texts] for axis, *_ in rows]
    words = np.hstack([np.reshape(texts, (n_layers, -1)) for texts in cells])
    lengths = [86 // widest] * n_answer + [8] * 20
    for column, (pos, length) in enumerate(zip(positions, lengths, strict=True)):
        ids = readings["top_ids"][:, pos, 0]
        assert words[:, column].tolist() == [drawn(tokens[i], length) for i in ids]
    wanted = [readings["top_probs"][:, :, 0], *(readings[name] for name in SERIES)]
    labels = [drawn(tokens[i], 10) for i in prompt["token_ids"][positions]]
    for panels, values in zip(zip(*rows, strict=True), wanted, strict=True):
        colours = np.hstack([axis.images[0].get_array() for axis in panels])
        np.testing.assert_array_equal(np.ma.filled(colours, np.nan), values[:, positions])
        ticks = [tick for axis in panels for tick in axis.get_xticklabels()]
        assert [tick.get_text() for tick in ticks] == labels
        bold = [tick.get_fontweight() == "bold" for tick in ticks]
        assert bold == [0 < at < n_answer for at in range(n_pos)]
    # The values are bits (their tests are in analysis); so are the labels and the scales' ends.
    ends = [1, 1, 1, np.log2(20)]
    scales = [[axis.images[0].get_clim() for axis in row] for row in rows]
    assert scales == [[(0, end) for end in ends]] * len(rows)
    labels = [" ".join(axis.get_xlabel().split()) for axis in figure.axes if not axis.images]
    titles = ["JSD to the previous layer", "JSD to the last layer", "Entropy"]
    assert labels == ["probability of the top-1 token", *(f"{title} (bits)" for title in titles)]


def test_of_some_layers_each_row_has_its_own_label(run, record):
    """Every third of the 5 layers was read: a position on the axis is no layer's number."""
    run, positions = {**run, "layers": ["emb", "3", "5"]}, [0, 3, 5]
    for readings in (record["patches"], record["prompts"][0]["readings"]):
        of_layers = readings.keys() & schema.READINGS.keys()
        readings.update({name: readings[name][positions] for name in of_layers})
    figure = one_image.plot_prompt(run, record["prompts"][0])
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


def test_in_a_large_grid_a_word_takes_two_lines():
    run = {"grid": [24, 24], "tokens": ["▁elephants", "▁dog", "▁zebra"]}
    words = one_image.patch_words(run, [0, 1, 2, 2], [0.5, 0.05, 0.05, 0.04], 0.05)
    assert words == ["elep\nhan…", "dog", "zebr\na", ""]
    assert one_image.patch_words(run | {"grid": [12, 12]}, [0], [0], 0) == ["eleph\nants"]


def test_wide_letters_stay_in_their_cell_and_in_their_patch():
    style.use_style()
    run, prompt = a_large_prompt(22, 3, 11)
    run |= {"grid": [24, 24], "image_size": 336, "tokens": ["▁мужчина"] + ["ЩЩЩЩЩЩ"] * 19}
    top = {"top_ids": np.zeros((3, 576, 1), np.uint8), "top_probs": np.ones((3, 576, 1))}
    record = {"crop": np.zeros((336, 336, 3), np.uint8), "patches": top, "objects": []}
    cells, patches = one_image.plot_prompt(run, prompt), one_image.plot_patches(run, record, [0])
    for figure, at, n in ((cells, 0, 11), (patches, 1, 24)):
        figure.canvas.draw()
        assert not overlap(figure.axes[at].texts[:n])


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
    assert one_image.plot_words(run, record, ["tree"], [5]).get_size_inches()[1] < 4


@pytest.mark.parametrize(
    "n_layers, n_pos, n_answer",
    [(33, 4000, 4), (201, 4000, 4), (3, 65, 4), (3, 64, 4), (3, 100, 91)],
)
def test_of_a_long_prompt_the_answer_and_the_last_positions_are_drawn(n_layers, n_pos, n_answer):
    run, prompt = a_large_prompt(n_pos, n_layers, n_answer)
    n_shown = min(64, 4000 // n_layers)
    style.use_style()
    start = time.process_time()
    figure = one_image.plot_prompt(run, prompt)
    if n_layers > 3:  # a small one is no matter of time or width
        figure.canvas.draw()
        assert time.process_time() - start < 20
        width = figure.get_tightbbox().width  # as it is shown, with all that belongs to it
        assert width < 10.3 and figure.get_size_inches()[1] * 150 < 2**15
    answer = range(n_pos - n_answer, n_pos)[:n_shown]
    shown = [*answer, *range(n_pos - n_shown, n_pos - n_answer)]
    ticks = [tick for axis, *_ in panels_of(figure) for tick in axis.get_xticklabels()]
    names = [drawn(run["tokens"][pos % 20], 10) for pos in shown]
    assert [tick.get_text() for tick in ticks] == names
    assert [tick.get_fontweight() for tick in ticks].count("bold") == len(answer) - 1
    said = f"{n_shown} of {n_pos:,} positions" in figure.get_suptitle()
    assert said == (n_pos > 64)


def test_of_a_fine_grid_the_colours_are_drawn_and_of_many_boxes_the_largest():
    rng = np.random.default_rng(0)
    run = {"grid": [64, 64], "image_size": 640}
    run |= {"layers": ["emb", "1", "2"], "tokens": ["▁a"] * 20}
    patches = {
        "top_ids": rng.integers(20, size=(3, 4096, 1)).astype(np.uint8),
        "top_probs": rng.random((3, 4096, 1), np.float32),
    }
    boxes = [[at % 6 * 100.0, 1.0, 100.0, 1 + at / 10] for at in range(5000)]
    objects = [{"category": "a long name " * 500, "box": box} for box in boxes]
    black = np.zeros((640, 640, 3), np.uint8)
    record = {"crop": black, "patches": patches, "objects": objects}
    start = time.process_time()
    figure = one_image.plot_patches(run, record, [0, 1, 2, 0, 1])
    figure.canvas.draw()
    assert time.process_time() - start < 20
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert len(heights) == 100 and max(heights) == 1 + 499.9
    picture, names = figure.axes[0].bbox, figure.axes[0].texts
    corners = [point for name in names for point in name.get_window_extent().get_points()]
    assert all(picture.contains(*corner) for corner in corners)
    assert figure.get_tightbbox().width < 13
