"""Attention knockout: P(answer) with attention cut."""

import itertools
import math
from functools import partial

import numpy as np
import torch

from llava_lens.model.lens import lens_logits
from llava_lens.model.run import PIECE, _as_cache, _FrozenCache, raise_not_finite, run_and_capture

# Keys that runs side by side with attention cut read together: those of a layer of LLaVA-1.5-7B and
# its values take 64 MiB.
MOST_KEYS = 4096


def knockout_windows(n_layers: int, share: float) -> list[list[int]]:
    """The windows in which attention is cut, each `[first, last]` of its blocks, counted from 1.

    About ten of `share` of the blocks each (rounded up, at least two), evenly spaced from the first
    block to the last; as one more, the last, all blocks.
    """
    width = min(n_layers, max(2, math.ceil(share * n_layers)))
    firsts = np.unique(np.linspace(1, n_layers - width + 1, 10).round().astype(int)).tolist()
    moved = [[first, first + width - 1] for first in firsts]
    return moved + [[1, n_layers]] * (width < n_layers)


def attention_cuts(n_prefix: int, n_prompt: int, n_patches: int, patches: dict) -> dict:
    """The keys that each query of a prompt may not look at, by way (KNOCKOUT): masks
    `[n_prompt, n_prefix + n_prompt]`.

    The prefix ends with the patches; `patches` are those of `patches_to_cut`.
    """
    at_patches, all_queries, last = n_prefix - n_patches, slice(None), slice(-1, None)
    ways = {
        **{way: (all_queries, [at_patches + i for i in found]) for way, found in patches.items()},
        "image_last": (last, slice(at_patches, n_prefix)),
        "question_last": (last, slice(n_prefix, -1)),
        "image": (all_queries, slice(at_patches, n_prefix)),
    }
    cuts = {way: torch.zeros(n_prompt, n_prefix + n_prompt, dtype=torch.bool) for way in ways}
    for way, (queries, keys) in ways.items():
        cuts[way][queries, keys] = True
    return cuts


def run_with_cuts(bridge, cache, residuals: list, cuts: list[tuple]):
    """Run a prompt once more for each of `cuts`, side by side. Returns the last residual streams
    at its last position `[cut, d_model]`.

    A cut is `(hidden [pos, key], first, last)`: in the blocks `first` to `last` (from 1) the scores
    of hidden keys are the least finite value, so that their weight is 0; cuts are in the order of
    `first`. `cache` holds prefix and prompt, `residuals` are the prompt's as of `run_and_capture`:
    blocks below a window and positions before all that is cut are taken from there. Source:
    attention knockout, Geva et al., arXiv 2304.14767.
    """
    hidden, firsts, lasts = zip(*cuts, strict=True)
    hidden, firsts, lasts = torch.stack(hidden), np.array(firsts), np.array(lasts)
    n_prompt, n_cached = hidden.shape[1:]
    start = int(hidden.any(dim=2).any(dim=0).byte().argmax())
    hidden = hidden[:, None, start:]  # [cut, head, pos, key]

    def hide(scores, hook, block):
        cut_here = torch.tensor((firsts <= block) & (block <= lasts))[: len(scores)]
        mask = hidden[: len(scores)] & cut_here[:, None, None, None]
        return scores.masked_fill(mask.to(scores.device), torch.finfo(scores.dtype).min)

    blocks = range(firsts[0], bridge.cfg.n_layers + 1)
    hooks = [
        (f"blocks.{block - 1}.attn.hook_attn_scores", partial(hide, block=block))
        for block in blocks
    ]
    undisturbed = [resid[None, start:] for resid in residuals]
    resid, frozen = undisturbed[0][:0], _FrozenCache(cache, n_cached - n_prompt + start)
    positions = torch.arange(frozen.n_seen, n_cached, device=resid.device)[None]
    rotary = bridge.rotary_emb(undisturbed[0], positions)
    with bridge.hooks(fwd_hooks=hooks):
        for block in blocks:
            begun = undisturbed[block - 1].expand((firsts == block).sum(), -1, -1)
            resid = torch.cat([resid, begun.to(resid.device)])
            resid = bridge.blocks[block - 1](
                resid, position_embeddings=rotary, past_key_values=frozen
            )
    return resid[:, -1].to(bridge.W_U.device)


def read_knockout(bridge, prefix: list, prompts: list[dict], patches: list[dict], run: dict):
    """P of the first answer token with attention cut: KNOCKOUT for each prompt of a record.

    `prefix` is the image's (`keep_prefix`), `patches` are those of `patches_to_cut` per prompt, and
    the windows those of `run` (RUN). Empty without windows, or for a prompt of more than PIECE
    tokens, which is not run at once. Raises FloatingPointError for NaN or infinity.
    """
    knockouts = []
    with torch.inference_mode():
        cache = _as_cache(prefix)
        for prompt, found in zip(prompts, patches, strict=True):
            ids = torch.tensor(prompt["token_ids"][: prompt["n_prompt"]])
            if len(ids) > PIECE or not run["knockout_windows"]:
                knockouts.append({})
                continue
            residuals, _ = run_and_capture(bridge, ids, cache)
            n_prefix = cache.get_seq_length() - len(ids)
            cuts = attention_cuts(n_prefix, len(ids), run["grid"] ** 2, found)
            read = partial(_read_cuts, bridge, cache, residuals, windows=run["knockout_windows"])
            knockouts.append(read(cuts, answer_id=prompt["answer_ids"][0]))
            cache.crop(-len(ids))
    return knockouts


def _read_cuts(  # noqa: PLR0913 (the state of one prompt, and what is asked of it)
    bridge, cache, residuals: list, cuts: dict, answer_id: int, windows: list
) -> dict[str, np.ndarray]:
    """P(answer) `[window]` by way."""
    probs = {way: np.zeros(len(windows), np.float32) for way in cuts}
    side_by_side = max(1, MOST_KEYS // cache.get_seq_length())
    # Those of one length together, by first block.
    runs = sorted(
        itertools.product(range(len(windows)), cuts),
        key=lambda run: (run[1].endswith("last"), windows[run[0]]),
    )
    for one_length in (runs[: -2 * len(windows)], runs[-2 * len(windows) :]):
        for begin in range(0, len(one_length), side_by_side):
            chosen = one_length[begin : begin + side_by_side]
            cut = [(cuts[way], *windows[window]) for window, way in chosen]
            logits = lens_logits(bridge, run_with_cuts(bridge, cache, residuals, cut))
            if not logits.isfinite().all():
                raise_not_finite("the logits with attention cut")
            p = logits.softmax(-1)[:, answer_id].tolist()
            for (window, way), prob in zip(chosen, p, strict=True):
                probs[way][window] = prob
    return probs
