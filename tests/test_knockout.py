"""Attention knockout: the runs against plain HF, the field in results, tables and sentences on
simulated answers, the demo, and a planted negative."""

import itertools
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import wilcoxon
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_lens import checks, kinds, schema, store
from llava_lens.analysis import answers as analysis_answers
from llava_lens.analysis import causal as analysis_causal
from llava_lens.analysis import report_image, stats
from llava_lens.data import annotations as data_annotations
from llava_lens.data import crop, images
from llava_lens.data import prompts as data_prompts
from llava_lens.figures import all_images
from llava_lens.model import causal as model_causal
from llava_lens.model import images as model_images
from llava_lens.model import load
from llava_lens.model import read as model_read
from llava_lens.model import run as model_run
from tests.conftest import ROOT

QUESTIONS = ["What is this? 狗", kinds.question_of("relation", a="dog", b="cat")]
CHOSEN = {"object": [0, 5, 6], "background": [3, 12, 15]}  # of the tiny model's 16 patches
N_BLOCKS = 5

# ------------------------------------------------------------------------------------------------
# Against plain HF: its own mask, one uncached pass, none of this project's code
# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["float32", "float16"])
def both(request, llava_folder):
    """`(bridge, processor)` and the same weights in plain HF."""
    dtype = getattr(torch, request.param)
    model = LlavaForConditionalGeneration.from_pretrained(
        llava_folder, dtype=dtype, attn_implementation="eager"
    ).eval()
    processor = AutoProcessor.from_pretrained(llava_folder, backend="pil")
    return load.load_llava(llava_folder, request.param, "cpu"), (model, processor)


@pytest.fixture(scope="module")
def image(photographs):
    return images.open_image(photographs / "china.jpg")


@torch.inference_mode()
def hf_logits(hf, image, question, way, blocks):
    """Logits `[d_vocab]` after the prompt where in `blocks` (from 1) HF's own mask hides what `way`
    hides; one uncached pass."""
    model, processor = hf
    text = f"USER: <image>\n{question} ASSISTANT:"
    inputs = processor(text=text, images=image, return_tensors="pt")
    at_image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    end, n_pos = int(at_image[-1]) + 1, inputs["input_ids"].shape[1]
    queries, keys = {
        "nothing": ([], []),
        "object": (range(end, n_pos), at_image[CHOSEN["object"]]),
        "background": (range(end, n_pos), at_image[CHOSEN["background"]]),
        "image_last": ([n_pos - 1], at_image),
        "question_last": ([n_pos - 1], range(end, n_pos - 1)),
        "image": (range(end, n_pos), at_image),
    }[way]
    least = torch.finfo(model.dtype).min
    causal = torch.full((n_pos, n_pos), least, dtype=model.dtype).triu(1)
    cut = causal.clone()
    for query in queries:
        cut[query, list(keys)] = least

    def with_mask(block, module, args, kwargs):
        return args, {**kwargs, "attention_mask": (cut if block in blocks else causal)[None, None]}

    handles = [
        layer.register_forward_pre_hook(partial(with_mask, number), with_kwargs=True)
        for number, layer in enumerate(model.model.language_model.layers, 1)
    ]
    logits = model(**{**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}).logits
    for handle in handles:
        handle.remove()
    return logits[0, -1]


