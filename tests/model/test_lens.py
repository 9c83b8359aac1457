"""The top tokens and the embedding lens against torch; what is read of positions. Entropy and
divergence against scipy: tests/test_properties.py."""

import numpy as np
import pytest
import torch

from llava_lens.model import lens, load


@pytest.mark.parametrize(
    "d_vocab, k", [(32_064, 10), (32_064, 1), (640, 9), (640, 10), (449, 10), (64, 64)]
)
def test_top_k_is_torchs_own(d_vocab, k):
    torch.manual_seed(0)
    p = torch.softmax(torch.randn(7, d_vocab) * 5, -1)
    p[3] = torch.softmax(torch.arange(d_vocab).float() % 3, -1)  # many equal ones
    values, ids = lens.top_k_of(p, k)
    assert torch.equal(values, p.topk(k).values) and torch.equal(p.gather(1, ids), values)
    assert all(len(set(row.tolist())) == k for row in ids)


def test_slices_change_nothing(llava, monkeypatch):
    bridge, _ = llava
    residuals = [torch.randn(11, 64) for _ in range(6)]
    segments, targets = [0] * 4 + [1] * 7, [-1] * 9 + [3, 5]
    readings, sums = [], []
    for slice_size in (3, 100):
        monkeypatch.setattr(lens, "SLICE", slice_size)
        prob_sum = torch.zeros(3, 6, bridge.cfg.d_vocab)
        with torch.inference_mode():
            readings.append(lens.read_positions(bridge, residuals, segments, targets, prob_sum, 10))
        sums.append(prob_sum)
    for name in readings[0]:
        np.testing.assert_allclose(readings[0][name], readings[1][name], rtol=1e-4, atol=1e-5)
    assert torch.allclose(*sums, atol=1e-5)


def test_the_lens_alone_overflowing_is_an_error(llava, monkeypatch):
    bridge, _ = llava
    residuals = [torch.randn(4, 64) for _ in range(6)]
    once = lens.lens_logits

    def overflowing(bridge, resid):
        broken = resid.data_ptr() == residuals[2].data_ptr()
        return once(bridge, resid).index_fill(-1, torch.tensor([5] * broken, dtype=int), -torch.inf)

    monkeypatch.setattr(lens, "lens_logits", overflowing)
    message = "lens's logits, first at layer 2 of 5"
    with pytest.raises(FloatingPointError, match=message), torch.inference_mode():
        prob_sum = torch.zeros(3, 6, bridge.cfg.d_vocab)
        lens.read_positions(bridge, residuals, [0] * 4, [-1] * 4, prob_sum, 3)


@pytest.mark.parametrize("dtype, rounding", [("float32", 5e-4), ("float16", 2e-3)])
def test_the_embedding_lens_is_torchs_cosine_with_words(llava_folder, dtype, rounding):
    """float16 cosines, so float32 differs too. Among the states are multiples of rows: of `<image>`
    and of one past the tokenizer, which are never named, and of a word, in a state so large that
    its square overflows float16."""
    bridge, processor = load.load_llava(llava_folder, dtype, "cpu")
    weight = bridge.original_model.get_input_embeddings().weight.detach()
    image_id, past = processor.image_token_id, len(processor.tokenizer)
    assert past < len(weight)
    weight[299] = 0
    states = torch.randn(70, 64).to(weight.dtype)
    states[:3] = weight[[image_id, past, 300]] * torch.tensor([1, 1, 9000])[:, None]
    with torch.inference_mode():
        layers = [states, -states, states * 2]  # the second has no nearest
        read = lens.read_embeddings(bridge, layers, [[7, 300], [299]])
    expected = torch.cosine_similarity(states[:, None].double(), weight[None].double(), dim=-1)
    words = torch.stack([expected[:, [7, 300]].amax(-1), torch.zeros(70)])
    np.testing.assert_allclose(read["cosines"][:, 0], words, atol=rounding)
    words[0] = -expected[:, [7, 300]].amin(-1)
    np.testing.assert_allclose(read["cosines"][:, 1], words, atol=rounding)
    spelled = expected.clone()
    spelled[:, [*processor.tokenizer.all_special_ids, *range(past, len(weight))]] = -2
    assert {image_id, past}.isdisjoint(read["embedding_ids"].ravel().tolist())
    assert expected[0].argmax() == image_id and expected[1].argmax() == past
    assert (read["embedding_ids"][:, 2, 0] == 300).all()
    assert len(read["embedding_ids"]) == 2
    for layer in range(2):
        ids, cosines = read["embedding_ids"][layer], read["embedding_cosines"][layer]
        np.testing.assert_allclose(cosines, spelled.topk(5).values, atol=rounding)
        named = spelled.gather(1, torch.tensor(ids.astype(int)))
        np.testing.assert_allclose(cosines, named, atol=rounding)
    assert read["embedding_cosines"].dtype == read["cosines"].dtype == np.float16
    assert read["embedding_ids"].dtype == np.uint16


def test_norms_do_not_overflow_float16():
    states = [torch.full((2, 64), 2.0), torch.full((2, 64), 60000.0, dtype=torch.float16)]
    assert lens.norms_of(states).tolist() == [[16, 16], [65504, 65504]]


def test_tied_embeddings_are_told_by_their_numbers(llava):
    model = llava[0].original_model
    assert not lens.is_tied(model)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    kept = outputs.detach().clone()
    with torch.no_grad():
        outputs.copy_(inputs)
        assert lens.is_tied(model)
        outputs.copy_(kept)
