"""LLaVA, the logit lens, the reading of one image, and the run over all of them.

The only file that imports torch. It knows nothing of how files look on disk, nor of tables and
figures. By hand, the top-5 tokens at layer 6 of the position where the answer is said:

    bridge, processor = load_llava("demo/model")
    image = open_image("demo/scenes/scene_00.png")
    prompts = as_prompts(["What color is the heart?"])
    record, _ = read_image(bridge, processor, image, prompts, Settings("demo/model", top_k=5))
    prompt, labels = record["prompts"][0], token_labels(processor.tokenizer, bridge.cfg.d_vocab)
    ids = prompt["readings"]["top_ids"][6, prompt["n_prompt"] - 1]  # [layer, pos, k], layer 0 = emb
    [labels[i] for i in ids]
"""

import hashlib
import io
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

# Let idle torch threads sleep: with one of two cores busy, spinning made reading an image 50 times
# slower. Torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402
from transformer_lens.model_bridge import TransformerBridge  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoProcessor,
    DynamicCache,
    LlavaForConditionalGeneration,
)

from lens_data import (  # noqa: E402
    CHAT,
    DESCRIPTION_QUESTION,
    QUESTIONS,
    digests_of,
    make_prompts,
    objects_in_crop,
    open_image,
    words_to_watch,
)
from lens_kaggle import on_kaggle, probe_gpus  # noqa: E402
from lens_utils import (  # noqa: E402
    FORMAT_VERSION,
    SEGMENTS,
    UNIT,
    Results,
    require,
)

__all__ = [
    "Settings", "placement", "copies_that_fit", "weight_bytes", "load_llava", "token_labels",
    "lens_logits", "entropy_bits", "jsd_bits", "top_k_of", "rank_of", "encode_prompts",
    "run_and_capture", "run_prefix", "run_prompt", "read_positions", "read_image", "keep_prefix",
    "grey_image", "read_control", "crop_as_jpeg", "check_last_layer", "describe_run", "read_images",
]  # fmt: skip

HEADROOM = 2**30  # bytes that reading needs on a GPU beside the weights
# In bits. Entropies in float32 leave 2e-6; logits that are rounded otherwise by one unit in the
# last place of float16 leave up to 2e-4.
LAST_LAYER_TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
SLICE = 64  # positions whose distributions are held at once: of a whole image they are 2.5 GB
PIECE = 256  # prompt tokens that are run at once: a bound for the memory of any prompt
IMAGE, PROMPT, ANSWER = range(len(SEGMENTS))


@dataclass(frozen=True)
class Settings:
    """What a run does: the parameters of Make_Analyse that reach the model."""

    model: str  # hub id or folder
    dtype: str = "float16"
    device: str | None = None  # None: see `placement`
    prompts: list[dict] = field(default_factory=list)  # `as_prompts`; empty: `make_prompts`
    per_kind: int = 1
    seed: int = 0
    top_k: int = 10
    max_new_tokens: int = 20
    deadline: float = float("inf")  # `time.monotonic()` at which no image is begun any more


# ---- Loading the model -------------------------------------------------------------------------


def placement(weights: int, free: list[int]):
    """A device_map for `weights` bytes on GPUs with `free` bytes each.

    One GPU if HEADROOM is left there, else all of them, else an error; without a GPU the CPU.
    A P100 or one T4 holds LLaVA-1.5-7B in float16 (13.2 GiB). Raises MemoryError with the numbers.
    """
    if not free:
        return {"": "cpu"}
    largest = max(range(len(free)), key=lambda gpu: free[gpu])
    if weights + HEADROOM <= free[largest]:
        return {"": largest}
    if weights + len(free) * HEADROOM <= sum(free):
        return "balanced"
    raise MemoryError(
        f"The weights take {weights / 2**30:.1f} GiB and reading some {HEADROOM / 2**30:.1f} GiB "
        f"per GPU more, but free are only {' + '.join(f'{one / 2**30:.1f}' for one in free)} GiB: "
        "end what else uses the GPU (restart the kernel), take a larger one, or set device to cpu."
    )


def copies_that_fit(model: str, dtype: str = "float16") -> int:
    """On how many GPUs the whole model has room, at least 1: so many processes can share the
    images. Raises ValueError as `load_llava` does."""
    weights = weight_bytes(_llava_config(model), dtype)
    return max(1, sum(weights + HEADROOM <= gpu["free"] for gpu in probe_gpus()["gpus"]))


