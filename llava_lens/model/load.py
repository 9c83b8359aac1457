"""Load a LLaVA and its TransformerBridge."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

from llava_lens.kaggle import on_kaggle, probe_gpus
from llava_lens.kinds import DEFAULT_KINDS, MADE_KINDS
from llava_lens.model.lens import LAST_LAYER_TOLERANCE
from llava_lens.text import require

HEADROOM = 2**30  # bytes that reading needs on a GPU beside the weights


@dataclass(frozen=True)
class Settings:
    """What a run does: the parameters of Make_Analyse that reach the model.

    Raises ValueError, which names the parameter, for one that can't be used.
    """

    model: str  # hub id or folder
    dtype: str = "float16"
    device: str | None = None  # None: see `placement`
    prompts: list[dict] = field(default_factory=list)  # `as_prompts`; empty: `make_prompts`
    kinds: list[str] = field(default_factory=lambda: list(DEFAULT_KINDS))  # of `make_prompts`
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
        is_list = isinstance(self.kinds, (list, tuple)) and len(self.kinds) > 0
        known = f"a list of some of {', '.join(MADE_KINDS)}"
        require(
            is_list and all(kind in MADE_KINDS for kind in self.kinds),
            f"kinds is {self.kinds!r}: it must be {known}.",
        )
        require(type(self.seed) is int, f"seed is {self.seed!r}: it must be a whole number.")
        _check_dtype(self.dtype)
        if self.device not in (None, "cpu"):
            n_gpus = len(probe_gpus()["gpus"])
            there = ["cuda"] * (n_gpus > 0) + [f"cuda:{gpu}" for gpu in range(n_gpus)]
            sees = f"device is {self.device!r}, and torch sees {n_gpus} GPUs here"
            require(self.device in there, f"{sees}: set it to one of {['None', 'cpu', *there]}.")


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
