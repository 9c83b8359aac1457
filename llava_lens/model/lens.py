"""The logit lens: a residual stream through norm and unembedding, and what is read of it."""

import numpy as np
import torch

from llava_lens.schema import LARGEST_NORM, N_NEAREST, NEAREST_EVERY, SEGMENTS
from llava_lens.words import labels_and_words

# In bits. Entropies in float32 leave 2e-6; logits that are rounded otherwise by one unit in the
# last place of float16 leave up to 2e-4.
LAST_LAYER_TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}


def lens_logits(bridge, resid):
    """Logit lens: logits `[pos, d_vocab]` in float32 of a residual stream `[pos, d_model]`.

    Norm and unembedding run in the model's dtype. Source: nostalgebraist, "interpreting GPT: the
    logit lens" (2020).
    """
    return bridge.unembed(bridge.ln_final(resid[None]))[0].float()


def entropy_bits(p):
    """Entropy `[...]` in bits of the distributions `p` `[..., d_vocab]`."""
    # Four times faster than torch.special.entr on a CPU; the clamp makes 0 log 0 = 0.
    return p.clamp_min(torch.finfo(p.dtype).tiny).log_().mul_(p).sum(-1) / -np.log(2)


def jsd_bits(p, q, entropy_p=None, entropy_q=None):
    """Jensen-Shannon divergence `[...]` in bits (0 ... 1) of `p` and `q` `[..., d_vocab]`, not its
    square root (the distance): H(m) - H(p)/2 - H(q)/2 with m = (p + q)/2. Source: Lin, "Divergence
    measures based on the Shannon entropy" (1991)."""
    entropy_p = entropy_bits(p) if entropy_p is None else entropy_p
    entropy_q = entropy_bits(q) if entropy_q is None else entropy_q
    # The clamp removes rounding only: a difference of entropies of some 15 bits in float32.
    return (entropy_bits(p.lerp(q, 0.5)) - (entropy_p + entropy_q) / 2).clamp(0, 1)