def weight_bytes(config, dtype: str) -> int:
    """Bytes of the weights of a LLaVA of this configuration in `dtype`; nothing is allocated."""
    with torch.device("meta"):
        weights = LlavaForConditionalGeneration(config).parameters()
        return sum(weight.numel() for weight in weights) * getattr(torch, dtype).itemsize


def _llava_config(model: str):
    folder = Path(model)
    if not folder.is_dir() and folder.parent.is_dir() and folder.parent != Path("."):
        raise ValueError(
            f"{model!r} is neither a folder nor a hub id: {str(folder.parent)!r} has no "
            f"{folder.name!r} in it."
        )
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{model!r} is neither a folder with a saved LLaVA nor a model that the hub gives out "
            f"here. On Kaggle, turn the internet on under Settings. ({error})"
        ) from error
    require(
        config.model_type == "llava",
        f"{model!r} is a {config.model_type!r} model, not a LLaVA-1.5: try "
        "llava-hf/llava-1.5-7b-hf.",
    )
    return config


def load_llava(model, dtype: str = "float16", device: str | None = None):
    """`(bridge, processor)` of a LLaVA-1.5 given as a hub id or a local folder.

    The weights are loaded once, in `dtype`, straight to `device` (default: see `placement`); the
    TransformerBridge shares them. Raises ValueError if `model` is no LLaVA, MemoryError, before
    anything large is downloaded, if it has no room.
    """
    model = str(model)
    require(
        dtype in LAST_LAYER_TOLERANCE,
        f"dtype is {dtype!r}: it must be one of {', '.join(LAST_LAYER_TOLERANCE)}.",
    )
    weights = weight_bytes(_llava_config(model), dtype)
    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]
    if on_kaggle() and not free and not device:
        raise RuntimeError(
            "torch sees no GPU: restart the kernel and run all cells from the top, or set device "
            "to cpu if that is meant."
        )
    hf_model = LlavaForConditionalGeneration.from_pretrained(
        model,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        device_map={"": device} if device else placement(weights, free),
    )
    # The PIL processor everywhere: torchvision's, taken where it is installed, gives slightly
    # other pixels.
    processor = AutoProcessor.from_pretrained(model, backend="pil")
    bridge = TransformerBridge.boot_transformers(
        model,
        hf_model=hf_model,
        tokenizer=processor.tokenizer,
        dtype=getattr(torch, dtype),
        # Without it the bridge takes a GPU for the model's device wherever there is one.
        device=hf_model.get_input_embeddings().weight.device,
    )
    return bridge.eval(), processor


def token_labels(tokenizer, d_vocab: int) -> list[str]:
    """One label per row of the unembedding: the token as the vocabulary spells it (`▁dog` is not
    `dog`).

    Rows past the tokenizer's last token (LLaVA-1.5: 32,002 to 32,063) are named `<rowN>`.
    """
    labels = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))[:d_vocab]
    return labels + [f"<row{row}>" for row in range(len(labels), d_vocab)]


# ---- The lens ----------------------------------------------------------------------------------