class OneRun:
    """A prompt run on its image, and its cuts."""

    def __init__(self, llava, image, question):
        self.bridge, processor = llava
        pixel_values, (ids,) = model_run.encode_prompts(processor, image, [question])
        with torch.inference_mode():
            self.cache, _ = model_run.run_prefix(self.bridge, pixel_values, ids)
            n_prefix = self.cache.get_seq_length()
            self.residuals, self.logits = model_run.run_and_capture(
                self.bridge, ids[n_prefix:], self.cache
            )
        self.cuts = model_causal.attention_cuts(n_prefix, len(ids) - n_prefix, 16, CHOSEN)
        self.cuts["nothing"] = torch.zeros_like(self.cuts["image"])

    @torch.inference_mode()
    def logits_with(self, cuts):
        """Logits `[cut, d_vocab]` with each of the cuts (way, first block, last block)."""
        masks = [(self.cuts[way], *window) for way, *window in cuts]
        resid = model_causal.run_with_cuts(self.bridge, self.cache, self.residuals, masks)
        # Each by itself: a product of another shape rounds otherwise.
        return torch.cat([self.bridge.unembed(self.bridge.ln_final(r[None, None])) for r in resid])


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("window", [(1, N_BLOCKS), (2, 3), (5, 5)])
def test_cutting_nothing_gives_the_same_bits(both, image, question, window):
    one = OneRun(both[0], image, question)
    assert torch.equal(one.logits_with([("nothing", *window)])[0, 0], one.logits[-1])


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("window", [(1, N_BLOCKS), (1, 1), (3, 3), (5, 5), (2, 4)])
@pytest.mark.parametrize("way", schema.KNOCKOUT)
def test_a_cut_equals_hf_with_that_mask(both, image, question, window, way):
    llava, hf = both
    one, half = OneRun(llava, image, question), llava[0].cfg.dtype == torch.float16
    expected = hf_logits(hf, image, question, way, range(window[0], window[1] + 1))
    tolerance = (3e-3 if half else 1e-5) * expected.float().std()
    ours = one.logits_with([(way, *window)])[0, 0]
    assert (ours - expected).abs().max() <= tolerance
    # And the cut does something: the undisturbed run is far from it, seen in float32.
    undisturbed = hf_logits(hf, image, question, "nothing", [])
    assert (one.logits[-1] - undisturbed).abs().max() <= tolerance
    assert half or (expected - undisturbed).abs().max() > 10 * tolerance


def test_runs_side_by_side_equal_those_by_themselves(both, image):
    one = OneRun(both[0], image, QUESTIONS[1])
    cuts = [(way, *window) for window in [(1, 2), (1, 5), (2, 3), (4, 5)] for way in one.cuts]
    together = one.logits_with(cuts)[:, 0]
    alone = torch.stack([one.logits_with([cut])[0, 0] for cut in cuts])
    half = together.dtype == torch.float16
    assert (together - alone).abs().max() <= (3e-3 if half else 1e-5) * alone.float().std()
    # The cache is as it was.
    assert torch.equal(one.logits_with([("nothing", 1, 5)])[0, 0], one.logits[-1])
    assert one.cache.get_seq_length() == one.cuts["image"].shape[1]


@pytest.mark.parametrize("way", schema.KNOCKOUT)
def test_a_key_that_may_not_be_looked_at_has_weight_0(both, image, way):
    one, patterns = OneRun(both[0], image, QUESTIONS[1]), {}

    def keep(pattern, hook):
        patterns[int(hook.name.split(".")[1]) + 1] = pattern[0]

    names = [f"blocks.{block}.attn.hook_pattern" for block in range(N_BLOCKS)]
    with one.bridge.hooks(fwd_hooks=[(name, keep) for name in names]):
        one.logits_with([(way, 2, 4)])
    for block in range(2, N_BLOCKS + 1):
        hidden = one.cuts[way][-patterns[block].shape[1] :].expand_as(patterns[block])
        assert hidden.any()
        if block <= 4:
            assert (patterns[block][hidden] == 0).all()
        else:
            assert (patterns[block][hidden] > 0).any()
        total = patterns[block].float().sum(-1)
        assert torch.allclose(total, torch.ones_like(total), atol=2e-3)


