"""The reading of one image, its controls and the knockout, and the run over all images.

It knows how the model is run and read (`lens_model`), what to ask (`lens_prompts`) and where
results go (`lens_utils.Results`). It knows nothing of tables and figures.
"""

import hashlib
import io
import itertools
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

# As in lens_kaggle, for whoever imports this one first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from lens_data import digests_of, objects_in_crop, open_image, with_colours  # noqa: E402
from lens_format import FORMAT_VERSION, SEGMENTS, UNIT, require  # noqa: E402
from lens_model import (  # noqa: E402
    LAST_LAYER_TOLERANCE,
    PIECE,
    Settings,
    encode_prompts,
    entropy_bits,
    image_span,
    jsd_bits,
    labels_and_words,
    lens_logits,
    load_llava,
    raise_not_finite,
    rank_of,
    run_and_capture,
    run_prefix,
    run_prompt,
    token_labels,
    top_k_of,
)
from lens_prompts import (  # noqa: E402
    CHAT,
    DESCRIPTION_QUESTION,
    QUESTIONS,
    count_together,
    make_prompts,
    patches_to_cut,
    word_ids,
    words_to_watch,
)
from lens_utils import Results  # noqa: E402

__all__ = [
    "read_positions", "read_answer", "read_image", "read_image_and_prefix", "keep_prefix",
    "grey_image", "read_control", "crop_as_jpeg", "knockout_windows", "attention_cuts",
    "run_with_cuts", "read_knockout", "check_last_layer", "describe_run", "read_images",
]  # fmt: skip

SLICE = 64  # positions whose distributions are held at once: of a whole image they are 2.5 GB
# Keys that runs side by side with attention cut read together: those of a layer of LLaVA-1.5-7B and
# its values take 64 MiB.
MOST_KEYS = 4096
IMAGE, PROMPT, ANSWER = range(len(SEGMENTS))

# ---- Reading one image -------------------------------------------------------------------------


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
    device, last = prob_sum.device, len(residuals) - 1
    segments, targets = (torch.tensor(values, device=device) for values in (segments, targets))
    readings = _empty_readings((len(residuals), len(segments)), top_k, len(words), device)
    one_hot = (segments == torch.arange(len(SEGMENTS), device=device)[:, None]).float()
    for start in range(0, len(segments), SLICE):
        here = slice(start, start + SLICE)
        final_logits = lens_logits(bridge, residuals[-1][here])
        final = final_logits.softmax(-1)
        final_entropy = entropy_bits(final)
        target = torch.where(targets[here] >= 0, targets[here], final.argmax(-1))[:, None]
        before, entropy_before = final, final_entropy  # no matter: layer 0 has none before it
        for layer, resid in enumerate(residuals):
            logits = final_logits if layer == last else lens_logits(bridge, resid[here])
            p = final if layer == last else logits.softmax(-1)
            entropy = final_entropy if layer == last else entropy_bits(p)
            # Finite only if all logits are: softmax would hide a -inf.
            readings["logit_sum"][layer, here] = logits.sum(-1)
            readings["entropy"][layer, here] = entropy
            readings["jsd_final"][layer, here] = jsd_bits(p, final, entropy, final_entropy)
            if layer > 0:
                readings["jsd_prev"][layer, here] = jsd_bits(p, before, entropy, entropy_before)
            before, entropy_before = p, entropy
            top_probs, top_ids = top_k_of(p, top_k)
            readings["top_probs"][layer, here] = top_probs
            readings["top_ids"][layer, here] = top_ids
            target_prob = p.gather(1, target)
            readings["target_prob"][layer, here] = target_prob[:, 0]
            readings["target_rank"][layer, here] = rank_of(p, target_prob)
            prob_sum[:, layer] += one_hot[:, here] @ p
            for number, ids in enumerate(words):
                readings["words"][layer, here, number] = p[:, ids].sum(-1)
    return _as_arrays(readings, bridge.cfg.d_vocab)


