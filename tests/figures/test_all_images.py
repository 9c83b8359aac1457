"""figures.all_images: what is drawn is what the tables hold."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from llava_lens import kinds, store
from llava_lens.analysis import curves, grounding, lenses
from llava_lens.figures import all_images, style
from tests.figures.drawing import NASTY, drawn_without_warnings, labels_of, overlap, title_of, watch

N_IMAGES = 14  # enough for intervals


def test_every_token_is_drawn_without_warnings(run, tables):
    run = {**run, "tokens": NASTY + run["tokens"][len(NASTY) :]}
    mean = np.linspace(1, 0, len(run["tokens"]))[None].repeat(len(run["layers"]), 0)
    drawn_without_warnings(
        lambda: all_images.plot_top_tokens(curves.top_tokens(mean, run), run, "title"),
        lambda: all_images.plot_mean_series(tables.layers, run),
        lambda: all_images.plot_mean_series(tables.layers, run, by="kind"),
        lambda: all_images.plot_answers(tables.answers, run),
        lambda: all_images.plot_settling(tables.answers, run),
    )


def test_the_table_of_tokens_is_text(run):
    run = {**run, "tokens": NASTY}
    mean = np.linspace(0.5, 1e-9, len(NASTY))[None].repeat(len(run["layers"]), 0)
    top = curves.top_tokens(mean, run)
    html = all_images.table_of_tokens({"image": top, "answer": top}).to_html()
    assert html.count("&lt;/b&gt;") == html.count("U+200B") == html.count(">1e-09<") == 2
    assert html.count(">0.5<") == 2 and "</b>" not in html


def test_mean_series_are_drawn_in_bits_at_the_layers_that_were_read(run, tables):
    """Every third of the 5 layers was read: a position on the axis is no layer's number."""
    run, layers = {**run, "layers": ["emb", "3", "5"]}, tables.layers.query("layer in [0, 3, 5]")
    bias = pd.DataFrame({"segment": "image", "layer": [0, 3, 5], "bias": [2.0, 1.0, 0.0]})
    figure = all_images.plot_mean_series(layers, run, bias=bias)
    labels = ["mean JSD (bits)", "mean JSD (bits)", "mean entropy (bits)"]
    assert [axis.get_ylabel() for axis in figure.axes] == [*labels, "KL to the last layer (bits)"]
    for axis, column in zip(figure.axes, ("jsd_prev", "jsd_final", "entropy"), strict=False):
        expected = curves.layer_curve(layers, column, "segment")
        for line in axis.lines:
            rows = expected[expected["segment"] == line.get_label()]
            np.testing.assert_array_equal(line.get_xydata(), rows[["layer", "mean"]])
        assert labels_of(axis.xaxis) == ["emb", "3", "5"]
        assert axis.get_xticks().tolist() == [0, 3, 5] and axis.get_xlim() == (-0.5, 5.5)
    (line,) = figure.axes[3].lines
    np.testing.assert_array_equal(line.get_xydata(), bias[["layer", "bias"]])


def test_all_kinds_have_a_marker_for_grey_print_and_one_row_of_a_legend(run, tables):
    style.use_style()
    answers = tables.answers.assign(kind=np.resize(list(kinds.KINDS), len(tables.answers)))
    figure = all_images.plot_answers(answers, run)
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == len({marker for _, marker in looks}) == len(kinds.KINDS)
    figure.canvas.draw()
    assert not overlap(figure.legends[0].get_texts())


def test_an_answer_that_never_settles_is_drawn(run, tables):
    answers = tables.answers.assign(settling_layer=len(run["layers"]), handed_over=np.nan)
    figure = all_images.plot_settling(answers, run)
    assert len(figure.axes) == 2  # without a route there is no layer to hand over
    axis = figure.axes[0]
    assert labels_of(axis.xaxis)[-1] == "never" and axis.get_xlim()[1] > len(run["layers"])
    figure = all_images.plot_settling(answers.assign(handed_over=2.0), run)
    assert set(figure.axes[2].lines[0].get_xdata()) == {2}


# ---- Route and knockout -------------------------------------------------------------------------

KINDS = ["object", "presence", "colour", "relation", "description"]
CUTS = ["object", "background", "image", "image_last", "question_last"]


def joined_lines(axis):
    """The lines that join points, without those for orientation."""
    lines = (line for line in axis.lines if len(line.get_xdata()) > 2)
    return [line for line in lines if line.get_linestyle() != "None"]


def routes(n_images, handed_over, layers):
    """A table as of `causal.routes` of three kinds, with `handed_over` by kind. The image has the
    answer up to there, then the last position."""
    cells = itertools.product(range(n_images), handed_over, layers)
    table = pd.DataFrame(cells, columns=["image", "kind", "layer"])
    handed = table["kind"].map(handed_over)
    is_last = (table["layer"] >= handed).astype(float)
    return table.assign(
        prompt=0, leaves_image=handed, handed_over=handed, mediated=0.25,
        effect_image=1 - is_last, effect_question=0.1, effect_last=is_last,
    )  # fmt: skip