def test_what_is_saved_is_the_probability_of_the_first_answer_token(both, image):
    (bridge, processor), hf = both
    settings = load.Settings("", max_new_tokens=2)
    run = model_images.describe_run(bridge, processor, settings, 0.0)
    assert run["knockout_windows"] == [[1, 2], [2, 3], [3, 4], [4, 5], [1, 5]]
    record, _ = model_read.read_image(
        bridge, processor, image, data_prompts.as_prompts(QUESTIONS), settings
    )
    prefix = model_run.keep_prefix(bridge, processor, image)
    knockouts = model_causal.read_knockout(bridge, prefix, record["prompts"], [CHOSEN, {}], run)
    assert list(knockouts[0]) == list(schema.KNOCKOUT)
    assert list(knockouts[1]) == ["image_last", "question_last", "image"]
    for prompt, knockout in zip(record["prompts"], knockouts, strict=True):
        for way, probs in knockout.items():
            assert probs.dtype == np.float32 and probs.shape == (5,)
            for prob, (first, last) in zip(probs, run["knockout_windows"], strict=True):
                logits = hf_logits(hf, image, prompt["question"], way, range(first, last + 1))
                expected = logits.double().softmax(-1)[prompt["answer_ids"][0]]
                assert abs(prob - expected) < (2e-3 if bridge.cfg.dtype == torch.float16 else 1e-5)


def test_a_prompt_that_is_not_run_at_once_is_left_out(llava, image, monkeypatch):
    run = model_images.describe_run(*llava, load.Settings(""), 0.0)
    record, _ = model_read.read_image(
        *llava, image, data_prompts.as_prompts(QUESTIONS), load.Settings("")
    )
    shorter = min(prompt["n_prompt"] for prompt in record["prompts"])
    monkeypatch.setattr(model_causal, "PIECE", shorter)
    prefix = model_run.keep_prefix(*llava, image)
    knockouts = model_causal.read_knockout(llava[0], prefix, record["prompts"], [{}, {}], run)
    assert [bool(knockout) for knockout in knockouts] == [
        prompt["n_prompt"] == shorter for prompt in record["prompts"]
    ]


def test_nan_is_named(llava, image, monkeypatch):
    run = model_images.describe_run(*llava, load.Settings(""), 0.0)
    record, _ = model_read.read_image(
        *llava, image, data_prompts.as_prompts(QUESTIONS), load.Settings("")
    )
    prefix = model_run.keep_prefix(*llava, image)
    monkeypatch.setattr(
        model_causal, "lens_logits", lambda bridge, resid: torch.full((len(resid), 9), torch.nan)
    )
    with pytest.raises(FloatingPointError, match="attention cut"):
        model_causal.read_knockout(llava[0], prefix, record["prompts"], [{}, {}], run)


# ------------------------------------------------------------------------------------------------
# Which windows, which patches
# ------------------------------------------------------------------------------------------------