def read_answer(bridge, residuals: list, token_id: int) -> dict[str, np.ndarray]:
    """Read every layer at the last position of `residuals`, where an answer begins with `token_id`.

    Returns `target_prob` and `target_rank` `[layer]` of that token, and `word_prob` and `word_rank`
    of its word: the probabilities of tokens that are `spelled_alike` are summed, and words are
    ranked by these sums. So the word of the most probable token need not be the top word. Raises
    FloatingPointError for NaN or infinity.
    """
    logits = lens_logits(bridge, torch.cat([resid[-1:] for resid in residuals]))
    if not logits.isfinite().all():
        raise_not_finite("the lens's logits where the answer begins")
    p, d_vocab = logits.softmax(-1), bridge.cfg.d_vocab  # [layer, d_vocab]
    alike = torch.tensor(labels_and_words(bridge.tokenizer, d_vocab)[1], device=p.device)
    words = torch.zeros_like(p).index_add_(1, alike, p)
    readings = {}
    for name, probs, at in ("target", p, token_id), ("word", words, alike[token_id]):
        rank = rank_of(probs, probs[:, at, None]).cpu().numpy()
        readings[f"{name}_prob"] = probs[:, at].cpu().numpy()
        readings[f"{name}_rank"] = rank.astype(np.min_scalar_type(d_vocab))
    return readings


def _word_ids(bridge, answer_ids: np.ndarray) -> list[int]:
    """The tokens that spell the first word of an answer; empty if its first token is no whole word,
    since the second goes on with it or since it is a sign or a byte."""
    labels, alike = labels_and_words(bridge.tokenizer, bridge.cfg.d_vocab)
    first, *rest = answer_ids
    goes_on = rest and labels[rest[0]].isalpha()
    if goes_on or not labels[first].removeprefix("▁").isalpha():
        return []
    return [token_id for token_id, word in enumerate(alike) if word == alike[first]]


def _empty_readings(shape: tuple[int, int], top_k: int, n_words: int, device) -> dict:
    floats = ("jsd_prev", "jsd_final", "entropy", "target_prob", "logit_sum")
    readings = {name: torch.full(shape, torch.nan, device=device) for name in floats}
    readings["target_rank"] = torch.zeros(shape, dtype=torch.int32, device=device)
    readings["top_ids"] = torch.zeros(*shape, top_k, dtype=torch.int32, device=device)
    readings["top_probs"] = torch.zeros(*shape, top_k, device=device)
    if n_words:
        readings["words"] = torch.zeros(*shape, n_words, device=device)
    return readings


def _as_arrays(readings: dict, d_vocab: int) -> dict[str, np.ndarray]:
    arrays = {name: values.cpu().numpy() for name, values in readings.items()}
    broken = np.flatnonzero(~np.isfinite(arrays.pop("logit_sum")).all(axis=1))
    if broken.size:  # the residual stream was finite, so it is the unembedding that overflowed
        n_layers = len(arrays["entropy"]) - 1
        raise_not_finite(f"the lens's logits, first at layer {broken[0]} of {n_layers}")
    id_type = np.min_scalar_type(d_vocab)  # uint16 for LLaVA-1.5
    return arrays | {name: arrays[name].astype(id_type) for name in ("top_ids", "target_rank")}


def read_image(
    bridge, processor, image: Image.Image, prompts: list[dict], settings: Settings, words=()
) -> tuple[dict, np.ndarray]:
    """`(record, mean_probability)` of one image (RGB) with its prompts, as plain values.

    The prefix up to the last image token runs once; each prompt and its greedy answer go on from
    its key-value cache. A reading is about the token that comes next. Answer positions hold the
    answer's tokens fed back as input, so the first answer token is read at the prompt's last
    position. The record has RECORD's fields but `name`, `objects` and the digests; `words` are
    those of `lens_prompts.words_to_watch`. `mean_probability` `[segment, layer, d_vocab]`, float32,
    is over the segment's positions, NaN where it has none.

    Raises ValueError for `top_k` outside 1 ... d_vocab, for no prompt or new token and for a prompt
    beyond the model's context; FloatingPointError for NaN or infinity.
    """
    return read_image_and_prefix(bridge, processor, image, prompts, settings, words)[:2]


