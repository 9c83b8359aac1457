"""figures.style: the axis of layers, and the labels of units."""

import io

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import PIL.Image
import pytest
import seaborn as sns
from bs4 import BeautifulSoup
from IPython.core.formatters import DisplayFormatter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from nbconvert import HTMLExporter

from llava_lens.figures import style
from tests.figures.drawing import overlap

RUN = {"model": "some/$model$", "dtype": "float16", "quantize": "4bit"}


@pytest.mark.parametrize(
    "n_layers, labelled",
    [
        (13, list(range(13))),
        (14, [0, 4, 8, 13]),  # 12 would touch 13
        (33, [0, 4, 8, 12, 16, 20, 24, 28, 32]),
        (34, [0, 4, 8, 12, 16, 20, 24, 28, 33]),
        (201, list(range(0, 201, 20))),
    ],
)
def test_the_last_layer_is_labelled_and_no_label_is_on_another(n_layers, labelled):
    run = {"layers": ["emb", *map(str, range(1, n_layers))]}
    assert style.layer_ticks(run).tolist() == labelled
    style.use_style()
    figure, (left, _, _) = plt.subplots(1, 3, figsize=(10, 3))  # the narrowest panels there are
    style.layer_axis(left, run)
    figure.canvas.draw()
    assert not overlap(left.get_xticklabels())


def test_a_figure_is_not_saved_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/a.png").symlink_to(tmp_path / "precious")
    figure, _ = plt.subplots()
    shown = style.save_figure(tmp_path, RUN, figure, "a")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "figures/a.png").read_bytes() == shown.data
    (tmp_path / "figures/figures").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="figures' is a link"):
        style.save_figure(tmp_path / "figures", RUN, figure, "a")


def test_a_saved_figure_looks_as_drawn(tmp_path):
    """With a colour scale every colour is kept; without one a palette is nearly the same."""
    style.use_style()
    figure, axis = plt.subplots(figsize=(10, 3))
    for number in range(30):
        axis.plot([number, 3 * number], color=style.COLOURS[number % 10], label=f"{number}")
    shown = style.save_figure(tmp_path, RUN, figure, "curves")
    assert shown.width == 1000 and plt.get_fignums() == []
    figure.set_dpi(150)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[:, :, :3].astype(int)
    saved = PIL.Image.open(io.BytesIO(shown.data))
    assert saved.mode == "P" and saved.size == (1500, 450 + style.FOOT)
    pixels = np.asarray(saved.convert("RGB"))
    assert pixels[450:, 1250:].min() < 150 and pixels[450:, :1000].min() == 255  # the model's name
    off = np.abs(pixels[:450] - drawn)
    assert off.max() <= 16 and off.mean() < 1
    figure, axis = plt.subplots(figsize=(10, 3))
    figure.colorbar(axis.imshow(np.arange(1e4).reshape(10, -1), aspect="auto"))
    shown = style.save_figure(tmp_path, RUN, figure, "scale")
    saved = PIL.Image.open(io.BytesIO(shown.data))
    assert saved.mode == "RGB" and len(saved.getcolors(2**16)) >= 256


def test_the_alternative_text_says_what_is_drawn_once_and_is_text(tmp_path):
    """In the page of a notebook in which it is shown; no image there has none."""
    figure, axes = plt.subplots(1, 2)
    for axis, title in zip(axes, ("<b>one", '"two"\n$x$'), strict=True):
        axis.plot([0, 1], label="a curve")
        axis.set(title=title, xlabel="layer", ylabel="")
        axis.legend()
    alt = '<b>one; "two" $x$. Axes and colours: layer. Shown: a curve'
    assert style.alternative(figure) == alt
    axes[0].set_title("long " * 200)
    assert len(style.alternative(figure)) <= 500
    axes[0].set_title("<b>one")
    shown = style.save_figure(tmp_path, RUN, figure, "a")
    data, metadata = DisplayFormatter().format(shown)
    output = nbformat.v4.new_output("display_data", data, metadata=metadata)
    cell = nbformat.v4.new_code_cell(outputs=[output])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    page, _ = HTMLExporter(template_name="classic").from_notebook_node(notebook)
    assert [image["alt"] for image in BeautifulSoup(page, "html.parser").select("img")] == [alt]


def test_a_hundred_groups_look_different():
    groups = [f"{number}" for number in range(100)]
    looks = [style.look_of(group, groups) for group in groups]
    assert len({(look["color"], look["marker"]) for look in looks}) == 100
    assert looks[0] == {"color": sns.color_palette("colorblind")[0], "marker": "o"}