def top_k_of(p, k: int):
    """`p.topk(k)` of `p` `[pos, d_vocab]`, exactly, and over ten times faster on a CPU: it searches
    only the `k` blocks of 64 tokens with the largest maxima."""
    n_pos, d_vocab = p.shape
    if d_vocab % 64 or d_vocab // 64 <= k:
        return p.topk(k)
    blocks = p.view(n_pos, -1, 64)
    chosen = blocks.amax(-1).topk(k).indices
    values, within = blocks.gather(1, chosen[:, :, None].expand(-1, -1, 64)).flatten(1).topk(k)
    return values, chosen.gather(1, within // 64) * 64 + within % 64


def rank_of(p, prob):
    """Rank `[pos]` (1 = top) of the probability `prob` `[pos, 1]` in `p` `[pos, d_vocab]`."""
    # As floats, exact up to 2^24: torch compares and sums booleans slowly on a CPU.
    return torch.gt(p, prob, out=torch.empty_like(p)).sum(-1).int() + 1


SLICE = 64  # positions whose distributions are held at once: of a whole image they are 2.5 GB


def layers_read(n_layers: int) -> list[int]:
    """The numbers of the layers that are read, in order; 0 is the embedding. The one place that
    chooses them. The last must be there: the others are compared with it."""
    return list(range(n_layers + 1))


def raise_not_finite(where: str):
    raise FloatingPointError(f"NaN or infinity in {where}: try dtype float32.")


def read_positions(  # noqa: PLR0913 (what one pass over the distributions reads and adds up)
    bridge, residuals: list, segments: list, targets: list, prob_sum, top_k: int, words=()
) -> dict[str, np.ndarray]:
    """Read every layer at every position of `residuals` (`[pos, d_model]` per layer).

    `targets` `[pos]` are the ids whose probability and rank are wanted; -1 stands for the last
    layer's top-1. The distributions are added to `prob_sum` `[segment, layer, d_vocab]` as
    `segments` `[pos]` says. SLICE positions at a time bound the memory. Returns

    - `top_ids` `[layer, pos, top_k]`, `top_probs` `[layer, pos, top_k]` float32
    - `jsd_prev` (NaN at the first layer), `jsd_final`, `entropy` `[layer, pos]` float32, bits
    - `target_prob` `[layer, pos]` float32, `target_rank` `[layer, pos]`, 1 = top
    - `words` `[layer, pos, word]` float32, if there are `words` (lists of token ids): the sum of
      the probabilities of each one's tokens

    Raises FloatingPointError for NaN or infinity in the logits.
    """
    device, slices = prob_sum.device, []
    segments, targets = (torch.tensor(values, device=device) for values in (segments, targets))
    one_hot = (segments == torch.arange(len(SEGMENTS), device=device)[:, None]).float()
    for start in range(0, len(segments), SLICE):
        here = slice(start, start + SLICE)
        final_logits = lens_logits(bridge, residuals[-1][here])
        final = final_logits.softmax(-1)
        final_entropy = entropy_bits(final)
        target = torch.where(targets[here] >= 0, targets[here], final.argmax(-1))[:, None]
        before, entropy_before, layers, zeros = final, final_entropy, [], final_entropy * 0
        for layer, resid in enumerate(residuals):
            is_last = layer == len(residuals) - 1
            logits = final_logits if is_last else lens_logits(bridge, resid[here])
            p = logits.softmax(-1)
            entropy, (top_probs, top_ids) = entropy_bits(p), top_k_of(p, top_k)
            target_prob = p.gather(1, target)
            layers.append({
                "top_ids": top_ids.int(),
                "top_probs": top_probs,
                "jsd_prev": jsd_bits(p, before, entropy, entropy_before) if layer else zeros / 0,
                "jsd_final": zeros if is_last else jsd_bits(p, final, entropy, final_entropy),
                "entropy": entropy,
                "target_prob": target_prob[:, 0],
                "target_rank": rank_of(p, target_prob),
                "logit_sum": logits.sum(-1),  # finite only if all are: softmax would hide a -inf
            })  # fmt: skip
            if words:
                layers[-1]["words"] = torch.stack([p[:, ids].sum(-1) for ids in words], dim=1)
            before, entropy_before = p, entropy
            prob_sum[:, layer] += one_hot[:, here] @ p
        slices.append({name: torch.stack([one[name] for one in layers]) for name in layers[0]})
    readings = {name: torch.cat([one[name] for one in slices], dim=1) for name in slices[0]}
    arrays = {name: values.cpu().numpy() for name, values in readings.items()}
    broken = np.flatnonzero(~np.isfinite(arrays.pop("logit_sum")).all(axis=1))
    if broken.size:  # the residual stream was finite, so it is the unembedding that overflowed
        n_layers = bridge.cfg.n_layers
        number = layers_read(n_layers)[broken[0]]
        raise_not_finite(f"the lens's logits, first at layer {number} of {n_layers}")
    id_type = np.min_scalar_type(bridge.cfg.d_vocab)  # uint16 for LLaVA-1.5
    return arrays | {name: arrays[name].astype(id_type) for name in ("top_ids", "target_rank")}


def read_embeddings(bridge, residuals: list, word_ids=()) -> dict[str, np.ndarray]:
    """Embedding lens: the tokens whose input embeddings are nearest to the states `residuals`
    (`[pos, d_model]` per layer), by cosine. The product runs in the model's dtype, on states of
    norm 1; nothing is subtracted. Rows that spell nothing are left out: rows past the tokenizer's
    last token, and its special tokens. Returns, with float16 cosines,

    - `embedding_ids`, `embedding_cosines` `[nearest_layer, pos, N_NEAREST]`: the nearest, falling,
      at each NEAREST_EVERYth of the layers
    - `cosines` `[word, layer, pos]`: of the nearest token of each of `word_ids` (lists of ids)

    Sources: "EmbeddingLens" in Krojer et al., "LatentLens", arXiv 2602.00462; "EmbedLens", Fan et
    al., arXiv 2603.00510.
    """
    weight = bridge.original_model.get_input_embeddings().weight  # [d_vocab, d_model]
    tokenizer, config = bridge.tokenizer, bridge.original_model.config
    # By parts: of a large vocabulary a copy in float32 would have gigabytes.
    lengths = torch.cat([rows.float().norm(dim=-1) for rows in weight.split(4096)])
    lengths = lengths.to(weight.dtype).clamp_min_(torch.finfo(weight.dtype).tiny)  # padding has 0
    special, nearest = [*{*tokenizer.all_special_ids, config.image_token_id}], []
    shape = len(word_ids), len(residuals), len(residuals[0])
    of_words = torch.zeros(shape, dtype=torch.float16, device=weight.device)
    for layer, resid in enumerate(residuals):
        states = resid.to(weight.device).float()  # half would overflow
        states = torch.nn.functional.normalize(states, dim=-1).to(weight.dtype)
        for word, ids in enumerate(word_ids):
            of_words[word, layer] = (states @ weight[ids].T).div_(lengths[ids]).amax(-1)
        # No distribution is held here, so more positions fit, and larger products are faster.
        for few in states.split(4 * SLICE) if layer % NEAREST_EVERY == 0 else ():
            cosines = (few @ weight.T).div_(lengths)  # [pos, d_vocab]
            cosines[:, special] = cosines[:, len(tokenizer) :] = -2
            nearest.append(top_k_of(cosines, N_NEAREST))
    shape = -1, len(residuals[0]), N_NEAREST
    cosines, ids = (torch.cat(parts).view(shape).cpu() for parts in zip(*nearest, strict=True))
    return {
        "embedding_ids": ids.numpy().astype(np.min_scalar_type(bridge.cfg.d_vocab)),
        "embedding_cosines": cosines.half().numpy(),
        "cosines": of_words.cpu().numpy(),
    }


def is_tied(model) -> bool:
    """Whether the input embedding is the unembedding too: one matrix, or two equal ones."""
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return inputs.shape == outputs.shape and bool((inputs == outputs.to(inputs.device)).all())


def norms_of(residuals: list) -> np.ndarray:
    """The norms `[layer, pos]` of states `[pos, d_model]` per layer, in float16, whose largest
    number stands for larger ones."""
    norms = torch.stack([resid.float().norm(dim=-1) for resid in residuals])
    return norms.clamp_max(LARGEST_NORM).cpu().numpy().astype(np.float16)


def read_answer(
    bridge, residuals: list, token_id: int, word_ids: list[int] = ()
) -> dict[str, np.ndarray]:
    """Read every layer at the last position of `residuals`, where `token_id` begins a word.

    Returns `target_prob` and `target_rank` `[layer]` of that token, and `word_prob` and `word_rank`
    of the word: the sum over its `word_ids` (`first_word`), ranked among such sums. Without
    `word_ids` the word is that of `token_id`. Raises FloatingPointError for NaN or infinity.
    """
    logits = lens_logits(bridge, torch.cat([resid[-1:] for resid in residuals]))
    if not logits.isfinite().all():
        raise_not_finite("the lens's logits where the answer begins")
    p, d_vocab = logits.softmax(-1), bridge.cfg.d_vocab  # [layer, d_vocab]
    alike = torch.tensor(labels_and_words(bridge.tokenizer, d_vocab)[1], device=p.device)
    own = d_vocab if len(word_ids) else int(alike[token_id])
    alike[list(word_ids)] = own  # a word of its own, one past the others
    words = p.new_zeros(len(p), d_vocab + 1).index_add_(1, alike, p)  # [layer, word]
    readings = {}
    for name, probs, at in ("target", p, token_id), ("word", words, own):
        rank = rank_of(probs, probs[:, at, None]).cpu().numpy()
        readings[f"{name}_prob"] = probs[:, at].cpu().numpy()
        readings[f"{name}_rank"] = rank.astype(np.min_scalar_type(d_vocab))
    return readings