def read_image_and_prefix(
    bridge, processor, image: Image.Image, prompts: list[dict], settings: Settings, words=()
) -> tuple[dict, np.ndarray, list[tuple]]:
    """What `read_image` returns, and the image's prefix as of `keep_prefix`."""
    pixel_values, sequences = encode_prompts(
        processor, image, [prompt["question"] for prompt in prompts]
    )
    _check_request(bridge, sequences, settings)
    prob_sum = torch.zeros(
        len(SEGMENTS), bridge.cfg.n_layers + 1, bridge.cfg.d_vocab, device=bridge.W_U.device
    )
    read = partial(read_positions, bridge, prob_sum=prob_sum, top_k=settings.top_k)
    with torch.inference_mode():
        cache, residuals = run_prefix(bridge, pixel_values, sequences[0])
        n_patches = len(residuals[0])
        watched = [word["token_ids"] for word in words]
        patches = read(residuals, [IMAGE] * n_patches, [-1] * n_patches, words=watched)
        log2_probs = _as_log2(patches.pop("words", None))
        answers = []
        for sequence in sequences:
            prompt_ids = sequence[image_span(bridge, sequence)[1] :]
            answers.append(_read_prompt(bridge, cache, prompt_ids, settings.max_new_tokens, read))
    for answer in answers:
        answer["answer"] = processor.decode(answer["answer_ids"], skip_special_tokens=True).strip()
    record = {
        "patches": patches,
        "words": [{**word, "log2_probs": log2_probs[i]} for i, word in enumerate(words)],
        "prompts": [{**prompt, **answer} for prompt, answer in zip(prompts, answers, strict=True)],
        "crop": crop_as_jpeg(pixel_values[0].numpy(), processor.image_processor),
    }
    n_prompt = sum(answer["n_prompt"] for answer in answers)
    n_text = sum(len(answer["token_ids"]) for answer in answers)
    n_read = torch.tensor([n_patches, n_prompt, n_text - n_prompt], device=prob_sum.device)
    mean = prob_sum / n_read[:, None, None]  # 0 / 0 is NaN
    return record, mean.cpu().numpy(), _as_prefix(cache)


def _check_request(bridge, sequences: list, settings: Settings) -> None:
    d_vocab = bridge.cfg.d_vocab
    most = f"top_k is {settings.top_k}: it must be from 1 to the vocabulary's {d_vocab}."
    require(settings.top_k <= d_vocab, most)
    require(sequences, "There are no prompts: there must be one at least.")
    longest = max(map(len, sequences)) + settings.max_new_tokens
    context = bridge.original_model.config.text_config.max_position_embeddings
    require(
        longest <= context,
        f"A prompt has, with its image and max_new_tokens, {longest} tokens, and the model's "
        f"context {context}: shorten it.",
    )


def _as_log2(probs: np.ndarray | None) -> np.ndarray:
    """`probs` `[layer, patch, word]` as log2 `[word, layer, patch]` in float16, which is right to a
    hundredth of the probability."""
    if probs is None:
        return np.zeros((0, 0, 0), np.float16)
    log2_probs = np.log2(np.maximum(probs, np.float32(2**-126))).astype(np.float16)
    return np.ascontiguousarray(log2_probs.transpose(2, 0, 1))


def _read_prompt(bridge, cache, prompt_ids, max_new_tokens: int, read) -> dict:
    """Run and read one prompt and its answer, then take both out of the cache again.

    Returns PROMPT's `token_ids`, `n_prompt`, `answer_ids`, `readings`, `word_ids`, `word_prob` and
    `word_rank`.
    """
    n_prompt, token_ids, answer_ids, readings = len(prompt_ids), [], [], []
    waiting, segments, targets = [], [], []  # run, but not read yet

    def read_waiting():
        residuals = [torch.cat(layer) for layer in zip(*waiting, strict=True)]
        readings.append(read(residuals, segments, targets))
        for values in (waiting, segments, targets):
            values.clear()

    for ids, residuals, next_id in run_prompt(bridge, cache, prompt_ids, max_new_tokens):
        segment = PROMPT if len(token_ids) < n_prompt else ANSWER
        token_ids += ids.tolist()
        waiting.append(residuals)
        segments += [segment] * len(ids)
        targets += [-1] * (len(ids) - 1) + [next_id]
        if next_id >= 0 and not answer_ids:
            first = read_answer(bridge, residuals, next_id)
        answer_ids += [next_id] * (next_id >= 0)
        if len(targets) >= PIECE:
            read_waiting()
    if waiting:
        read_waiting()
    cache.crop(-len(token_ids))  # back to the prefix, for the next prompt
    return {
        "token_ids": np.array(token_ids),
        "n_prompt": n_prompt,
        "answer_ids": np.array(answer_ids),
        "word_ids": _word_ids(bridge, answer_ids),
        "word_prob": first["word_prob"],
        "word_rank": first["word_rank"],
        "readings": {
            name: np.concatenate([piece[name] for piece in readings], axis=1)
            for name in readings[0]
        },
    }


def keep_prefix(bridge, processor, image: Image.Image) -> list[tuple]:
    """The key-value cache of an image's prefix, per layer `(keys, values, device)`, kept in the
    CPU's memory."""
    pixel_values, (input_ids,) = encode_prompts(processor, image, [DESCRIPTION_QUESTION])
    with torch.inference_mode():
        cache, _ = run_prefix(bridge, pixel_values, input_ids)
    return _as_prefix(cache)