def lens_logits(bridge, resid):
    """Logit lens: logits `[pos, d_vocab]` in float32 of a residual stream `[pos, d_model]`.

    Norm and unembedding run in the model's dtype; the softmax of the result is the distribution.
    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    return bridge.unembed(bridge.ln_final(resid[None]))[0].float()


def entropy_bits(p):
    """Entropy `[...]` in bits of the distributions `p` `[..., d_vocab]`."""
    # Four times faster than torch.special.entr on a CPU; the clamp makes 0 log 0 = 0.
    return p.clamp_min(torch.finfo(p.dtype).tiny).log_().mul_(p).sum(-1) / -np.log(2)


def jsd_bits(p, q, entropy_p=None, entropy_q=None):
    """Jensen-Shannon divergence `[...]` in bits (0 ... 1) of `p` and `q` `[..., d_vocab]`.

    H(m) - H(p)/2 - H(q)/2 with m = (p + q)/2: the divergence, not its square root (the distance).
    Entropies that are known already can be given. Source: Lin, "Divergence measures based on the
    Shannon entropy" (1991).
    """
    entropy_p = entropy_bits(p) if entropy_p is None else entropy_p
    entropy_q = entropy_bits(q) if entropy_q is None else entropy_q
    # The clamp removes rounding only: a difference of entropies of some 15 bits in float32.
    return (entropy_bits(p.lerp(q, 0.5)) - (entropy_p + entropy_q) / 2).clamp(0, 1)


def top_k_of(p, k: int):
    """`p.topk(k)` of `p` `[pos, d_vocab]`, exactly, and over ten times faster on a CPU.

    It searches only the `k` blocks of 64 tokens with the largest maxima.
    """
    n_pos, d_vocab = p.shape
    if d_vocab % 64 or d_vocab // 64 <= k:
        return p.topk(k)
    blocks = p.view(n_pos, -1, 64)
    chosen = blocks.amax(-1).topk(k).indices
    values, within = blocks.gather(1, chosen[:, :, None].expand(-1, -1, 64)).flatten(1).topk(k)
    return values, chosen.gather(1, within // 64) * 64 + within % 64


def rank_of(p, prob):
    """Rank `[pos]` (1 = top) of a token with the probability `prob` `[pos, 1]` in `p`
    `[pos, d_vocab]`."""
    # As bytes: torch sums booleans slowly on a CPU.
    return (p > prob).view(torch.int8).sum(-1, dtype=torch.int32) + 1


# ---- Running the model -------------------------------------------------------------------------


def encode_prompts(processor, image: Image.Image, questions: list[str]):
    """`(pixel_values [1, 3, height, width], [input ids [pos] per question])`.

    The image is processed once; each prompt is tokenised whole, with `<s>` in front and as many
    `<image>` as there are patches, as the processor would do once per prompt.
    """
    pixel_values = processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
    height, width = pixel_values.shape[-2:]
    n_patches = height // processor.patch_size * (width // processor.patch_size)
    patches = processor.image_token * n_patches
    texts = [CHAT.format(question=question).replace("<image>", patches) for question in questions]
    sequences = [torch.tensor(processor.tokenizer(text)["input_ids"]) for text in texts]
    bos = processor.tokenizer.bos_token_id
    assert all(sequence[0] == bos for sequence in sequences), "the tokenizer left out <s>"
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
        _raise_not_finite("the logits" if layer > n_layers else where)
    return residuals, logits


def _raise_not_finite(where: str):
    raise FloatingPointError(f"NaN or infinity in {where}: try dtype float32.")


def _image_span(bridge, input_ids) -> tuple[int, int]:
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
    first, end = _image_span(bridge, input_ids)
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
        _raise_not_finite(f"the lens's logits, first at layer {broken[0]} of {n_layers}")
    id_type = np.min_scalar_type(d_vocab)  # uint16 for LLaVA-1.5
    return arrays | {name: arrays[name].astype(id_type) for name in ("top_ids", "target_rank")}


def read_image(
    bridge, processor, image: Image.Image, prompts: list[dict], settings: Settings, words=()
) -> tuple[dict, np.ndarray]:
    """`(record, mean_probability)` of one image (RGB) with its prompts, as plain values.

    The prefix up to the last image token runs once; each prompt and its greedy answer go on from
    its key-value cache. A reading is about the token that comes next. Answer positions hold the
    answer's tokens fed back as input, so the first answer token is read at the prompt's last
    position. The record has RECORD's fields but `name` and `objects`; `words` are those of
    `lens_data.words_to_watch`. `mean_probability` `[segment, layer, d_vocab]`, float32, is over the
    segment's positions, NaN where it has none.

    Raises ValueError for `top_k` outside 1 ... d_vocab, for no prompt or new token and for a prompt
    beyond the model's context; FloatingPointError for NaN or infinity.
    """
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
            prompt_ids = sequence[_image_span(bridge, sequence)[1] :]
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
    return record, mean.cpu().numpy()


def _check_request(bridge, sequences: list, settings: Settings) -> None:
    d_vocab, new = bridge.cfg.d_vocab, settings.max_new_tokens
    require(
        1 <= settings.top_k <= d_vocab,
        f"top_k is {settings.top_k}: it must be from 1 to the vocabulary's {d_vocab}.",
    )
    require(
        new >= 1 and sequences,
        f"max_new_tokens is {new} and there are {len(sequences)} prompts: there must be one at "
        "least of each.",
    )
    longest = max(map(len, sequences)) + new
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

    Returns PROMPT's `token_ids`, `n_prompt`, `answer_ids` and `readings`.
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
    return [(layer.keys.cpu(), layer.values.cpu(), layer.keys.device) for layer in cache.layers]


def grey_image(processor) -> Image.Image:
    """A plain grey image of the size of the crop, the control's."""
    crop = processor.image_processor.crop_size
    return Image.new("RGB", (crop["width"], crop["height"]), (128, 128, 128))