def answers_of(routes, numbers):
    """The columns of the answers that the figure needs, and an answer that has no route."""
    table = routes[["image", "prompt", "kind"]].drop_duplicates()
    other = table.assign(prompt=1, probability=1.0, kind="colour")
    table = pd.concat([table.assign(probability=0.5), other])
    table = table.merge(pd.DataFrame({"layer": numbers}), "cross")
    return table.assign(token=0, word_at=0, whole_word=True)


@pytest.mark.parametrize("n_images", [1, N_IMAGES])
@pytest.mark.parametrize("n_layers, step", [(9, 1), (33, 2), (13, 3)])
def test_the_route_is_that_of_the_table(n_images, n_layers, step):
    """Of 13 layers every third was read by the lens; patched was every second of 33."""
    numbers = [*range(0, n_layers, 3 if n_layers == 13 else 1)]
    run = {"layers": ["emb", *map(str, numbers[1:])], "n_layers": n_layers - 1}
    handed_over = {"relation": 6, "colour": 4, "presence": n_layers}
    table = routes(n_images, handed_over, range(0, n_layers, step))
    figure = all_images.plot_route(table, answers_of(table, numbers), run)
    titles = [title_of(axis).split("\n") for axis in figure.axes]
    kinds = "colour", "relation", "presence"
    answers = "1 answer" if n_images == 1 else "14 answers"
    assert [title[0] for title in titles] == [f"{kind}, {answers}" for kind in kinds]
    assert titles[0][1] == "leaves image 4, handed over 4, mediated 0.25"
    assert titles[1][1].startswith("leaves image 6, handed over 6")
    assert "handed over never" in titles[2][1]
    labels = [label.get_text() for label in figure.legends[0].get_texts()]
    for axis, kind in zip(figure.axes, kinds, strict=True):
        rows = table[(table["kind"] == kind) & (table["image"] == 0)]
        lines = {line.get_label(): line for line in joined_lines(axis)}
        assert list(lines) == labels
        for line, column in zip(lines.values(), ("image", "question", "last"), strict=False):
            np.testing.assert_allclose(line.get_xydata(), rows[["layer", f"effect_{column}"]])
        # The lens's line is of the answers with a route only.
        read = lines[labels[-1]]
        np.testing.assert_array_equal(read.get_xydata(), [[number, 0.5] for number in numbers])
        assert len(axis.collections) == (3 if n_images == N_IMAGES else 0)  # bands
    figure.canvas.draw()
    assert figure.get_tightbbox().width < 10.3  # no title goes past the figure
    assert not overlap([axis._left_title for axis in figure.axes])


def knockouts(n_images, n_blocks):
    """A table as of `causal.knockouts`: the object's patches and the control in windows, every cut
    in all blocks."""
    every = n_blocks + 1
    cells = itertools.product(range(n_images), KINDS, CUTS, [*np.arange(4.5, n_blocks, 2), every])
    table = pd.DataFrame(cells, columns=["image", "kind", "cut", "layer"])
    table = table.assign(prompt=table["kind"].map(KINDS.index), change=-0.3)
    of_objects = table["cut"].isin(CUTS[:2])
    known = ~of_objects | (table["kind"] != "description")
    return table[known & (of_objects | (table["layer"] == every))]


@pytest.mark.parametrize("n_images, n_blocks, step", [(2, 32, 1), (N_IMAGES, 32, 1), (2, 12, 3)])
def test_the_knockout_names_blocks_and_not_positions_of_layers(n_images, n_blocks, step):
    numbers = range(0, n_blocks + 1, step)
    run = {"n_layers": n_blocks, "layers": ["emb", *map(str, numbers[1:])]}
    figure = all_images.plot_knockout(knockouts(n_images, n_blocks), run)
    assert {title_of(axis) for axis in figure.axes[:5]} == set(KINDS)
    figure.canvas.draw()
    assert not any(overlap(axis.get_xticklabels()) for axis in figure.axes[:5])
    lines = {title_of(axis): len(joined_lines(axis)) for axis in figure.axes[:5]}
    assert lines.pop("description") == 0 and set(lines.values()) == {2}
    axis = figure.axes[0].xaxis
    *places, (last, _) = zip(labels_of(axis), axis.get_ticklocs(), strict=True)
    assert last == "all" and places[-1] == (f"{n_blocks}", n_blocks)
    assert all(int(name) == place for name, place in places)


# ---- Words in boxes -----------------------------------------------------------------------------