def _as_prefix(cache) -> list[tuple]:
    return [(layer.keys.cpu(), layer.values.cpu(), layer.keys.device) for layer in cache.layers]


def grey_image(processor) -> Image.Image:
    """A plain grey image of the size of the crop, the control's."""
    crop = processor.image_processor.crop_size
    return Image.new("RGB", (crop["width"], crop["height"]), (128, 128, 128))


def read_control(bridge, prefix: list[tuple], prompts: list[dict]) -> list[dict]:
    """Control: the same prompts after the prefix of another image (`keep_prefix`).

    Per prompt of a record what `read_answer` gives for the answer that it got with its own image.
    Raises FloatingPointError for NaN or infinity.
    """
    controls = []
    with torch.inference_mode():
        cache = _as_cache(prefix)
        for prompt in prompts:
            ids = torch.tensor(prompt["token_ids"][: prompt["n_prompt"]])
            *_, (_, residuals, _) = run_prompt(bridge, cache, ids, max_new_tokens=1)
            cache.crop(-len(ids))
            controls.append(read_answer(bridge, residuals, int(prompt["answer_ids"][0])))
    return controls


def _as_cache(prefix: list[tuple]) -> DynamicCache:
    """What `keep_prefix` kept, back on the model's devices."""
    cache = DynamicCache()
    for layer, (keys, values, device) in enumerate(prefix):
        cache.update(keys.to(device), values.to(device), layer)
    return cache


def crop_as_jpeg(pixel_values: np.ndarray, image_processor) -> np.ndarray:
    """The image as the model saw it, from the model's own input `[3, height, width]`: the bytes of
    a JPEG."""
    mean, std = image_processor.image_mean, image_processor.image_std
    pixels = (pixel_values.transpose(1, 2, 0) * std + mean) * 255
    jpeg = io.BytesIO()
    image = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    image.save(jpeg, "JPEG", quality=90)
    return np.frombuffer(jpeg.getvalue(), np.uint8)


# ---- Attention knockout ------------------------------------------------------------------------


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


class _FrozenCache:
    """Keys and values of the first `n_seen` positions of `cache`, for runs side by side: each adds
    its own for the moment, nothing is kept."""

    def __init__(self, cache, n_seen: int):
        self.cache, self.n_seen = cache, n_seen

    def update(self, keys, values, layer: int, *_):
        """Keys and values `[run, head, pos, d_head]` with the cached ones in front."""
        cached = self.cache.layers[layer]
        return tuple(
            torch.cat([seen[:, :, : self.n_seen].expand(len(new), -1, -1, -1), new], dim=2)
            for seen, new in ((cached.keys, keys), (cached.values, values))
        )


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


# ---- The run over all images -------------------------------------------------------------------


def check_last_layer(bridge, processor, image: Image.Image) -> float:
    """The largest JSD (bits) between the lens at the last layer and the model's own distribution,
    over all positions of one prompt.

    Both must agree, so a wrong norm, hook or unembedding shows up. Raises RuntimeError above
    LAST_LAYER_TOLERANCE, which leaves room only for the rounding of matrix products of another
    shape.
    """
    pixel_values, (input_ids,) = encode_prompts(processor, image, [DESCRIPTION_QUESTION])
    dtype = str(bridge.cfg.dtype).removeprefix("torch.")
    with torch.inference_mode():
        pixels = pixel_values.to(bridge.cfg.device, bridge.cfg.dtype)
        residuals, logits = run_and_capture(
            bridge, input_ids, DynamicCache(), logits_to_keep=0, pixel_values=pixels
        )
        largest = 0.0
        for resid, own in zip(residuals[-1].split(SLICE), logits.split(SLICE), strict=True):
            jsd = jsd_bits(lens_logits(bridge, resid).softmax(-1), own.float().softmax(-1))
            largest = max(largest, float(jsd.max().nan_to_num(torch.inf)))
    if not largest <= LAST_LAYER_TOLERANCE[dtype]:
        raise RuntimeError(
            f"The lens at the last layer differs from the model's own output by {largest:.2g} "
            f"{UNIT} JSD (allowed in {dtype}: {LAST_LAYER_TOLERANCE[dtype]:g}). Nothing read with "
            "it would be right. The versions of transformers and transformer-lens are the first "
            "thing to look at (requirements.txt has the tested ranges)."
        )
    return largest