def test_windows_are_about_ten_of_a_quarter_of_the_blocks_and_one_of_all():
    of_32 = model_causal.knockout_windows(32, 9 / 32)
    assert of_32[0] == [1, 9] and of_32[-2:] == [[24, 32], [1, 32]] and len(of_32) == 11
    assert all(last - first == 8 for first, last in of_32[:-1])
    steps = np.diff([first for first, _ in of_32[:-1]])
    assert set(steps) == {2, 3}
    assert model_causal.knockout_windows(8, 9 / 32)[:2] == [[1, 3], [2, 4]]
    assert model_causal.knockout_windows(6, 0.1) == [[1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [1, 6]]
    assert (
        model_causal.knockout_windows(2, 9 / 32)
        == model_causal.knockout_windows(2, 2.0)
        == [[1, 2]]
    )


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


def test_what_is_read_goes_through_files_processes_and_another_session(
    llava_folder, photographs, tmp_path
):
    """Two processes, one of which goes on where a killed run was, write what one process writes;
    results with other windows are refused."""
    paths = images.find_images(photographs)
    annotations, categories, _ = data_annotations.read_annotations(photographs)
    annotations["china.jpg"][0]["box"] = [
        250.0,
        150.0,
        60.0,
        60.0,
    ]  # leaves patches for the control

    def read(folder, names, **settings):
        of = load.Settings(str(llava_folder), "float32", "cpu", max_new_tokens=2, **settings)
        model_images.read_images(
            {n: paths[n] for n in names}, annotations, categories, tmp_path / folder, of
        )
        return store.Results(tmp_path / folder)

    whole = read("one", paths)
    first, *others = paths
    read("two", [first])
    halves = read("two", others)
    assert halves.names == whole.names
    ways = set()
    for one, two in zip(whole.records(), halves.records(), strict=True):
        for prompt, again in zip(one["prompts"], two["prompts"], strict=True):
            assert prompt["knockout"].keys() == again["knockout"].keys()
            ways.add(tuple(prompt["knockout"]))
            for way, probs in prompt["knockout"].items():
                np.testing.assert_array_equal(probs, again["knockout"][way])
    assert ways == {tuple(schema.KNOCKOUT), tuple(schema.KNOCKOUT)[2:]}
    with pytest.raises(ValueError, match="knockout_windows"):
        read("two", paths, knockout=False)
    with pytest.raises(ValueError, match="knockout_windows"):
        read("two", paths, knockout_width=0.6)


# ------------------------------------------------------------------------------------------------
# Tables and sentences: simulated answers
# ------------------------------------------------------------------------------------------------

WINDOWS = model_causal.knockout_windows(32, 9 / 32)
RUN = {"n_layers": 32, "layers": ["emb", *map(str, range(1, 33))], "knockout_windows": WINDOWS}
CENTRES = np.array([(first + last) / 2 for first, last in WINDOWS[:-1]] + [33])
WITH_OBJECTS = ["object", "presence", "colour", "relation"]


# ------------------------------------------------------------------------------------------------
# The demo, and a planted negative
# ------------------------------------------------------------------------------------------------


class Demo:
    """The demo's scenes, read once; `read` gives their knockouts."""

    def __init__(self):
        self.bridge, self.processor = load.load_llava(ROOT / "demo/model", "float32", "cpu")
        settings = load.Settings("demo/model", top_k=1, max_new_tokens=1)
        self.run = model_images.describe_run(self.bridge, self.processor, settings, 0.0)
        folder = ROOT / "demo/scenes"
        annotations, categories, _ = data_annotations.read_annotations(folder)
        self.records, self.prefixes = [], []
        for name, path in images.find_images(folder).items():
            image, model = images.open_image(path), (self.bridge, self.processor)
            objects = crop.objects_in_crop(
                annotations[path.name], image.size, self.processor.image_processor
            )
            prompts = data_prompts.make_prompts(objects, categories, f"0 {name}")
            prompts = [prompt for prompt in prompts if prompt["kind"] in WITH_OBJECTS]
            record, _ = model_read.read_image(*model, image, prompts, settings)
            self.records.append({"name": name, "objects": objects, **record})
            self.prefixes.append(model_run.keep_prefix(*model, image))
        self.answers = analysis_answers.tabulate(self._with_grey(), self.run)["answers"]

    def _with_grey(self):
        """What `tabulate` wants besides, of no interest here."""
        no_control = {"word_prob": np.zeros(9), "word_rank": np.ones(9)}
        return [
            {**record, "prompts": [{**prompt, "grey": no_control} for prompt in record["prompts"]]}
            for record in self.records
        ]

    def read(self, next_prefix=0, next_answer=0):
        """`knockouts` with the prefix of the image so many further on, or with the answer of one so
        far on to a question of the kind, if it had another truth."""
        n_images, read = len(self.records), []
        for number, record in enumerate(self.records):
            other = self.records[(number + next_answer) % n_images]["prompts"]
            prompts = [dict(prompt) for prompt in record["prompts"]]
            if next_answer:
                prompts = [self._answered(prompt, other) for prompt in prompts]
            prefix = self.prefixes[(number + next_prefix) % n_images]
            patches = [
                crop.patches_to_cut(
                    prompt,
                    record["objects"],
                    self.run["grid"],
                    self.run["image_size"],
                    record["name"],
                )
                for prompt in prompts
            ]
            knockouts = model_causal.read_knockout(self.bridge, prefix, prompts, patches, self.run)
            undisturbed = model_read.read_control(self.bridge, prefix, prompts)
            for prompt, knockout, control in zip(prompts, knockouts, undisturbed, strict=True):
                at_all = np.repeat(control["target_prob"][:, None], prompt["n_prompt"], axis=1)
                prompt.update(knockout=knockout, readings={"target_prob": at_all})
            read.append({"name": record["name"], "prompts": prompts})
        return analysis_causal.knockouts(read, self.run)

    def _answered(self, prompt, others):
        for other in others:
            if other["kind"] == prompt["kind"] and other["truth"] != prompt["truth"]:
                return {**prompt, "answer_ids": other["answer_ids"]}
        return dict(prompt)


@pytest.fixture(scope="module")
def demo():
    return Demo()


def test_the_demo_takes_colours_from_the_object_before_they_are_readable(demo):
    """A rough trial before this was written, with other code, gave these means over the scenes: in
    per cent, in windows of three blocks from blocks 1, 2, 3, and in all."""
    table = demo.read()
    trial = {
        ("colour", "object"): [-36, -67, -57, -94],
        ("colour", "background"): [0, 0, 0, 0],
        ("object", "object"): [-44, -64, -27, -77],
    }
    shown = [2.0, 3.0, 4.0, 9.0]
    for (kind, way), expected in trial.items():
        curve = analysis_causal.knockout_curves(table)[kind]
        curve = curve[curve["way"] == way].set_index("layer").loc[shown]
        # The trial's numbers are rounded, and of other patches for the control.
        assert (curve["low"] - 0.02 <= np.array(expected) / 100).all()
        assert (curve["high"] + 0.02 >= np.array(expected) / 100).all()
    # Of relations the trial gave -24, -28, -22 and -29. Which pair is asked about decides: with
    # four seeds they are -14 to -21, -10 to -22, -1 to -10 and -17 to -29.
    relation = analysis_causal.knockout_curves(table)["relation"].set_index(["way", "layer"])
    assert -0.45 < relation.loc[("object", 9.0), "mean"] < -0.1
    assert abs(relation.loc[("background", 9.0), "mean"]) < 0.02
    lines = report_image.report_knockout(demo.run, table, demo.answers)
    by_kind = {
        kind: line
        for kind in WITH_OBJECTS
        for line in lines
        if f"about {kinds.KINDS[kind].title}," in line
    }
    assert len(lines) == len(by_kind) == 4
    assert "in blocks 2 to 4," in by_kind["colour"] and "in blocks 2 to 4," in by_kind["object"]
    assert "no window of blocks is found" in by_kind.pop("relation")
    used = analysis_causal.readable_and_used(table, demo.answers, demo.run)
    for kind, line in by_kind.items():
        lead = used[used["kind"] == kind].groupby("image")["lead"].mean()
        sure = wilcoxon(lead, zero_method="zsplit").pvalue < 0.0125 and lead.median() != 0
        order = "before" if lead.median() > 0 else "after"
        assert f"lies {order if sure else 'in no sure order to'} the layer" in line
    # The sentence's numbers, by hand.
    of_colour = table[(table["kind"] == "colour") & (table["layer"] == 3)]
    loss = -of_colour.groupby("way")["change"].mean()
    assert f"by {loss['object']:.2f} (" in by_kind["colour"]
    assert f"other patches by {abs(loss['background']):.2f} (" in by_kind["colour"]


@pytest.mark.parametrize("planted", [{"next_prefix": 1}, {"next_answer": 5}])
def test_of_shuffled_answers_nothing_is_claimed(demo, planted):
    lines = report_image.report_knockout(demo.run, demo.read(**planted), demo.answers)
    assert len(lines) == 4 and "falls most" not in "".join(lines)


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
