"""Run the model: an image's prefix, and rows of text side by side after it."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from inspect import signature

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import DynamicCache, LlavaForConditionalGeneration

from llava_lens.kinds import CHAT, question_of
from llava_lens.model.lens import layers_read, lens_logits, raise_not_finite

# Tokens after the prefix that run at once. It bounds the memory: of LLaVA-1.5-7B in float16, their
# residual streams at all layers take 66 MiB, and the attention scores of a block about as much.
PIECE = 256
# How transformers calls the cache: `cache` from 5.24 on (docs/decisions.md).
_PARAMETERS = signature(LlavaForConditionalGeneration.forward).parameters
CACHE = "cache" if "cache" in _PARAMETERS else "past_key_values"


def has_template(processor) -> bool:
    return bool(processor.chat_template or processor.tokenizer.chat_template)


def chat_of(processor) -> str:
    """The text that the model is asked with, as its checkpoint says; `{question}` and the image
    token stand for question and image.

    It is from the chat template of the processor, or of its tokenizer, or else CHAT. Raises
    ValueError for a template that has not one place for each, the image's first.
    """
    tokenizer, image_token = processor.tokenizer, processor.image_token
    if not has_template(processor):
        return CHAT.replace("<image>", image_token)
    template = None if processor.chat_template else tokenizer.get_chat_template()
    # A template for text alone takes the second form.
    parts = [{"type": "image"}, {"type": "text", "text": "{question}"}]
    for content in parts, f"{image_token}\n{{question}}":
        message = [{"role": "user", "content": content}]
        try:
            chat = processor.apply_chat_template(message, template, add_generation_prompt=True)
        except (TypeError, TemplateError):
            continue
        places = [chat.count(place) for place in (image_token, "{question}")]
        if places == [1, 1] and chat.index(image_token) < chat.index("{question}"):
            return chat
    raise ValueError("its chat template has not one place for an image and one for text after it")


def encode_prompts(processor, image: Image.Image, questions: list[str]):
    """`(pixel_values [1, 3, height, width], [input ids [pos] per question])`, as the processor
    makes them prompt by prompt; the image is processed once."""
    tokenizer, image_token, chat = processor.tokenizer, processor.image_token, chat_of(processor)
    # As apply_chat_template does: a template may have `<s>` itself.
    adds = not (tokenizer.bos_token and chat.startswith(tokenizer.bos_token))
    inputs = processor(text=chat, images=image, return_tensors="pt", add_special_tokens=adds)
    n_image_tokens = int((inputs["input_ids"] == processor.image_token_id).sum())
    expanded, sequences = chat.replace(image_token, image_token * n_image_tokens), []
    for question in questions:
        text = expanded.replace("{question}", question)
        ids = tokenizer(text, add_special_tokens=adds)["input_ids"]
        if not has_template(processor) and tokenizer.bos_token_id not in (None, ids[0]):
            ids = [tokenizer.bos_token_id, *ids]  # CHAT begins with `<s>`, whoever adds it
        sequences.append(torch.tensor(ids))
    return inputs["pixel_values"], sequences


def run_and_capture(bridge, input_ids, cache, logits_to_keep: int = 1, **inputs):
    """Run the model on `input_ids` `[pos]` after what `cache` holds.

    Returns `([residual stream [pos, d_model] per layer], logits [kept, d_vocab])`, captured by
    hooks; layer 0 is the embedding output, `logits_to_keep` 0 keeps all. All are on the
    unembedding's device: a model may be split over two GPUs. Raises FloatingPointError.
    """
    n_layers, device = bridge.cfg.n_layers, bridge.W_U.device
    names = [f"blocks.{block}.hook_resid_post" for block in range(n_layers)]
    names = ["blocks.0.hook_resid_pre", *names]
    inputs |= {CACHE: cache, "logits_to_keep": logits_to_keep}
    logits, kept = bridge.run_with_cache(
        input_ids[None].to(bridge.cfg.device), names_filter=names, device=device, **inputs
    )
    residuals, logits = [kept[name][0] for name in names], logits[0].to(device)
    _check_finite([*residuals, logits], 0, n_layers)
    return residuals, logits


def _check_finite(values: list, first: int, n_layers: int) -> None:
    """Raise FloatingPointError, which names the layer, for NaN or infinity in `values`: residual
    streams from layer `first` on, and perhaps logits."""
    # A sum is finite only if all that it adds is; in float32, where sums of half precision can't
    # overflow. One wait for the GPU for all layers.
    finite = torch.stack([one.sum(dtype=torch.float32) for one in values]).isfinite().tolist()
    if not all(finite):
        layer = first + finite.index(False)
        where = f"the residual stream, first at layer {layer} of {n_layers}"
        raise_not_finite("the logits" if layer > n_layers else where)


def patches_along(config) -> tuple[int, int]:
    """How many patches there are along a side of the vision tower's image, and the pixels that they
    cover; what is left at the end fills none."""
    vision = config.vision_config
    n_patches = vision.image_size // vision.patch_size
    return n_patches, n_patches * vision.patch_size


def run_prefix(bridge, pixel_values, input_ids):
    """Run a prompt up to its last image token, which all prompts on the image share. Returns
    `(key-value cache, [residual stream of the patches [patch, d_model] per layer read])`."""
    config = bridge.original_model.config
    end = int((input_ids == config.image_token_id).nonzero()[-1]) + 1
    pixels = pixel_values.to(bridge.cfg.device, bridge.cfg.dtype)
    cache = DynamicCache()
    residuals, _ = run_and_capture(bridge, input_ids[:end], cache, pixel_values=pixels)
    if cache.get_seq_length() != end:  # then no prompt would see the image
        raise RuntimeError(
            f"The key-value cache holds {cache.get_seq_length()} of {end} positions: transformers "
            f"{version('transformers')} and transformer-lens {version('transformer-lens')} don't "
            "fit together. Install the versions in requirements.txt."
        )
    n_patches = patches_along(config)[0] ** 2
    kept = [residuals[layer] for layer in layers_read(bridge.cfg.n_layers)]
    return cache, [resid[-n_patches:] for resid in kept]  # a class token is before them


def keep_prefix(bridge, processor, image: Image.Image) -> list[tuple]:
    """The key-value cache of an image's prefix in the CPU's memory, per block
    `(keys, values, device)`."""
    pixel_values, (input_ids,) = encode_prompts(processor, image, [question_of("description")])
    with torch.inference_mode():
        cache, _ = run_prefix(bridge, pixel_values, input_ids)
    return as_prefix(cache)


def as_prefix(cache) -> list[tuple]:
    return [(layer.keys.cpu(), layer.values.cpu(), layer.keys.device) for layer in cache.layers]


def as_cache(prefix: list[tuple]) -> DynamicCache:
    """What `keep_prefix` kept, back on the model's devices."""
    cache = DynamicCache()
    for block, (keys, values, device) in enumerate(prefix):
        cache.update(keys.to(device), values.to(device), block)
    return cache


