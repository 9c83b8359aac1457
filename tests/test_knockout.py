"""Attention knockout: the runs against plain HF, the field in results, tables and sentences on
simulated answers, the demo, and a planted negative."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import lens_data as ld
import lens_model as lm
import lens_utils as lu

QUESTIONS = ["What is this? 狗", ld.relation_question("dog", "cat")]
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
    return lm.load_llava(llava_folder, request.param, "cpu"), (model, processor)


@pytest.fixture(scope="module")
def image(photographs):
    return ld.open_image(photographs / "china.jpg")


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
        pixel_values, (ids,) = lm.encode_prompts(processor, image, [question])
        with torch.inference_mode():
            self.cache, _ = lm.run_prefix(self.bridge, pixel_values, ids)
            n_prefix = self.cache.get_seq_length()
            self.residuals, self.logits = lm.run_and_capture(
                self.bridge, ids[n_prefix:], self.cache
            )
        self.cuts = lm.attention_cuts(n_prefix, len(ids) - n_prefix, 16, CHOSEN)
        self.cuts["nothing"] = torch.zeros_like(self.cuts["image"])

    @torch.inference_mode()
    def logits_with(self, cuts):
        """Logits `[cut, d_vocab]` with each of the cuts (way, first block, last block)."""
        masks = [(self.cuts[way], *window) for way, *window in cuts]
        resid = lm.run_with_cuts(self.bridge, self.cache, self.residuals, masks)
        # Each by itself: a product of another shape rounds otherwise.
        return torch.cat([self.bridge.unembed(self.bridge.ln_final(r[None, None])) for r in resid])


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("window", [(1, N_BLOCKS), (2, 3), (5, 5)])
def test_cutting_nothing_gives_the_same_bits(both, image, question, window):
    one = OneRun(both[0], image, question)
    assert torch.equal(one.logits_with([("nothing", *window)])[0, 0], one.logits[-1])


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("window", [(1, N_BLOCKS), (1, 1), (3, 3), (5, 5), (2, 4)])
@pytest.mark.parametrize("way", lu.KNOCKOUT)
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


@pytest.mark.parametrize("way", lu.KNOCKOUT)
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
    settings = lm.Settings("", max_new_tokens=2)
    run = lm.describe_run(bridge, processor, settings, 0.0)
    assert run["knockout_windows"] == [[1, 2], [2, 3], [3, 4], [4, 5], [1, 5]]
    record, _ = lm.read_image(bridge, processor, image, ld.as_prompts(QUESTIONS), settings)
    prefix = lm.keep_prefix(bridge, processor, image)
    knockouts = lm.read_knockout(bridge, prefix, record["prompts"], [CHOSEN, {}], run)
    assert list(knockouts[0]) == list(lu.KNOCKOUT)
    assert list(knockouts[1]) == ["image_last", "question_last", "image"]
    for prompt, knockout in zip(record["prompts"], knockouts, strict=True):
        for way, probs in knockout.items():
            assert probs.dtype == np.float32 and probs.shape == (5,)
            for prob, (first, last) in zip(probs, run["knockout_windows"], strict=True):
                logits = hf_logits(hf, image, prompt["question"], way, range(first, last + 1))
                expected = logits.double().softmax(-1)[prompt["answer_ids"][0]]
                assert abs(prob - expected) < (2e-3 if bridge.cfg.dtype == torch.float16 else 1e-5)


def test_a_prompt_that_is_not_run_at_once_is_left_out(llava, image, monkeypatch):
    run = lm.describe_run(*llava, lm.Settings(""), 0.0)
    record, _ = lm.read_image(*llava, image, ld.as_prompts(QUESTIONS), lm.Settings(""))
    shorter = min(prompt["n_prompt"] for prompt in record["prompts"])
    monkeypatch.setattr(lm, "PIECE", shorter)
    prefix = lm.keep_prefix(*llava, image)
    knockouts = lm.read_knockout(llava[0], prefix, record["prompts"], [{}, {}], run)
    assert [bool(knockout) for knockout in knockouts] == [
        prompt["n_prompt"] == shorter for prompt in record["prompts"]
    ]


def test_nan_is_named(llava, image, monkeypatch):
    run = lm.describe_run(*llava, lm.Settings(""), 0.0)
    record, _ = lm.read_image(*llava, image, ld.as_prompts(QUESTIONS), lm.Settings(""))
    prefix = lm.keep_prefix(*llava, image)
    monkeypatch.setattr(
        lm, "lens_logits", lambda bridge, resid: torch.full((len(resid), 9), torch.nan)
    )
    with pytest.raises(FloatingPointError, match="attention cut"):
        lm.read_knockout(llava[0], prefix, record["prompts"], [{}, {}], run)


# ------------------------------------------------------------------------------------------------
# Which windows, which patches
# ------------------------------------------------------------------------------------------------


def test_windows_are_about_ten_of_a_quarter_of_the_blocks_and_one_of_all():
    of_32 = lm.knockout_windows(32, 9 / 32)
    assert of_32[0] == [1, 9] and of_32[-2:] == [[24, 32], [1, 32]] and len(of_32) == 11
    assert all(last - first == 8 for first, last in of_32[:-1])
    steps = np.diff([first for first, _ in of_32[:-1]])
    assert set(steps) == {2, 3}
    assert lm.knockout_windows(8, 9 / 32)[:2] == [[1, 3], [2, 4]]
    assert lm.knockout_windows(6, 0.1) == [[1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [1, 6]]
    assert lm.knockout_windows(2, 9 / 32) == lm.knockout_windows(2, 2.0) == [[1, 2]]


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
        return ld.patches_to_cut(prompt, objects, 4, 40, seed)

    assert cut("dog")["object"] == [0, 1, 12]
    assert cut("dog", "cat")["object"] == [0, 1, 12, 15]
    drawn = [cut("dog", "cat", seed=seed) for seed in range(50)]
    assert all(len(set(one["background"])) == 4 for one in drawn)
    assert set().union(*(one["background"] for one in drawn)) == set(range(16)) - {0, 1, 12, 15}
    assert cut("dog", seed=3) == cut("dog", seed=3)
    assert cut() == cut("dog", "horse") == cut("horse") == cut("bird") == {}
    assert cut("car") == {}  # four patches are left, and twelve needed