def grounded(sizes, n_layers=3):
    """A table as of `grounding` with an image per size; numbers rise with the image."""
    rows = itertools.product(range(len(sizes)), range(n_layers))
    table = pd.DataFrame(rows, columns=["number", "layer"])
    about = {"size": table["number"].map(dict(enumerate(sizes))), "category": "dog"}
    table = table.assign(image=table["number"].map("{:02}".format), **about)
    auroc = 0.5 + table["number"] / 40
    ends = [lens + end for lens in ("", "_embedding") for end in ("", *grounding.CONTROLS)]
    columns = {each + end: auroc / 2 for each in grounding.MEASURES for end in ends}
    columns |= {"auroc": auroc, "top1_hit_rate_embedding": 2 * auroc}
    return table.assign(**columns)


def layers_of(n_images, n_layers=3):
    cells = itertools.product(range(n_images), range(n_layers))
    table = pd.DataFrame(cells, columns=["image", "layer"])
    return table.assign(segment="image", no_word=0.25)


def test_a_size_of_one_image_takes_no_band_from_the_others():
    run = {"layers": ["emb", "1", "2"]}
    table = grounded(["small"] + ["large"] * N_IMAGES)
    figure = all_images.plot_grounding(table, layers_of(N_IMAGES), run)
    labels = [label.get_text() for label in figure.legends[0].get_texts()]
    assert labels == list(all_images.OF_LENSES)
    assert len({marker for _, marker, _ in all_images.OF_LENSES.values()}) == 7  # in grey print
    drawn = [line.get_label() for line in figure.axes[0].lines[:-1]]
    assert drawn == [name for name in labels if name != lenses.NO_WORD]
    assert [line.get_label() for line in figure.axes[2].lines[:-1]] == ["small", "large"]
    bands = [sum(band.get_alpha() == 0.2 for band in axis.collections) for axis in figure.axes]
    assert bands == [6, 7, 1, 1]  # both lenses with controls; patches without a word; large
    large = figure.axes[2].lines[1].get_ydata()
    assert large == pytest.approx([0.5 + np.mean(range(1, N_IMAGES + 1)) / 40] * 3)
    (embedding,) = (line for line in figure.axes[1].lines if line.get_label() == "embedding lens")
    assert embedding.get_ydata() == pytest.approx([1 + np.arange(N_IMAGES + 1).mean() / 20] * 3)


def test_results_without_the_embedding_lens_are_drawn():
    table = grounded(["small"] + ["large"] * N_IMAGES)
    table.loc[:, table.columns.str.contains("_embedding")] = np.nan
    figure = all_images.plot_grounding(table, layers_of(N_IMAGES), {"layers": ["emb", "1", "2"]})
    assert len(figure.axes[0].lines[:-1]) == 3


def test_the_gallery_shows_the_best_and_the_worst_cases(results, run):
    record = store.Results(results).record()
    name = "a name of as many letters: 30."
    probs = watch(record, **{name: True})[name]
    record["objects"] = [{"category": name, "box": [4.0, 4.0, 20.0, 20.0]}]
    held = SimpleNamespace(run=run, record=lambda name: record)
    table = grounded(["large"] * 8).assign(category=name)
    figure = all_images.plot_gallery(held, table, layer=2)
    titles = [title_of(axis) for axis in figure.axes]
    assert f"best: {name}\nAUROC 0.68 (control 0.34)" in titles[0] and titles[0].endswith("07")
    assert f"worst: {name}\nAUROC 0.50 (control 0.25)" in titles[3] and titles[3].endswith("00")
    figure.canvas.draw()
    assert not overlap([axis._left_title for axis in figure.axes[:3]])
    np.testing.assert_array_equal(figure.axes[0].images[1].get_array().ravel(), probs[2])


def test_the_roc_curve_is_scikit_learns_and_the_answers_are_a_point():
    """Of the first twenty images the model was asked about the category."""
    rng = np.random.default_rng(0)
    present, confidence = rng.random(60) < 0.5, 2.0 ** rng.integers(-8, 1, 60)
    yes = np.arange(60) % 3 > 0
    table = pd.DataFrame({
        "image": [f"{i:02}" for i in range(60)],
        "category": [f"{i % 2}" for i in range(60)],
        "present": present,
        "absent_sampling": np.where(present, "", "random"),
        "confidence": confidence,
        "frequency": 0.5,
        "said_yes": np.where(np.arange(60) < 20, yes, np.nan),
    })  # fmt: skip
    figure = all_images.plot_presence(table)
    lines = figure.axes[0].lines
    for line, n in ((lines[0], 60), (lines[1], 20)):
        curve = sklearn.metrics.roc_curve(present[:n], confidence[:n], drop_intermediate=False)
        np.testing.assert_allclose(line.get_xydata(), np.transpose(curve[:2]))
    few, yes = present[:20], yes[:20]
    (point,) = (line for line in lines if line.get_marker() == "D")
    np.testing.assert_allclose(point.get_xydata(), [[yes[~few].mean(), yes[few].mean()]])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    area = sklearn.metrics.roc_auc_score(present, confidence)
    assert f"AUROC {area:.2f} (" in labels[0] and " to " in labels[0]
