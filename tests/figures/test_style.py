"""figures.style: the axis of layers, and the labels of units."""

import matplotlib.pyplot as plt
import pytest
import seaborn as sns

from llava_lens.figures import style
from tests.figures.drawing import labels_of, overlap


def run_of(*numbers):
    """A run in which the layers of these numbers were read."""
    return {"layers": [str(number) if number else "emb" for number in numbers]}


@pytest.mark.parametrize(
    "n_layers, labelled",
    [
        (6, [0, 1, 2, 3, 4, 5]),
        (13, list(range(13))),
        (14, [0, 4, 8, 13]),  # 12 would touch 13
        (33, [0, 4, 8, 12, 16, 20, 24, 28, 32]),
        (34, [0, 4, 8, 12, 16, 20, 24, 28, 33]),
        (41, list(range(0, 41, 4))),
        (201, list(range(0, 201, 20))),
    ],
)
def test_the_last_layer_is_labelled_and_no_label_is_on_another(n_layers, labelled):
    run = run_of(*range(n_layers))
    assert style.layer_ticks(run).tolist() == labelled
    style.use_style()
    figure, (left, _, _) = plt.subplots(1, 3, figsize=(10, 3))  # the narrowest panels there are
    style.layer_axis(left, run)
    figure.canvas.draw()
    assert not overlap(left)


def test_of_every_third_layer_the_labels_stand_at_their_numbers():
    _, axis = plt.subplots()
    style.layer_axis(axis, run_of(*range(0, 31, 3), 32))
    assert axis.get_xticks().tolist() == [*range(0, 31, 3), 32]
    assert labels_of(axis.xaxis) == ["emb", *map(str, range(3, 31, 3)), "32"]
    assert axis.get_xlim() == (-0.5, 32.5)


def test_what_cannot_be_seen_is_drawn_as_its_code_point():
    assert style.drawn("\u200bdog") == "U+200Bdog"
    assert style.drawn("a" * 40, 10) == "a" * 9 + "…"


def test_a_figure_is_not_saved_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "report/figures").mkdir(parents=True)
    (tmp_path / "report/figures/a.png").symlink_to(tmp_path / "precious")
    figure, _ = plt.subplots()
    style.save_figure(tmp_path / "report", figure, "a")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "report/figures/a.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/figures").symlink_to(tmp_path / "report/figures")
    with pytest.raises(ValueError, match="figures' is a link"):
        style.save_figure(tmp_path / "other", figure, "a")
    plt.close(figure)


def test_a_hundred_groups_look_different():
    groups = [f"{number}" for number in range(100)]
    looks = [style.look_of(group, groups) for group in groups]
    assert len({(look["color"], look["marker"]) for look in looks}) == 100
    assert looks[0] == {"color": sns.color_palette("colorblind")[0], "marker": "o"}