def crop_to(cache, n_kept: int) -> None:
    """Leave the first `n_kept` positions in every block of a cache."""
    for layer in cache.layers:
        layer.crop(n_kept - layer.get_seq_length())  # minus so many as are to go


@dataclass
class Row:
    """Consecutive positions of a text, which run through the blocks from `layer` on."""

    states: torch.Tensor  # [pos, d_model], the residual stream at `layer`
    layer: int
    sees: list[int]  # the place in the cache of each position before them
    hidden: list[int] = ()  # of these, what they don't look at in the blocks ...
    until: int = 0  # ... up to this one, counted from 1


def run_rows(bridge, cache, rows: list[Row]) -> list[torch.Tensor]:
    """Run rows side by side, in one sequence: a mask keeps each to what it `sees` and to itself.

    So a pass reads the weights once, and neither pads rows nor copies the prefix. `rows` are in the
    order of `layer`. Returns, per layer from the first one's on, the residual streams
    `[pos, d_model]` of the rows that have begun by then. Their keys and values stay in `cache`,
    after what it held. Raises FloatingPointError.
    """
    n_cached, n_layers, device = cache.get_seq_length(), bridge.cfg.n_layers, bridge.W_U.device
    lengths = torch.tensor([len(row.states) for row in rows])
    row_of = torch.arange(len(rows)).repeat_interleave(lengths)  # [pos]
    position = torch.cat([torch.arange(len(row.states)) + len(row.sees) for row in rows])
    own = (row_of[:, None] == row_of).tril()  # [pos, pos]
    cached = torch.full((len(rows), n_cached), -1)  # [row, key]: its position, -1 if not seen
    hidden = torch.zeros_like(cached, dtype=torch.bool)
    for number, row in enumerate(rows):
        cached[number, row.sees] = torch.arange(len(row.sees))
        hidden[number, row.hidden] = True
    until = torch.tensor([row.until for row in rows])
    resid, residuals = rows[0].states[:0], []
    rotary = bridge.rotary_emb(resid, position[None].to(resid.device))
    for block in range(rows[0].layer, n_layers):
        run_block = bridge.blocks[block]
        begun = [row.states.to(resid.device) for row in rows if row.layer == block]
        resid = torch.cat([resid, *begun])  # [pos so far, d_model]
        residuals.append(resid.to(device))
        n_pos = len(resid)
        visible = (cached >= 0) & ~(hidden & (until > block)[:, None])  # [row, cached key]
        visible = torch.cat([visible[row_of[:n_pos]], own[:n_pos, :n_pos]], dim=1)  # [pos, key]
        if window := _window(run_block):
            of_own = position[:n_pos].expand(n_pos, -1)
            of_key = torch.cat([cached[row_of[:n_pos]], of_own], dim=1)  # [pos, key]
            visible &= of_key > position[:n_pos, None] - window
        resid = run_block(
            resid[None],
            attention_mask=visible[None, None].to(resid.device),  # [1, head, pos, key]
            position_embeddings=tuple(part[:, :n_pos] for part in rotary),
            **{CACHE: cache},
        )[0]
    residuals.append(resid.to(device))
    _check_finite(residuals, rows[0].layer, n_layers)
    return residuals


