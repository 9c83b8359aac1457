"""The top tokens against torch; what is read of positions. Entropy and divergence against scipy:
tests/test_properties.py."""

import numpy as np
import pytest
import torch

from llava_lens.model import lens


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
