"""Load a LLaVA and its TransformerBridge."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import infer_auto_device_map, init_empty_weights
from accelerate.utils import compute_module_sizes
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, PretrainedConfig

from llava_lens.kaggle import on_kaggle, probe_gpus
from llava_lens.kinds import DEFAULT_KINDS, MADE_KINDS, question_of
from llava_lens.model.lens import LAST_LAYER_TOLERANCE
from llava_lens.model.run import encode_prompts
from llava_lens.text import require

HEADROOM = 5 * 2**28  # bytes that reading needs on a GPU beside the weights


@dataclass(frozen=True)
class Settings:
    """What a run does: the parameters of Make_Analyse that reach the model.

    Raises ValueError, which names the parameter, for one that can't be used.
    """

    model: str  # hub id or folder
    dtype: str = "float16"
    device: str | None = None  # None: see `device_map_for`
    prompts: list[dict] = field(default_factory=list)  # `as_prompts`; empty: `make_prompts`
    kinds: list[str] = field(default_factory=lambda: list(DEFAULT_KINDS))  # of `make_prompts`
    per_kind: int = 1
    seed: int = 0
    top_k: int = 10
    max_new_tokens: int = 20
    knockout: bool = True
    knockout_width: float = 9 / 32  # of a window, as a share of the blocks
    route: bool = True
    deadline: float = float("inf")  # `time.monotonic()` after which no image is begun

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
            usable = ["cuda"] * (n_gpus > 0) + [f"cuda:{gpu}" for gpu in range(n_gpus)]
            sees = f"device is {self.device!r}, and torch sees {n_gpus} GPUs here"
            require(self.device in usable, f"{sees}: set it to one of {['None', 'cpu', *usable]}.")


def _check_dtype(dtype: str) -> None:
    known = ", ".join(LAST_LAYER_TOLERANCE)
    require(dtype in LAST_LAYER_TOLERANCE, f"dtype is {dtype!r}: it must be one of {known}.")


def _empty_llava(config: LlavaConfig, dtype: str) -> tuple[LlavaForConditionalGeneration, int]:
    """A LLaVA without memory for its weights, and how many bytes they would take."""
    with init_empty_weights():
        empty = LlavaForConditionalGeneration(config)
    empty.tie_weights()
    return empty, compute_module_sizes(empty, getattr(torch, dtype))[""]


def device_map_for(config: LlavaConfig, dtype: str, free: list[int]) -> dict:
    """Where a LLaVA's modules go, on GPUs with `free` bytes each; nothing is allocated.

    All go to one GPU if HEADROOM is left there, else they are spread over all GPUs. Without a GPU
    they go to the CPU. One T4 holds LLaVA-1.5-7B in float16 (13.2 GiB). Raises MemoryError with
    the numbers if there is no room.
    """
    if not free:
        return {"": "cpu"}
    empty, weights = _empty_llava(config, dtype)
    largest = int(np.argmax(free))
    if weights + HEADROOM <= free[largest]:
        return {"": largest}
    room = {gpu: max(0, int(one) - HEADROOM) for gpu, one in enumerate(free)}
    # No block is divided. accelerate names the disk for what no GPU holds.
    spread = infer_auto_device_map(empty, room, empty._no_split_modules, getattr(torch, dtype))
    if "disk" not in spread.values():
        return spread
    raise MemoryError(
        f"The weights take {weights / 2**30:.1f} GiB, and reading some "
        f"{HEADROOM / 2**30:.1f} GiB more per GPU, but free are only "
        f"{' + '.join(f'{one / 2**30:.1f}' for one in free)} GiB: end what else uses the GPU "
        "(restart the kernel), take a larger one, or set device to cpu."
    )


def copies_that_fit(model: str, dtype: str = "float16") -> int:
    """On how many GPUs the whole model has room, at least 1: so many processes can share the
    images. Raises ValueError as `load_llava` does."""
    _, weights = _empty_llava(_llava_config(model), dtype)
    return max(1, sum(weights + HEADROOM <= gpu["free"] for gpu in probe_gpus()["gpus"]))


def _llava_config(model: str) -> LlavaConfig:
    """The configuration of a LLaVA-1.5. Raises ValueError with the remedy if it is none."""
    folder = Path(model)
    if not folder.is_dir() and folder.parent.is_dir() and folder.parent != Path("."):
        raise ValueError(
            f"{model!r} is neither a folder nor a hub id: {str(folder.parent)!r} has no "
            f"{folder.name!r} in it."
        )
    try:
        config, _ = PretrainedConfig.get_config_dict(model)
        require(config, "there is no config.json")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{model!r} is neither a folder with a saved LLaVA nor a model that the hub gives out "
            f"here. On Kaggle, turn the internet on under Settings. ({error})"
        ) from error
    kind, architectures = str(config.get("model_type")), config.get("architectures") or []
    # LlavaConfig takes any keys, and fills what is missing with the defaults of a 7B.
    original = any(key.startswith("mm_") for key in config) or kind.startswith("llava_llama")
    original = original or "LlavaLlamaForCausalLM" in architectures
    size = "13b" if config.get("hidden_size") == 5120 else "7b"
    require(
        not original,
        f"{model!r} is in the format of the original LLaVA, which transformers can't load: take "
        f"the same model as llava-hf/llava-1.5-{size}-hf.",
    )
    require(
        kind == "llava",
        f"{model!r} is a {kind!r} model, not a LLaVA-1.5: try llava-hf/llava-1.5-7b-hf.",
    )
    missing = [part for part in ("text_config", "vision_config") if not config.get(part)]
    require(
        not missing,
        f"config.json of {model!r} has no {' and no '.join(missing)}, so the model's shape is not "
        "known: take llava-hf/llava-1.5-7b-hf, or mend the file.",
    )
    try:
        return LlavaConfig.from_pretrained(model)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"config.json of {model!r} can't be read: {error}") from error


def load_processor(model: str, config: LlavaConfig):
    """The processor of a LLaVA, tried on a grey image before any weights are loaded.

    What its files leave out comes from the model's own `config`: the size of a patch, the image
    token, `<s>`. Raises ValueError if there is none, or if it doesn't fit the model.
    """
    try:
        # The PIL processor everywhere: torchvision's, taken where it is installed, gives slightly
        # other pixels.
        processor = AutoProcessor.from_pretrained(model, backend="pil")
        tokenizer, side = processor.tokenizer, config.vision_config.image_size
        processor.patch_size = processor.patch_size or config.vision_config.patch_size
        processor.image_token = tokenizer.convert_ids_to_tokens(config.image_token_id)
        if tokenizer.bos_token_id is None and config.text_config.bos_token_id is not None:
            tokenizer.bos_token_id = config.text_config.bos_token_id
        grey = Image.new("RGB", (side, side), (128, 128, 128))
        pixels, (ids,) = encode_prompts(processor, grey, [question_of("description")])
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(
            f"The processor of {model!r} can't be used: its files for images and tokens "
            f"(processor_config.json, tokenizer.json and others) are missing or damaged. Take them "
            f"from llava-hf/llava-1.5-7b-hf. ({error})"
        ) from error
    shape, n_patches = tuple(pixels.shape[-2:]), int((ids == config.image_token_id).sum())
    require(
        shape == (side, side) and n_patches == (side // config.vision_config.patch_size) ** 2,
        f"The processor of {model!r} doesn't fit the model: it gives {shape[1]} x {shape[0]} "
        f"pixels and {n_patches} patches, where the model takes {side} x {side} pixels in patches "
        f"of {config.vision_config.patch_size}.",
    )
    most = int(ids.max())
    rows = f"its tokenizer has ids up to {most}, and the model {config.text_config.vocab_size} rows"
    fits = most < config.text_config.vocab_size
    require(fits, f"The processor of {model!r} doesn't fit the model: {rows}.")
    return processor


def _load_weights(model: str, **options) -> LlavaForConditionalGeneration:
    """The model with all of its weights.

    transformers fills what a checkpoint lacks with random numbers, and TransformerLens silences
    its report. So weights that are missing or of another shape raise ValueError with their names;
    those that the model has no place for are printed.
    """
    try:
        hf_model, report = LlavaForConditionalGeneration.from_pretrained(
            model,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The weights of {model!r} can't be read: {error}") from error
    mismatched = [
        name[0] if isinstance(name, tuple) else name for name in report["mismatched_keys"]
    ]
    missing = report["missing_keys"]
    require(
        not missing and not mismatched,
        f"The checkpoint {model!r} lacks {len(missing)} weights; {len(mismatched)} have another "
        f"shape: {_some_of([*missing, *mismatched])}. Download it again, or take another.",
    )
    if unused := report["unexpected_keys"]:
        print(f"{model!r} has {len(unused)} weights that the model doesn't use: {_some_of(unused)}")
    return hf_model


def _some_of(names) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)


def load_llava(model, dtype: str = "float16", device: str | None = None):
    """`(bridge, processor)` of a LLaVA-1.5 given as a hub id or a local folder.

    The weights are loaded once, in `dtype`, straight to `device` (default: see `device_map_for`);
    the TransformerBridge shares them. Raises ValueError if `model` is no LLaVA or lacks weights,
    and MemoryError if it has no room. Config, processor and room are checked before the weights
    are downloaded.
    """
    model = str(model)
    _check_dtype(dtype)
    config = _llava_config(model)
    processor = load_processor(model, config)
    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]
    if on_kaggle() and not free and not device:
        raise RuntimeError(
            "torch sees no GPU: restart the kernel and run all cells from the top, or set device "
            "to cpu if that is meant."
        )
    device_map = {"": device} if device else device_map_for(config, dtype, free)
    hf_model = _load_weights(model, dtype=getattr(torch, dtype), device_map=device_map)
    if hf_model.generation_config.eos_token_id is None:  # without it no answer would end
        hf_model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    bridge = TransformerBridge.boot_transformers(
        model,
        hf_model=hf_model,
        tokenizer=processor.tokenizer,
        dtype=getattr(torch, dtype),
        # Without it the bridge takes a GPU for the model's device wherever there is one.
        device=hf_model.get_input_embeddings().weight.device,
    )
    return bridge.eval(), processor