def describe_run(
    bridge, processor, settings: Settings, last_layer_jsd: float, categories: list[str] = ()
) -> dict:
    """RUN: all that is needed to read the records without the model or its tokenizer, or the data
    set's `categories`."""
    config = bridge.original_model.config
    vision = config.vision_config
    return {
        "format_version": FORMAT_VERSION,
        "model": str(settings.model),
        "revision": getattr(config, "_commit_hash", None) or _fingerprint(bridge.original_model),
        "dtype": str(bridge.cfg.dtype).removeprefix("torch."),
        "packages": {
            name: version(name) for name in ("torch", "transformers", "transformer-lens", "numpy")
        },
        "n_layers": bridge.cfg.n_layers,
        "layers": ["emb", *map(str, range(1, bridge.cfg.n_layers + 1))],
        "segments": SEGMENTS,
        "tokens": token_labels(processor.tokenizer, bridge.cfg.d_vocab),
        "grid": vision.image_size // vision.patch_size,
        "image_size": vision.image_size,
        "chat": CHAT,
        "questions": QUESTIONS,
        "own_prompts": settings.prompts,
        "categories": list(categories),
        "per_kind": settings.per_kind,
        "seed": settings.seed,
        "top_k": settings.top_k,
        "max_new_tokens": settings.max_new_tokens,
        "knockout_windows": knockout_windows(bridge.cfg.n_layers, settings.knockout_width)
        if settings.knockout
        else [],
        "last_layer_jsd": last_layer_jsd,
    }


