"""lens_figures: what is drawn is what was read."""

import os
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np

from llava_lens import store
from llava_lens import text as text_py
from llava_lens.analysis import curves
from llava_lens.data import crop
from llava_lens.figures import all_images, one_image, style
from tests.conftest import ROOT


def shown(token, length):
    """A token as figures show it."""
    return text_py.printable(token, length, style._drawable()[1])


def watch(record, layers, **present):
    """Give a record words to watch, with random probabilities, and return these by category."""
    rng, words = np.random.default_rng(0), []
    for category, is_present in present.items():
        log2_probs = -rng.integers(0, 20, (layers, len(record["patches"]["top_ids"][0])))
        words.append(
            {"category": category, "present": is_present, "log2_probs": log2_probs.astype("f2")}
        )
    record["words"] = words
    return {word["category"]: 2.0 ** word["log2_probs"].astype(float) for word in words}


def test_figures_draw_every_token_without_warnings(results, run, tables):
    """All kinds of tokens at the positions and in the cells: `$`, tags, Cyrillic, CJK, control
    characters, one token twice."""
    tokens = list(run["tokens"])
    nasty = ["$x^2$", "</b>", "▁狗", "Привет", "\u200b", "\t", "<0x0A>", "🙂", "▁$", "a" * 40]
    tokens[: len(nasty)] = nasty
    run = {**run, "tokens": tokens}
    record = store.Results(results).record()
    record["objects"] = [
        {"box": [5.0, 5.0, 20.0, 30.0], "category": "$a_b$"},
        {"box": [0.0, 0.0, 0.0, 0.0], "category": "outside"},
    ]
    watch(record, len(run["layers"]), **{"$a_b$": True, "狗": False, "Привет": False})
    prompt = record["prompts"][0]
    for readings in (record["patches"], prompt["readings"]):
        readings["top_ids"] = np.resize(np.arange(len(nasty)), readings["top_ids"].shape)
    prompt["token_ids"] = np.resize(np.arange(len(nasty)), len(prompt["token_ids"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a missing glyph is one
        # Between matplotlib and what it builds on.
        warnings.filterwarnings("ignore", message=".*deprecated")
        style.use_style()
        mean = np.linspace(1, 0, len(tokens))[None].repeat(len(run["layers"]), 0)
        for figure in (
            one_image.plot_top1(run, prompt),
            one_image.plot_series(run, prompt, "jsd_prev"),
            one_image.plot_series(run, prompt, "jsd_final"),
            all_images.plot_top_tokens(curves.top_tokens(mean, run), run, "title"),
            all_images.plot_mean_series(tables["layers"], run),
            all_images.plot_mean_series(tables["layers"], run, by="kind"),
            all_images.plot_answers(tables["answers"], run),
            all_images.plot_settling(tables["answers"], run),
            one_image.plot_patches(run, record, [0, 3, 5]),
            one_image.plot_words(run, record, ["$a_b$", "狗", "Привет"], [0, 5]),
        ):
            figure.canvas.draw()
            plt.close(figure)


def test_top1_figure_shows_the_loaded_tokens_and_probabilities(results, run):
    prompt = store.Results(results).record()["prompts"][0]
    figure, n_layers = one_image.plot_top1(run, prompt), len(run["layers"])
    panels = [axis for axis in figure.axes if axis.texts]
    cells = [[text.get_text() for text in axis.texts] for axis in panels]
    words = np.hstack([np.reshape(texts, (n_layers, -1)) for texts in cells])
    colours = np.hstack([axis.collections[0].get_array().reshape(n_layers, -1) for axis in panels])
    ids = prompt["readings"]["top_ids"][:, :, 0]
    assert words.tolist() == [[shown(run["tokens"][i], 9) for i in row] for row in ids]
    np.testing.assert_array_equal(colours, prompt["readings"]["top_probs"][:, :, 0])
    columns = [label.get_text() for axis in panels for label in axis.get_xticklabels()]
    assert columns == [shown(run["tokens"][i], 10) for i in prompt["token_ids"]]
    plt.close(figure)


def test_patches_stand_where_they_were_in_the_crop(results, run):
    """Word and colour of row r, column c of the grid are drawn at that place of the crop."""
    record = store.Results(results).record()
    figure = one_image.plot_patches(run, record, [4])
    axis, size = figure.axes[1], crop.open_crop(record).size[0]
    top = record["patches"]["top_ids"][4, :, 0].reshape(run["grid"], run["grid"])
    for text in axis.texts:
        x, y = text.get_position()
        token = run["tokens"][top[int(y * 4 / size), int(x * 4 / size)]]
        assert text.get_text() == shown(token.removeprefix("▁") or "▁", 7)
    assert len(axis.texts) == 16
    probs = record["patches"]["top_probs"][4, :, 0]
    np.testing.assert_array_equal(np.asarray(axis.images[1].get_array()).ravel(), probs)
    assert list(axis.images[1].get_extent()) == [0, size, size, 0]
    plt.close(figure)


def test_words_are_drawn_from_the_record(results, run):
    """The whole probability of the word in every patch, at the layers that are asked for; what is
    not annotated is marked so."""
    record = store.Results(results).record()
    probs = watch(record, len(run["layers"]), temple=True, tree=False)
    figure = one_image.plot_words(run, record, ["tree", "temple"], [5, 2])
    axes = figure.axes[:4]
    for axis, category, layer in zip(
        axes, ("tree", "tree", "temple", "temple"), (5, 2, 5, 2), strict=True
    ):
        drawn = np.asarray(axis.images[1].get_array())
        np.testing.assert_array_equal(drawn.ravel(), probs[category][layer])
        assert axis.get_title(loc="left") + axis.get_title() == f"layer {layer}"
    labels = [axis.get_ylabel() for axis in axes]
    assert labels == ["tree\n(not annotated)", "", "temple", ""]
    plt.close(figure)


def test_an_answer_that_never_settles_is_drawn(run, tables):
    answers = tables["answers"].assign(settling_layer=len(run["layers"]))
    figure = all_images.plot_settling(answers, run)
    axis = figure.axes[0]
    assert axis.get_xticklabels()[-1].get_text() == "never"
    assert axis.get_xlim()[1] > len(run["layers"])
    plt.close(figure)


def test_second_half_needs_neither_torch_nor_transformers(results, blocked):
    code = f"""
from llava_lens import store
from llava_lens.analysis import answers, causal, grounding, presence, report
from llava_lens.figures import all_images
results = store.Results({str(results)!r})
tables = answers.tabulate(results.records(), results.run)
all_images.plot_settling(tables["answers"], results.run)
grounded = grounding.grounding(results.records(), results.run)
confident = presence.category_confidence(results.records())
cut = causal.knockouts(results.records(), results.run)
print(report.report(results.run, tables, grounded, confident, cut, results.mean_probability()))
"""
    environment = {**os.environ, "PYTHONPATH": str(blocked), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "3 images" in done.stdout, done.stderr
