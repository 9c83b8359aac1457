"""LLaVA and the logit lens: loading the model, running it, reading a residual stream.

This module and `lens_read` are the only ones that import torch. It knows nothing of images on disk,
of records, tables or figures. By hand, with both, the top-5 tokens at layer 6 of the position where
the answer is said:

    bridge, processor = load_llava("demo/model")
    image = open_image("demo/scenes/scene_00.png")
    prompts = as_prompts(["What color is the heart?"])
    record, _ = read_image(bridge, processor, image, prompts, Settings("demo/model", top_k=5))
    prompt, labels = record["prompts"][0], token_labels(processor.tokenizer, bridge.cfg.d_vocab)
    ids = prompt["readings"]["top_ids"][6, prompt["n_prompt"] - 1]  # [layer, pos, k], layer 0 = emb
    [labels[i] for i in ids]
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path

# As in lens_kaggle, for whoever imports this one first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformer_lens.model_bridge import TransformerBridge  # noqa: E402
from transformers import AutoConfig, AutoProcessor, DynamicCache, LlavaForConditionalGeneration  # noqa: E402

from lens_format import require  # noqa: E402
from lens_kaggle import on_kaggle, probe_gpus  # noqa: E402
from lens_prompts import CHAT  # noqa: E402

__all__ = [
    "Settings", "placement", "copies_that_fit", "weight_bytes", "load_llava", "token_labels",
    "lens_logits", "entropy_bits", "jsd_bits", "top_k_of", "rank_of", "encode_prompts",
    "spelled_alike", "run_and_capture", "run_prefix", "run_prompt",
]  # fmt: skip

HEADROOM = 2**30  # bytes that reading needs on a GPU beside the weights
# In bits. Entropies in float32 leave 2e-6; logits that are rounded otherwise by one unit in the
# last place of float16 leave up to 2e-4.
LAST_LAYER_TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
PIECE = 256  # prompt tokens that are run at once: a bound for the memory of any prompt


@dataclass(frozen=True)
class Settings:
    """What a run does: the parameters of Make_Analyse that reach the model.

    Raises ValueError, which names the parameter, for one that can't be used.
    """

    model: str  # hub id or folder
    dtype: str = "float16"
    device: str | None = None  # None: see `placement`
    prompts: list[dict] = field(default_factory=list)  # `as_prompts`; empty: `make_prompts`
    per_kind: int = 1
    seed: int = 0
    top_k: int = 10
    max_new_tokens: int = 20
    knockout: bool = True
    knockout_width: float = 9 / 32  # of a window, as a share of the blocks
    deadline: float = float("inf")  # `time.monotonic()` at which no image is begun any more

    def __post_init__(self):
        for name in ("per_kind", "top_k", "max_new_tokens", "seed"):
            if isinstance(value := getattr(self, name), np.integer):  # could not be saved
                object.__setattr__(self, name, int(value))
        for name in ("per_kind", "top_k", "max_new_tokens"):
            value = getattr(self, name)
            is_count = type(value) is int and value >= 1
            require(is_count, f"{name} is {value!r}: it must be a whole number of 1 or more.")
        require(type(self.seed) is int, f"seed is {self.seed!r}: it must be a whole number.")
        _check_dtype(self.dtype)
        if self.device not in (None, "cpu"):
            n_gpus = len(probe_gpus()["gpus"])
            there = ["cuda"] * (n_gpus > 0) + [f"cuda:{gpu}" for gpu in range(n_gpus)]
            sees = f"device is {self.device!r}, and torch sees {n_gpus} GPUs here"
            require(self.device in there, f"{sees}: set it to one of {['None', 'cpu', *there]}.")


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


def _check_dtype(dtype: str) -> None:
    known = ", ".join(LAST_LAYER_TOLERANCE)
    require(dtype in LAST_LAYER_TOLERANCE, f"dtype is {dtype!r}: it must be one of {known}.")


def load_llava(model, dtype: str = "float16", device: str | None = None):
    """`(bridge, processor)` of a LLaVA-1.5 given as a hub id or a local folder.

    The weights are loaded once, in `dtype`, straight to `device` (default: see `placement`); the
    TransformerBridge shares them. Raises ValueError if `model` is no LLaVA, MemoryError, before
    anything large is downloaded, if it has no room.
    """
    model = str(model)
    _check_dtype(dtype)
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


def spelled_alike(labels: list[str]) -> list[int]:
    """For each token the first of those that spell the same word: `▁red`, `▁Red`, `red` and `Red`
    differ in the leading space and in the capital alone."""
    first = {}
    return [first.setdefault(_word_of(label), token_id) for token_id, label in enumerate(labels)]


def _word_of(label: str) -> str:
    letters = label.removeprefix("▁")
    is_word = letters.isalpha() and letters in (letters.lower(), letters.capitalize())
    return letters.lower() if is_word else label


@lru_cache(maxsize=1)
def labels_and_words(tokenizer, d_vocab: int) -> tuple[list[str], list[int]]:
    labels = token_labels(tokenizer, d_vocab)
    return labels, spelled_alike(labels)


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
