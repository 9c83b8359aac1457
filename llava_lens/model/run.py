"""Run the model and capture its residual stream; prompts on a cached prefix."""

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image
from transformers import DynamicCache

from llava_lens.kinds import CHAT, question_of

PIECE = 256  # prompt tokens that are run at once: a bound for the memory of any prompt


def encode_prompts(processor, image: Image.Image, questions: list[str]):
    """`(pixel_values [1, 3, height, width], [input ids [pos] per question])`.

    The image is processed once. Each prompt is tokenised whole, with `<s>` in front and as many
    image tokens as there are patches, as the processor would do once per prompt.
    """
    pixel_values = processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
    height, width = pixel_values.shape[-2:]
    n_patches = height // processor.patch_size * (width // processor.patch_size)
    patches, bos = processor.image_token * n_patches, processor.tokenizer.bos_token_id
    sequences = []
    for question in questions:
        text = CHAT.format(question=question).replace("<image>", patches)
        ids = processor.tokenizer(text)["input_ids"]
        in_front = [bos] * (bos is not None and ids[0] != bos)  # not every tokenizer adds it
        sequences.append(torch.tensor(in_front + ids))
    return pixel_values, sequences


def run_and_capture(bridge, input_ids, cache, logits_to_keep: int = 1, **inputs):
    """Run the model on `input_ids` `[pos]` after what `cache` holds.

    Returns `([residual stream [pos, d_model] per layer], logits [kept, d_vocab])`, both captured
    by hooks as the model runs; layer 0 is the embedding output, logits are kept at the last
    `logits_to_keep` positions (0: all). All are on the unembedding's device: a model that is split
    over two GPUs has layers on either. Raises FloatingPointError, which names the layer, for NaN or
    infinity.
    """
    n_layers, device = bridge.cfg.n_layers, bridge.W_U.device
    residuals = [None] * (n_layers + 1)

    def keep(resid, hook, layer):
        residuals[layer] = resid[0].to(device)

    hooks = [("blocks.0.hook_resid_pre", partial(keep, layer=0))]
    hooks += [
        (f"blocks.{block}.hook_resid_post", partial(keep, layer=block + 1))
        for block in range(n_layers)
    ]
    input_ids = input_ids[None].to(bridge.cfg.device)
    with bridge.hooks(fwd_hooks=hooks):
        logits = bridge(input_ids, past_key_values=cache, logits_to_keep=logits_to_keep, **inputs)
    logits = logits[0].to(device)
    # A sum is finite only if all that it adds is; in float32, where sums of half precision can't
    # overflow. One wait for the GPU for all layers.
    sums = torch.stack([values.sum(dtype=torch.float32) for values in [*residuals, logits]])
    finite = sums.isfinite().tolist()
    if not all(finite):
        layer = finite.index(False)
        where = f"the residual stream, first at layer {layer} of {n_layers}"
        raise_not_finite("the logits" if layer > n_layers else where)
    return residuals, logits


def raise_not_finite(where: str):
    raise FloatingPointError(f"NaN or infinity in {where}: try dtype float32.")


def image_span(bridge, input_ids) -> tuple[int, int]:
    """Where the image tokens begin, and one past where they end."""
    found = (input_ids == bridge.original_model.config.image_token_id).nonzero()[:, 0]
    first, end = int(found[0]), int(found[-1]) + 1
    assert end - first == len(found), "the image tokens are not in one piece"
    return first, end


def run_prefix(bridge, pixel_values, input_ids):
    """Run a prompt up to its last image token: the part that all prompts on the image share.

    Returns `(key-value cache, [residual stream of the patches [patch, d_model] per layer])`. The
    tokens before the image see neither image nor question, so their states are dropped.
    """
    first, end = image_span(bridge, input_ids)
    pixels = pixel_values.to(bridge.cfg.device, bridge.cfg.dtype)
    cache = DynamicCache()
    residuals, _ = run_and_capture(bridge, input_ids[:end], cache, pixel_values=pixels)
    if cache.get_seq_length() != end:  # then no prompt would see the image
        raise RuntimeError(
            f"The key-value cache holds {cache.get_seq_length()} of {end} positions: transformers "
            f"{version('transformers')} and transformer-lens {version('transformer-lens')} don't "
            "fit together. Install the versions in requirements.txt."
        )
    return cache, [resid[first:] for resid in residuals]


def run_prompt(bridge, cache, prompt_ids, max_new_tokens: int) -> Iterator[tuple]:
    """Run a prompt after the prefix in `cache` and decode its answer greedily.

    Yields `(token ids [pos], residual streams as of run_and_capture, next id)` for pieces of the
    prompt and for each answer token that is fed back. The next id is what the model says after the
    piece; -1 where the prompt goes on.
    """
    end_ids = np.atleast_1d(bridge.original_model.generation_config.eos_token_id)
    pieces, n_answer = list(prompt_ids.split(PIECE)), 0
    while pieces:
        ids, next_id = pieces.pop(0), -1
        residuals, logits = run_and_capture(bridge, ids, cache)
        if not pieces:
            next_id, n_answer = int(logits[-1].argmax()), n_answer + 1
            if next_id not in end_ids and n_answer < max_new_tokens:
                pieces.append(torch.tensor([next_id]))
        yield ids, residuals, next_id


def keep_prefix(bridge, processor, image: Image.Image) -> list[tuple]:
    """The key-value cache of an image's prefix, per layer `(keys, values, device)`, kept in the
    CPU's memory."""
    pixel_values, (input_ids,) = encode_prompts(processor, image, [question_of("description")])
    with torch.inference_mode():
        cache, _ = run_prefix(bridge, pixel_values, input_ids)
    return _as_prefix(cache)


def _as_prefix(cache) -> list[tuple]:
    return [(layer.keys.cpu(), layer.values.cpu(), layer.keys.device) for layer in cache.layers]


def _as_cache(prefix: list[tuple]) -> DynamicCache:
    """What `keep_prefix` kept, back on the model's devices."""
    cache = DynamicCache()
    for layer, (keys, values, device) in enumerate(prefix):
        cache.update(keys.to(device), values.to(device), layer)
    return cache


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
