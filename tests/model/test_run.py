"""Running the model, against plain HF."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import DynamicCache, Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from llava_lens.model import lens, load, run
from tests.conftest import PROMPTS
from tests.model.conftest import read_image
from tests.model.plain_hf import Hooked, load_hf


@pytest.mark.parametrize(
    "dtype, hf_dtype, tolerance",
    [("float32", "float64", 5e-5), ("float16", "float64", 5e-2), ("float16", "float16", 1e-3)],
)
def test_residual_streams_distributions_and_logits(llava_folder, image, dtype, hf_dtype, tolerance):
    """Largest differences, in standard deviations of the residual stream and the logits, and as
    probabilities."""
    bridge, processor = load.load_llava(llava_folder, dtype, "cpu")
    assert bridge.W_U.dtype == getattr(torch, dtype)
    question = PROMPTS[0]["question"]
    pixel_values, (input_ids,) = run.encode_prompts(processor, image, [question])
    with torch.inference_mode():
        residuals, logits = run.run_and_capture(
            bridge, input_ids, DynamicCache(), pixel_values=pixel_values.to(bridge.cfg.dtype)
        )
    hf = load_hf(llava_folder, getattr(torch, hf_dtype))
    expected_residuals, expected_probs, expected_logits = Hooked(hf, image, question).lens()
    scale = expected_residuals.double().std()
    assert len(residuals) == len(expected_residuals) == 6
    for resid, expected, probs in zip(residuals, expected_residuals, expected_probs, strict=True):
        assert (resid.double() - expected).abs().max() < tolerance * scale
        p = lens.lens_logits(bridge, resid).softmax(-1)
        assert p.dtype == torch.float32
        assert (p - probs).abs().max() < tolerance
        assert torch.allclose(p.sum(-1), torch.ones(len(p)), atol=1e-5)
    assert logits.shape == (1, bridge.cfg.d_vocab)
    scale = expected_logits.double().std()
    assert (logits[0].double() - expected_logits[-1]).abs().max() < tolerance * scale


def test_answer_ends_with_the_end_token(llava, image, monkeypatch):
    """The end token stops the answer, is kept among the ids, and is not fed back."""
    (free,) = read_image(llava, image, PROMPTS[:1], max_new_tokens=6)[0]["prompts"]
    config, end_token = llava[0].original_model.generation_config, int(free["answer_ids"][2])
    monkeypatch.setattr(config, "eos_token_id", [end_token])
    (stopped,) = read_image(llava, image, PROMPTS[:1], max_new_tokens=6)[0]["prompts"]
    end = free["answer_ids"].tolist().index(end_token) + 1
    assert stopped["answer_ids"].tolist() == free["answer_ids"].tolist()[:end]
    assert len(stopped["token_ids"]) == stopped["n_prompt"] + end - 1


def test_a_window_may_hold_in_some_blocks_only():
    """As with Qwen2; with Mistral it holds in all, which test_causal.py runs."""
    config = Qwen2Config(use_sliding_window=True, sliding_window=7, max_window_layers=1)
    blocks = [Mock(**{"attn.original_component": Qwen2Attention(config, at)}) for at in (0, 1)]
    assert [run._window(block) for block in blocks] == [None, 7]


def test_a_cache_that_stays_empty_is_an_error(llava, image, monkeypatch):
    """As with transformers 5.24 and TransformerLens 4.3: no prompt would see the image."""

    class Empty(run.DynamicCache):
        def update(self, keys, values, *args, **kwargs):
            return keys, values

    monkeypatch.setattr(run, "DynamicCache", Empty)
    with pytest.raises(RuntimeError, match="holds 0 of .* positions: transformers .* don't fit"):
        read_image(llava, image, PROMPTS[:1])


def test_a_long_prompt_is_fed_in_pieces_with_the_same_result(llava, image, monkeypatch):
    """By 7 tokens at a time, so that pieces end within the prompt, at its end and within the
    answer; and never more than these are held."""
    whole, whole_mean = read_image(llava, image, PROMPTS, max_new_tokens=9)
    monkeypatch.setattr(run, "PIECE", 7)
    pieces, pieces_mean = read_image(llava, image, PROMPTS, max_new_tokens=9)
    for one, other in zip(whole["prompts"], pieces["prompts"], strict=True):
        assert one["answer"] == other["answer"]
        assert one["token_ids"].tolist() == other["token_ids"].tolist()
        for name, values in one["readings"].items():
            assert values.dtype == other["readings"][name].dtype
            np.testing.assert_allclose(values, other["readings"][name], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(whole_mean, pieces_mean, atol=1e-5)


def spoil_first(resid, hook):
    """Before the image, at a position that is not read."""
    resid = resid.clone()
    resid[0, 0, 0] = torch.inf
    return resid


@pytest.mark.parametrize(
    "name, spoil, where",
    [
        ("blocks.0.hook_resid_pre", spoil_first, "first at layer 0 of 5"),
        ("blocks.2.hook_resid_post", spoil_first, "first at layer 3 of 5"),
        ("blocks.2.hook_resid_post", lambda resid, hook: resid * torch.inf, "layer 3"),
        (  # its softmax is zero
            "unembed.hook_out",
            lambda logits, hook: logits.index_fill(-1, torch.tensor([5]), -torch.inf),
            "NaN or infinity in the lens's logits, first at layer 0 of 5|in the logits",
        ),
    ],
)
def test_infinity_is_an_error_that_names_the_layer(llava, image, name, spoil, where):
    with llava[0].hooks(fwd_hooks=[(name, spoil)]), pytest.raises(FloatingPointError, match=where):
        read_image(llava, image, PROMPTS[:1])
