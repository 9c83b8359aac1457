"""Properties that must hold for every input (hypothesis), against scipy and brute force."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llava_lens import words
from llava_lens.model import lens

HOW = dict(deadline=None, derandomize=True, database=None)
settings.register_profile("here", max_examples=200, suppress_health_check=[*HealthCheck], **HOW)
settings.load_profile("here")


SMALL = st.integers(2, 300)
SIZES = SMALL | st.just(32_064)


@st.composite
def distributions(draw, n, sizes=SIZES):
    """`n` distributions over the same tokens, from flat to one-hot, with zeros among them; or all
    of them nearly alike."""
    size, rng = draw(sizes), np.random.default_rng(draw(st.integers(0, 2**32)))
    alike = draw(st.sampled_from([1, 1e-4, 0]))
    logits = rng.standard_normal((1, size)) * (alike < 1) + rng.standard_normal((n, size)) * alike
    logits *= draw(st.sampled_from([0, 0.1, 1, 5, 30, 200]))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p[rng.random(p.shape) < draw(st.sampled_from([0, 0.5, 0.9]))] = 0
    p[:, 0] += p.sum(-1) == 0
    return torch.tensor(p / p.sum(-1, keepdims=True), dtype=torch.float32)


@given(distributions(1))
def test_entropy(p):
    entropy = float(lens.entropy_bits(p)[0])
    assert entropy == pytest.approx(scipy.stats.entropy(p[0].double().numpy(), base=2), abs=1e-5)
    assert -1e-5 <= entropy <= np.log2(p.shape[1]) + 1e-5


@given(distributions(3))
def test_divergence(pqr):
    p, q, r = pqr

    def jsd(a, b):
        return float(lens.jsd_bits(a, b))

    expected = np.nan_to_num(jensenshannon(p.double(), q.double(), base=2)) ** 2  # NaN where equal
    assert jsd(p, q) == pytest.approx(expected, abs=1e-5) and 0 <= jsd(p, q) <= 1
    assert jsd(p, q) == pytest.approx(jsd(q, p), abs=1e-5) and jsd(p, p) < 1e-6
    # Its square root is a metric.
    assert jsd(p, r) ** 0.5 <= jsd(p, q) ** 0.5 + jsd(q, r) ** 0.5 + 5e-3
    disjoint = torch.stack([torch.cat([p, 0 * p]), torch.cat([0 * q, q])])
    assert jsd(*disjoint) == pytest.approx(1, abs=1e-5)


@given(distributions(40, SMALL), st.integers(1, 39))
def test_many_are_what_each_is_alone(p, n):
    """Whatever the pieces in which they are worked on."""
    entropies, divergences = lens.entropy_bits(p), lens.jsd_bits(p[:n], p[n : n + 1].expand(n, -1))
    alone = [lens.entropy_bits(one[None]) for one in p]
    np.testing.assert_array_equal(entropies, torch.cat(alone))
    alone = [lens.jsd_bits(one[None], p[n : n + 1]) for one in p[:n]]
    np.testing.assert_array_equal(divergences, torch.cat(alone))
    np.testing.assert_array_equal(lens.rank_of(p, p[:, :1]), (p > p[:, :1]).sum(-1) + 1)


CORPUS = ["The dog is left of the cat, isn't it?", "Привет мир, как дела?", "狗在猫的左边。"]
CORPUS += ["  two  spaces\n\tand a tab", "emoji 🐕 and $5 <b>", "naïve café"]


def byte_level():
    tokenizer, level = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = level, decoders.ByteLevel()
    special = dict(initial_alphabet=level.alphabet(), special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, **special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentencepiece_style():
    from tiny_llava import make_tokenizer

    return make_tokenizer(CORPUS)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style])
def test_every_token_has_a_label_of_its_own_that_leads_back(make):
    tokenizer = make()
    d_vocab = len(tokenizer) + 62  # as LLaVA-1.5, with rows past the tokenizer
    labels = words.token_labels(tokenizer, d_vocab)
    assert len(labels) == d_vocab == len(set(labels))
    ids_of = words.ids_by_label(tokenizer)
    assert [ids_of[label] for label in labels[: len(tokenizer)]] == list(range(len(tokenizer)))
    assert labels[len(tokenizer) :] == [f"<row{row}>" for row in range(len(tokenizer), d_vocab)]
    # What a text is cut into, put together by the labels, is the text.
    for text in CORPUS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        said = b"".join(words.bytes_of(labels[i]) for i in ids).decode()
        assert said.strip() == text.strip()
        assert tokenizer.decode(ids).strip() == text.strip()