def read_control(bridge, prefix: list[tuple], prompts: list[dict]) -> list[dict]:
    """Control: the same prompts after the prefix of another image (`keep_prefix`).

    Per prompt of a record `target_prob` and `target_rank` `[layer]` of the first token of the
    answer that it got with its own image, read at the prompt's last position. Raises
    FloatingPointError for NaN or infinity.
    """
    controls, cache = [], DynamicCache()
    with torch.inference_mode():
        for layer, (keys, values, device) in enumerate(prefix):
            cache.update(keys.to(device), values.to(device), layer)
        for prompt in prompts:
            ids = torch.tensor(prompt["token_ids"][: prompt["n_prompt"]])
            *_, (_, residuals, _) = run_prompt(bridge, cache, ids, max_new_tokens=1)
            cache.crop(-len(ids))
            logits = lens_logits(bridge, torch.cat([resid[-1:] for resid in residuals]))
            if not logits.isfinite().all():
                _raise_not_finite("the lens's logits with the control's image")
            p = logits.softmax(-1)  # [layer, d_vocab]
            prob = p[:, prompt["answer_ids"][:1]]
            rank_type = np.min_scalar_type(bridge.cfg.d_vocab)
            controls.append({
                "target_prob": prob[:, 0].cpu().numpy(),
                "target_rank": rank_of(p, prob).cpu().numpy().astype(rank_type),
            })  # fmt: skip
    return controls


def crop_as_jpeg(pixel_values: np.ndarray, image_processor) -> np.ndarray:
    """The image as the model saw it, from the model's own input `[3, height, width]`: the bytes of
    a JPEG."""
    mean, std = image_processor.image_mean, image_processor.image_std
    pixels = (pixel_values.transpose(1, 2, 0) * std + mean) * 255
    jpeg = io.BytesIO()
    image = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    image.save(jpeg, "JPEG", quality=90)
    return np.frombuffer(jpeg.getvalue(), np.uint8)


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


def describe_run(bridge, processor, settings: Settings, last_layer_jsd: float) -> dict:
    """RUN: all that is needed to read the records without the model or its tokenizer."""
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
        "per_kind": int(settings.per_kind),
        "seed": int(settings.seed),
        "top_k": int(settings.top_k),
        "max_new_tokens": int(settings.max_new_tokens),
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
    none waits for another. An image that can't be read is skipped by name. Raises ValueError if no
    image can be opened, and what `load_llava`, `check_last_layer` and `Results.begin` raise.
    """
    # The state would else be that of a run before, in this process or in the one that launched it.
    PartialState._reset_state()
    state = PartialState(cpu=settings.device == "cpu")
    # Not split_between_processes: before accelerate 1.15 it gives the last image to two processes
    # where there are fewer images than processes.
    share = dict(list(image_paths.items())[state.process_index :: state.num_processes])
    # After the split, so that it does not depend on how far another process is.
    share = Results(folder).left(share)
    device = str(state.device) if state.num_processes > 1 else settings.device
    bridge, processor = load_llava(settings.model, settings.dtype, device)
    together = f", in {state.num_processes} processes" * (state.num_processes > 1)
    state.print(
        f"{settings.model}: {bridge.cfg.n_layers} layers, d_model {bridge.cfg.d_model}, vocabulary "
        f"{bridge.cfg.d_vocab:,}, {bridge.cfg.dtype} on {bridge.W_U.device}{together}"
    )
    run = describe_run(bridge, processor, settings, last_layer_jsd=0.0)  # not known yet
    Results(folder).refuse_another(run)
    grey = keep_prefix(bridge, processor, grey_image(processor)) if share else None

    def check_lens(path) -> dict:
        """`run` with the result of the check on this image."""
        largest = check_last_layer(bridge, processor, open_image(path))
        state.print(
            f"largest JSD between the lens at the last layer and the model's output: {largest:.2g} "
            f"{UNIT} (allowed: {LAST_LAYER_TOLERANCE[settings.dtype]:g})"
        )
        return {**run, "last_layer_jsd": largest}

    def read_one(name, path) -> tuple[dict, np.ndarray]:
        """The whole record of one image, and its mean probability."""
        found = annotations.get(name, [])
        image = open_image(path, found[0]["image_size"] if found else None)
        objects = objects_in_crop(found, image.size, processor.image_processor)
        seed = f"{settings.seed} {name}"
        prompts = settings.prompts or make_prompts(objects, categories, seed, settings.per_kind)
        words = words_to_watch(processor.tokenizer, objects, categories, prompts, seed)
        record, mean = read_image(bridge, processor, image, prompts, settings, words)
        controls = read_control(bridge, grey, record["prompts"])
        for prompt, control in zip(record["prompts"], controls, strict=True):
            prompt["grey"] = control
        digests = digests_of(path, found)
        return {"name": name, **digests, "objects": objects, **record}, mean

    _read_share(share, check_lens, read_one, Results(folder), settings.deadline)
    state.destroy_process_group()


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