def _fingerprint(model) -> str:
    """A digest of the shape and up to 1,024 values of each weight, evenly spaced: a folder has no
    revision, and two models may share a name. A change of a weight in fewer places can be missed.
    """
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        values = weight.flatten()
        values = values[:: max(1, -(-len(values) // 1024))].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values.tobytes())
    return f"weights {digest.hexdigest()[:16]}"


def read_images(
    image_paths: dict[str, Path], annotations: dict, categories: list[str], folder, settings
) -> None:
    """Load the model and read every image that has no record yet into the results in `folder`.

    `annotations` are those of `lens_data.match_annotations`, `categories` of `read_annotations`,
    `settings` are Settings. The lens is checked on the first image. Where accelerate has launched
    several processes, each loads its own copy of the model and takes its share of the images, and
    none waits for another. An image that can't be read is skipped by name. `image_paths` has all
    images, read or not: the control `other` of each is the image before. Raises ValueError if no
    image can be opened, and what `load_llava`, `check_last_layer` and `Results.begin` raise.
    """
    # The state would else be that of a run before, in this process or in the one that launched it.
    PartialState._reset_state()
    state = PartialState(cpu=settings.device == "cpu")
    # Neighbours in one process: an image's prefix is the control of the next one. Not
    # split_between_processes: before accelerate 1.15 it gives the last image to two processes where
    # there are fewer images than processes.
    ends = np.linspace(0, len(image_paths), state.num_processes + 1).astype(int)
    own = slice(ends[state.process_index], ends[state.process_index + 1])
    # After the split, so that it does not depend on how far another process is.
    share = Results(folder).left(dict(list(image_paths.items())[own]))
    device = str(state.device) if state.num_processes > 1 else settings.device
    bridge, processor = load_llava(settings.model, settings.dtype, device)
    together = f", in {state.num_processes} processes" * (state.num_processes > 1)
    state.print(
        f"{settings.model}: {bridge.cfg.n_layers} layers, d_model {bridge.cfg.d_model}, vocabulary "
        f"{bridge.cfg.d_vocab:,}, {bridge.cfg.dtype} on {bridge.W_U.device}{together}"
    )
    run = describe_run(bridge, processor, settings, 0.0, categories)  # JSD: not known yet
    Results(folder).refuse_another(run)
    _name_wordless(state, processor.tokenizer.get_vocab(), categories)
    read_one = _reader((bridge, processor), image_paths, annotations, run, settings)

    def check_lens(path) -> dict:
        """`run` with the result of the check on this image."""
        largest = check_last_layer(bridge, processor, open_image(path))
        state.print(
            f"largest JSD between the lens at the last layer and the model's output: {largest:.2g} "
            f"{UNIT} (allowed: {LAST_LAYER_TOLERANCE[settings.dtype]:g})"
        )
        return {**run, "last_layer_jsd": largest}

    _read_share(share, check_lens, read_one, Results(folder), settings.deadline)
    state.destroy_process_group()


def _name_wordless(state, vocabulary: dict[str, int], categories: list[str]) -> None:
    wordless = [name for name in categories if not word_ids(vocabulary, name)]
    if wordless:
        state.print(
            f"{len(wordless)} of {len(categories)} categories have no word that is one token, so "
            f"they are not watched in the patches: {', '.join(wordless)}"
        )


def _reader(model: tuple, image_paths: dict, annotations: dict, run: dict, settings) -> Callable:
    """A function that reads one image whole, by name; `model` is `(bridge, processor)`.

    It keeps the prefix of the image that was read last: the next one's control.
    """
    bridge, processor = model
    together, last_prefix, plain = count_together(annotations), {}, {}

    def open_annotated(name) -> Image.Image:
        found = annotations.get(name, [])
        return open_image(image_paths[name], found[0]["image_size"] if found else None)

    def prefix_of(name) -> list[tuple]:
        return keep_prefix(bridge, processor, open_annotated(name))

    def read_one(name, path) -> tuple[dict, np.ndarray]:
        """The whole record of one image, and its mean probability."""
        image, annotated = open_annotated(name), annotations.get(name, [])
        found = with_colours(annotated, image) if annotated else []
        objects = objects_in_crop(found, image.size, processor.image_processor)
        seed, categories = f"{settings.seed} {name}", run["categories"]
        asked = settings.prompts or make_prompts(
            objects, categories, seed, settings.per_kind, together
        )
        words = words_to_watch(processor.tokenizer, objects, categories, asked, seed, together)
        record, mean, prefix = read_image_and_prefix(
            bridge, processor, image, asked, settings, words
        )
        prompts = record["prompts"]
        if not plain:
            plain["grey"] = keep_prefix(bridge, processor, grey_image(processor))
        controls = {"grey": read_control(bridge, plain["grey"], prompts)}
        if before := _prefix_before(list(image_paths), name, last_prefix, prefix_of):
            controls["other"] = read_control(bridge, before, prompts)
        where = objects, run["grid"], run["image_size"], seed
        patches = [patches_to_cut(prompt, *where) for prompt in prompts]
        controls["knockout"] = read_knockout(bridge, prefix, prompts, patches, run)
        for number, prompt in enumerate(prompts):
            prompt.update({control: read[number] for control, read in controls.items()})
        last_prefix.clear()
        last_prefix[name] = prefix
        return {"name": name, **digests_of(path, annotated), "objects": objects, **record}, mean

    return read_one


def _prefix_before(names: list[str], name: str, at_hand: dict, prefix_of) -> list[tuple] | None:
    """The prefix of the image before `name` in the list of all, the last one's for the first; one
    that can't be read is passed over. None if there is no other.

    It is taken from `at_hand` or else run, so that it is the same however the images are shared or
    a run was stopped.
    """
    at = names.index(name)
    for other in reversed(names[at + 1 :] + names[:at]):
        try:
            return at_hand[other] if other in at_hand else prefix_of(other)
        except (OSError, FloatingPointError):
            continue
    return None


def _read_share(share: dict[str, Path], check_lens, read_one, results, deadline: float) -> None:
    """Read and save the images of one process, one after the other, until `deadline`."""
    state, begun, seconds, skipped = PartialState(), False, [], {}
    for name, path in tqdm(
        share.items(),
        "images",
        unit="image",
        file=sys.stdout,
        mininterval=5,
        disable=not state.is_main_process,
    ):
        start = time.monotonic()
        if seconds and start + max(seconds) > deadline:
            left = len(share) - len(seconds) - len(skipped)
            print(f"The time is over with {left} images left: run this again to go on.")
            break
        try:
            run = None if begun else check_lens(path)
            record, mean = read_one(name, path)
        except (OSError, FloatingPointError) as error:
            skipped[name] = str(error)
            if begun:
                results.skip(name, str(error))
            continue
        if not begun:
            results.begin(run, state.process_index)
            for earlier, reason in skipped.items():
                results.skip(earlier, reason)
            begun = True
        results.add(record, mean)
        seconds.append(time.monotonic() - start)
    if skipped and not begun:
        reasons = " ".join(f"{name}: {reason}" for name, reason in skipped.items())
        message = f"None of these {len(skipped)} images can be read. {reasons}"
        require(state.num_processes > 1 or results.started, message)
        print(message)
    if seconds:
        each = f" in each of {state.num_processes} processes" * (state.num_processes > 1)
        state.print(f"{sum(seconds) / len(seconds):.2f} s per image{each}")
