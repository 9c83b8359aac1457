"""Attention knockout: the runs against plain HF, the field in results, tables and sentences on
simulated answers, the demo, and a planted negative."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from llava_lens import checks, kinds, schema, store
from llava_lens.analysis import answers as analysis_answers
from llava_lens.analysis import causal as analysis_causal
from llava_lens.analysis import report_image, stats
from llava_lens.data import crop
from llava_lens.figures import all_images
from llava_lens.model import causal as model_causal
from llava_lens.model import images as model_images
from llava_lens.model import load

QUESTIONS = ["What is this? 狗", kinds.question_of("relation", a="dog", b="cat")]
CHOSEN = {"object": [0, 5, 6], "background": [3, 12, 15]}  # of the tiny model's 16 patches
N_BLOCKS = 5

def an_object(category, box):
    return {"category": category, "box": box, "crowd": False}


def test_patches_of_the_objects_and_as_many_outside_all_their_boxes():
    # A grid of 4 x 4 patches of 10 pixels.
    objects = [
        an_object("dog", [0.0, 0.0, 11.0, 10.0]),  # patch 0, and a tenth of 1
        an_object("dog", [0.0, 30.0, 10.0, 10.0]),  # patch 12
        an_object("cat", [32.0, 32.0, 1.0, 1.0]),  # a hundredth of patch 15
        an_object("tree", [20.0, 0.0, 10.0, 10.0]),
        an_object("car", [0.0, 0.0, 30.0, 40.0]),  # 12 patches
        an_object("bird", [40.0, 0.0, 0.0, 10.0]),  # outside the crop
    ]

    def cut(*categories, seed=0):
        prompt = {"categories": list(categories), "question": "?"}
        return crop.patches_to_cut(prompt, objects, 4, 40, seed)

    assert cut("dog")["object"] == [0, 1, 12]
    assert cut("dog", "cat")["object"] == [0, 1, 12, 15]
    drawn = [cut("dog", "cat", seed=seed) for seed in range(50)]
    assert all(len(set(one["background"])) == 4 for one in drawn)
    assert set().union(*(one["background"] for one in drawn)) == set(range(16)) - {0, 1, 12, 15}
    assert cut("dog", seed=3) == cut("dog", seed=3)
    assert cut() == cut("dog", "horse") == cut("horse") == cut("bird") == {}
    assert cut("car") == {}  # four patches are left, and twelve needed


# ------------------------------------------------------------------------------------------------
# The format
# ------------------------------------------------------------------------------------------------


def changed(prompt, **knockout):
    return {**prompt, "knockout": {**prompt["knockout"], **knockout}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda prompt: changed(prompt, image=np.zeros(4, np.float32)),
        lambda prompt: changed(prompt, image=np.full(5, np.nan, np.float32)),
        lambda prompt: changed(prompt, image=np.full(5, 1.1, np.float32)),
        lambda prompt: changed(prompt, image=[0.0] * 5),
        lambda prompt: changed(prompt, elsewhere=np.zeros(5, np.float32)),
        lambda prompt: changed(prompt, object=np.zeros(5, np.float32)),  # and no control
        lambda prompt: {**prompt, "knockout": {"image": prompt["knockout"]["image"]}},
        lambda prompt: {**prompt, "knockout": []},
        lambda prompt: {name: prompt[name] for name in prompt if name != "knockout"},
    ],
)
def test_a_damaged_knockout_is_refused(records, results, damage):
    run, record = store.Results(results).run, records[0]
    checks.check_record(record, run, record["name"])
    with pytest.raises((ValueError, KeyError), match="knockout"):
        damaged = {**record, "prompts": [damage(record["prompts"][0])]}
        checks.check_record(damaged, run, record["name"])


@pytest.mark.parametrize(
    "windows",
    [
        [[1, 5], [1, 2]],
        [[0, 5]],
        [[1, 6]],
        [[2, 1], [1, 5]],
        [[1.0, 5]],
        [[1, 2, 5]],
        [[True, 5]],
        [7],
    ],
)
def test_damaged_windows_are_refused(results, windows):
    run = store.Results(results).run
    with pytest.raises((ValueError, TypeError)):
        checks.check_run({**run, "knockout_windows": windows})


def test_switched_off_it_leaves_nothing_to_check_or_to_draw(llava, records, results):
    run = model_images.describe_run(*llava, load.Settings("", knockout=False), 0.0)
    assert run["knockout_windows"] == []
    without = [
        {**record, "prompts": [{**prompt, "knockout": {}} for prompt in record["prompts"]]}
        for record in records
    ]
    of_results = {**store.Results(results).run, "knockout_windows": []}
    for record, with_it in zip(without, records, strict=True):
        checks.check_record(record, of_results, record["name"])
        with pytest.raises(ValueError, match="knockout"):
            checks.check_record(with_it, of_results, record["name"])
    table, answers = (
        analysis_causal.knockouts(without, of_results),
        analysis_answers.tabulate(without, of_results)["answers"],
    )
    assert table.empty and analysis_causal.readable_and_used(table, answers, of_results).empty
    assert report_image.report_knockout(of_results, table, answers) == []


# ------------------------------------------------------------------------------------------------
# Tables and sentences: simulated answers
# ------------------------------------------------------------------------------------------------

WINDOWS = model_causal.knockout_windows(32, 9 / 32)
RUN = {"n_layers": 32, "layers": ["emb", *map(str, range(1, 33))], "knockout_windows": WINDOWS}
CENTRES = np.array([(first + last) / 2 for first, last in WINDOWS[:-1]] + [33])
WITH_OBJECTS = ["object", "presence", "colour", "relation"]


def simulated(n_images, loss_of, readable_of=lambda image: 20):
    """`knockouts` and the needed columns of `answers` of images with a prompt of each kind that has
    objects; `loss_of(image, way, kind)` is a loss `[window]`."""
    cases = list(itertools.product(range(n_images), enumerate(WITH_OBJECTS), schema.OF_OBJECTS))
    windows = len(CENTRES)
    table = pd.DataFrame({
        "image": np.repeat([f"{image:03}" for image, _, _ in cases], windows),
        "prompt": np.repeat([prompt for _, (prompt, _), _ in cases], windows),
        "kind": np.repeat([kind for _, (_, kind), _ in cases], windows),
        "way": np.repeat([way for _, _, way in cases], windows),
        "layer": np.tile(CENTRES, len(cases)),
        "change": -np.concatenate([loss_of(image, way, kind) for image, (_, kind), way in cases]),
    })  # fmt: skip
    first = table.drop_duplicates(["image", "prompt"])[["image", "prompt", "kind"]]
    readable = [readable_of(int(image)) for image in first["image"]]
    answers = first.assign(question="?", token=0, layer=0, readable_layer=readable)
    return table, answers


def test_a_window_that_does_nothing_is_named_in_fewer_than_1_in_20_data_sets():
    """500 data sets: images differ in how much any cut shakes their answers, rounding makes many
    changes equal, and cuts to objects and to the control shake the same."""
    rng, named = np.random.default_rng(0), 0
    for number in range(500):
        # With ties scipy goes through all signs of up to 13 images, which takes its time.
        n_images = 10 if number % 25 == 0 else (16, 24, 100)[number % 3]

        def changes(n_images=n_images):
            shaken = rng.lognormal(-3, 1.5, n_images)
            shape = 2, n_images, len(CENTRES)
            return -np.round((shaken[:, None] * rng.normal(0.2, 1, shape)).clip(-1, 1), 3)

        of_kinds = [changes() for _ in WITH_OBJECTS]
        windows = [report_image.window_of_use(*both[:, :, :-1])[0] for both in of_kinds]
        named += any(window is not None for window in windows)
        if number % 50 == 0:  # the report says what `window_of_use` says

            def loss_of(image, way, kind, of_kinds=of_kinds):
                return -of_kinds[WITH_OBJECTS.index(kind)][schema.OF_OBJECTS.index(way), image]

            lines = report_image.report_knockout(RUN, *simulated(n_images, loss_of))
            falls = ["falls most" in line for line in lines]
            expected = [window is not None for window in windows]
            assert falls == (expected if n_images >= stats.MIN_IMAGES else [])
    assert named < 25


def bump(centre, size):
    return size * np.exp(-(((CENTRES - centre) / 4) ** 2))


def test_a_window_that_does_something_is_named_with_its_control():
    rng = np.random.default_rng(1)

    def loss_of(image, way, kind):
        return bump(12, 0.3 if way == "object" else 0.02) + rng.normal(0, 0.01, len(CENTRES))

    table, answers = simulated(24, loss_of, lambda image: 20 + image % 3)
    lines = report_image.report_knockout(RUN, table, answers)
    abouts = [line.split(",")[0] for line in lines]
    assert abouts == [f"Asked about {kinds.KINDS[kind].title}" for kind in WITH_OBJECTS]
    for line in lines:
        assert "in blocks 8 to 16" in line or "in blocks 9 to 17" in line
        assert "as many other patches by 0.02 (" in line and "lies before the layer" in line
    used = analysis_causal.readable_and_used(table, answers, RUN)
    assert len(used) == 96 and set(used["used"]) <= {12.0, 13.0, 10.0}
    assert (used["lead"] == used["readable"] - used["used"]).all()
    # Fewer images than a claim takes: nothing is said. The window of all blocks is never named.
    assert report_image.report_knockout(RUN, table[table["image"] < "011"], answers) == []


def test_used_before_readable_is_claimed_by_the_test_only():
    """100 data sets in which answers are readable at the centre of the window, give or take."""
    claims = 0
    for number in range(100):
        rng = np.random.default_rng(number)
        centres = rng.choice(CENTRES[:-1], 24)
        jitter = rng.integers(-4, 5, 24)

        def loss_of(image, way, kind, centres=centres):
            return bump(centres[image], 0.4 if way == "object" else 0.0)

        def readable_of(image, centres=centres, jitter=jitter):
            return centres[image] + jitter[image]

        table, answers = simulated(24, loss_of, readable_of)
        table = table[table["kind"] == "colour"]
        report = "".join(report_image.report_knockout(RUN, table, answers))
        claims += "lies before" in report or "lies after" in report
        assert "no sure order" in report or "lies before" in report or "lies after" in report
    assert claims < 5


def test_answers_that_the_control_changes_as_much_are_not_used():

    def loss_of(image, way, kind):
        if image == 0:  # raised by the control, by more than the object lowers it
            return bump(12, 0.3 if way == "object" else -0.4)
        return bump(12 if image % 2 else 20, 0.3) * (way == "object")

    used = analysis_causal.readable_and_used(*simulated(14, loss_of), RUN)
    assert set(used["image"]) == {f"{image:03}" for image in range(1, 14)}
    lead, (low, high), p = analysis_causal.median_lead(used[used["kind"] == "colour"])
    assert low <= lead <= high and 0 < p <= 1


def test_figures_of_32_layers_and_five_kinds_and_of_few_images():
    table, answers = simulated(12, lambda image, way, kind: bump(12, 0.3) * (way == "object"))
    others = [
        table[table["way"] == "object"].assign(way=way, kind=kind)
        for way in ("image", "image_last", "question_last")
        for kind in [*WITH_OBJECTS, "description"]
    ]
    table = pd.concat([table, *others])
    for few in (table, table[table["image"] < "002"]):
        figure = all_images.plot_knockout(few, RUN)
        assert [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes[:5]] == [
            *WITH_OBJECTS,
            "description",
        ]
        figure.canvas.draw()
        for axis in figure.axes[:5]:  # no label of the x axis is on another
            boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
            assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
        used = all_images.plot_used(few, answers, RUN)
        assert len([axis for axis in used.axes if axis.has_data()]) == 4
    plt.close("all")
