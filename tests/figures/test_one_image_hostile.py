"""llava_lens.figures.one_image: prompts, grids and boxes too many to be drawn whole."""

import time
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest

from llava_lens.figures import one_image, style
from tests.hostile import encoded, make_results


def a_large_prompt(n_pos, n_layers=201, question="Why? " * 300):
    rng, run = np.random.default_rng(0), make_results()[0]
    run |= {"n_layers": n_layers - 1, "layers": ["emb", *map(str, range(1, n_layers))]}
    shape = (n_layers, n_pos)
    readings = {
        "top_ids": rng.integers(20, size=(*shape, 1)).astype(np.uint8),
        "top_probs": rng.random((*shape, 1), np.float32),
        **{name: rng.random(shape, np.float32) for name in ("jsd_prev", "jsd_final", "entropy")},
    }
    prompt = make_results()[1]["prompts"][0]
    token_ids = np.arange(n_pos) % 20
    prompt |= {"question": question, "answer": "\u0600" * 5000, "token_ids": token_ids}
    return run, prompt | {"n_prompt": n_pos - 3, "readings": readings}


@pytest.mark.parametrize("n_layers, n_pos", [(33, 4000), (201, 4000), (3, 65), (3, 64)])
def test_of_a_long_prompt_the_last_positions_are_drawn(n_layers, n_pos):
    run, prompt = a_large_prompt(n_pos, n_layers)
    n_shown = min(64, 4000 // n_layers)
    style.use_style()
    for plot in (one_image.plot_top1, partial(one_image.plot_series, series="jsd_final")):
        start = time.process_time()
        figure = plot(run, prompt)
        figure.canvas.draw()
        assert time.process_time() - start < 20
        panels = [axis for axis in figure.axes if axis.get_xlabel() or axis.get_ylabel() == "layer"]
        ticks = [tick for axis in panels for tick in axis.get_xticklabels() if tick.get_text()]
        assert len(ticks) == n_shown
        assert [tick.get_text() for tick in ticks][-1] == f"▁{(n_pos - 1) % 20}"
        assert [tick.get_fontweight() for tick in ticks].count("bold") == 3
        title = panels[0].get_title(loc="left")
        assert (f"last {n_shown} of {n_pos:,} positions" in title) == (n_pos > 64)
        # As it is shown: with all that belongs to the figure around it.
        width = figure.get_tightbbox().width
        assert width < 13 and figure.get_size_inches()[1] * 150 < 2**15
        plt.close(figure)


def test_of_a_fine_grid_the_colours_are_drawn_and_of_many_boxes_the_largest():
    run, record, _ = make_results()
    rng = np.random.default_rng(0)
    run |= {"grid": 64, "image_size": 640}
    record["crop"] = encoded(size=(640, 640))
    record["patches"] = {
        "top_ids": rng.integers(20, size=(3, 4096, 1)).astype(np.uint8),
        "top_probs": rng.random((3, 4096, 1), np.float32),
    }
    boxes = [[at / 100, 1.0, 100.0, 1 + at / 10] for at in range(5000)]
    category = "a long name " * 500
    record["objects"] = [
        {**record["objects"][0], "category": category, "box": box, "share": box[3]} for box in boxes
    ]
    start = time.process_time()
    figure = one_image.plot_patches(run, record, [0, 1, 2, 0, 1])
    figure.canvas.draw()
    assert time.process_time() - start < 20
    drawn = [patch.get_height() for patch in figure.axes[0].patches]
    assert len(drawn) == 100 and max(drawn) == 1 + 499.9
    assert max(len(text.get_text()) for text in figure.axes[0].texts) <= 30
    assert figure.get_tightbbox().width < 13
    plt.close(figure)