def _window(block) -> int | None:
    """How many positions a block's attention reaches, its own included; None: all before it."""
    attention = block.attn.original_component  # Mistral's leaves it to its configuration
    every = getattr(attention.config, "sliding_window", None)
    return getattr(attention, "sliding_window", every)


class Texts:
    """Texts side by side after the prefix in `cache`; each sees the prefix and itself."""

    def __init__(self, bridge, cache):
        self.bridge, self.cache, self.n_prefix = bridge, cache, cache.get_seq_length()
        self.places: dict[int, list[int]] = {}  # by text: where its tokens are in the cache
        self.end_ids = np.atleast_1d(bridge.original_model.generation_config.eos_token_id)

    def feed(self, pieces: dict[int, torch.Tensor]) -> list[torch.Tensor]:
        """Residual streams `[pos, d_model]` per layer of the next tokens of each text."""
        ids = torch.cat([*pieces.values()])[None].to(self.bridge.cfg.device)
        embedded = self.bridge(ids, stop_at_layer=0)[0]  # [pos, d_model]
        rows, end = [], self.cache.get_seq_length()
        by_text = embedded.split([*map(len, pieces.values())])
        for number, states in zip(pieces, by_text, strict=True):
            own = self.places.setdefault(number, [])
            rows.append(Row(states, 0, [*range(self.n_prefix), *own]))
            own += range(end, end + len(states))
            end += len(states)
        return run_rows(self.bridge, self.cache, rows)

    def answer(self, texts: dict[int, torch.Tensor], max_new_tokens: int) -> Iterator[tuple]:
        """Run the next tokens of texts and decode answers greedily, each pass for all of them.

        Yields `(token ids [pos] by text, residual streams of them all, next id by text)`. The next
        id is -1 where a long text goes on after PIECE tokens.
        """
        waiting, n_said = dict(texts), dict.fromkeys(texts, 0)
        while waiting:
            pieces = {number: ids[:PIECE] for number, ids in waiting.items()}
            waiting = {number: ids[PIECE:] for number, ids in waiting.items() if len(ids) > PIECE}
            residuals = self.feed(pieces)
            ends = np.cumsum([len(ids) for ids in pieces.values()]) - 1
            said = lens_logits(self.bridge, residuals[-1][ends]).argmax(-1).tolist()
            next_ids = dict(zip(pieces, said, strict=True)) | dict.fromkeys(waiting, -1)
            yield pieces, residuals, next_ids
            for number in pieces.keys() - waiting.keys():
                n_said[number] += 1
                if next_ids[number] not in self.end_ids and n_said[number] < max_new_tokens:
                    waiting[number] = torch.tensor([next_ids[number]])
            waiting = dict(sorted(waiting.items()))


def in_groups(texts: list[torch.Tensor]) -> Iterator[dict[int, torch.Tensor]]:
    """Texts (or their states) by number, in groups that run at once: of up to PIECE tokens, or one
    longer text."""
    group = {}
    for number, ids in enumerate(texts):
        if group and sum(map(len, group.values())) + len(ids) > PIECE:
            yield group
            group = {}
        group[number] = ids
    if group:
        yield group


def run_prompts(bridge, cache, prompts: list[torch.Tensor], max_new_tokens: int) -> Iterator[tuple]:
    """Run prompts `[pos]` after the prefix in `cache` and decode their answers: what `Texts.answer`
    yields, group by group, at `layers_read`. `cache` is left as it was."""
    n_prefix, layers = cache.get_seq_length(), layers_read(bridge.cfg.n_layers)
    for group in in_groups(prompts):
        for pieces, residuals, next_ids in Texts(bridge, cache).answer(group, max_new_tokens):
            yield pieces, [residuals[layer] for layer in layers], next_ids
        crop_to(cache, n_prefix)
