"""Load a LLaVA and its TransformerBridge."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import infer_auto_device_map, init_empty_weights
from accelerate.utils import compute_module_sizes
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, PretrainedConfig

from llava_lens.kaggle import PIP_4BIT, on_kaggle
from llava_lens.kinds import DEFAULT_KINDS, MADE_KINDS, question_of
from llava_lens.model.lens import LAST_LAYER_TOLERANCE
from llava_lens.model.run import encode_prompts, has_template, patches_along
from llava_lens.text import check_number, require

NUMBERS = ["per_kind", "top_k", "max_new_tokens", "seed"]  # of Settings
HEADROOM = 5 * 2**28  # bytes that reading needs on a GPU beside the weights
TEXT_MODELS = ["llama", "mistral", "qwen2"]  # tests read each of them
VISION_TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # with their class tokens
READABLE = (
    f"what can be read is model_type llava with a text model of {', '.join(TEXT_MODELS)} and a "
    f"vision tower of {' or '.join(VISION_TOWERS)}, as llava-hf/llava-1.5-7b-hf"
)
# Of transformers, for the blocks alone: the unembedding stays exact, what sees the image is small.
IN_4BIT = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
IN_4BIT["llm_int8_skip_modules"] = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]


@dataclass(frozen=True)
class Settings:
    """What a run does: the parameters of Make_Analyse that reach the model. Raises ValueError,
    which names the parameter, for one that can't be used."""

    model: str  # hub id or folder
    dtype: str = "float16"
    device: str | None = None  # None: see `device_map_for`
    prompts: list[dict] = field(default_factory=list)  # `as_prompts`; empty: `make_prompts`
    kinds: list[str] = field(default_factory=lambda: list(DEFAULT_KINDS))  # of `make_prompts`
    per_kind: int = 1
    seed: int = 0
    top_k: int = 10
    max_new_tokens: int = 20
    embedding_lens: bool = True
    knockout: bool = True
    route: bool = True
    quantize: str | None = None  # "4bit": nf4 of bitsandbytes, which computes in `dtype`
    deadline: float = float("inf")  # `time.monotonic()` after which no image is begun

    def __post_init__(self):
        for name in NUMBERS:
            value = getattr(self, name)
            check_number(name, value, None if name == "seed" else 1)
            object.__setattr__(self, name, int(value))  # NumPy's could not be saved
        for name in ("embedding_lens", "knockout", "route"):
            value = getattr(self, name)
            require(isinstance(value, bool), f"{name} is {value!r}: it must be True or False.")
        fits = isinstance(self.kinds, (list, tuple)) and len(self.kinds) > 0
        fits, known = fits and all(kind in MADE_KINDS for kind in self.kinds), ", ".join(MADE_KINDS)
        require(fits, f"kinds is {self.kinds!r}: it must be a list of some of {known}.")
        fits, known = self.dtype in LAST_LAYER_TOLERANCE, ", ".join(LAST_LAYER_TOLERANCE)
        require(fits, f"dtype is {self.dtype!r}: it must be one of {known}.")
        wrong = f"quantize is {self.quantize!r}: it must be None or '4bit'."
        require(self.quantize in (None, "4bit"), wrong)
        missing = f"quantize needs bitsandbytes: pip install {PIP_4BIT[0]}, then restart."
        require(not self.quantize or find_spec("bitsandbytes"), missing)


def _empty_llava(config: LlavaConfig, dtype: str, quantize: str | None) -> tuple:
    """A LLaVA without memory for its weights, and how many bytes they would take."""
    with init_empty_weights():
        empty = LlavaForConditionalGeneration(config)
    empty.tie_weights()
    for layer in empty.model.language_model.modules() if quantize else ():
        if isinstance(layer, torch.nn.Linear):
            # nf4 stores two weights in a byte, and a scale in float32 for each 64 of them.
            n_bytes = layer.weight.numel() // 64 * (32 + 4)
            packed = torch.empty(n_bytes, dtype=torch.uint8, device="meta")
            layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    return empty, compute_module_sizes(empty, getattr(torch, dtype))[""]


def device_map_for(config, dtype: str, free: list[int], quantize: str | None) -> dict:
    """Where a LLaVA's modules go, on GPUs with `free` bytes each; nothing is allocated.

    All go to one GPU if HEADROOM is left there, else over all GPUs; without a GPU to the CPU. One
    T4 holds LLaVA-1.5-7B in float16 (13.2 GiB). Raises MemoryError if there is no room.
    """
    if not free:
        return {"": "cpu"}
    empty, weights = _empty_llava(config, dtype, quantize)
    if weights + HEADROOM <= max(free):
        return {"": free.index(max(free))}
    room = {gpu: max(0, int(one) - HEADROOM) for gpu, one in enumerate(free)}
    # No block is divided. accelerate names the disk for what no GPU holds.
    spread = infer_auto_device_map(empty, room, empty._no_split_modules, getattr(torch, dtype))
    if "disk" not in spread.values():
        return spread
    needed, more, *free = (f"{one / 2**30:.1f}" for one in (weights, HEADROOM, *free))
    smaller = "" if quantize else "set quantize to 4bit, "
    raise MemoryError(
        f"The weights take {needed} GiB, and reading some {more} GiB more per GPU, but free are "
        f"only {' + '.join(free)} GiB: end what else uses the GPU (restart the kernel), take a "
        f"larger one, {smaller}or set device to cpu."
    )


def copies_that_fit(settings: Settings, gpus: list[dict]) -> int:
    """How many processes can share the images: on so many of `gpus` (`kaggle.probe_gpus`) the model
    has room; at least 1. Raises ValueError as `load_llava` does."""
    config = _llava_config(settings.model)
    _, weights = _empty_llava(config, settings.dtype, settings.quantize)
    return max(1, sum(weights + HEADROOM <= gpu["free"] for gpu in gpus))


def _llava_config(model: str) -> LlavaConfig:
    """The configuration of a LLaVA. Raises ValueError with the remedy if it can't be read."""
    folder = Path(model)
    if not folder.is_dir() and folder.parent.is_dir() and folder.parent != Path("."):
        none = f"{str(folder.parent)!r} has no {folder.name!r} in it"
        raise ValueError(f"{model!r} is neither a folder nor a hub id: {none}.")
    try:
        config, _ = PretrainedConfig.get_config_dict(model)
        require(config, "there is no config.json")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{model!r} is neither a folder with a saved LLaVA nor a model that the hub gives out "
            f"here. On Kaggle, turn the internet on under Settings. ({error})"
        ) from error
    kind = str(config.get("model_type"))
    size = "13b" if config.get("hidden_size") == 5120 else "7b"
    require(
        not any(key.startswith("mm_") for key in config),  # as mm_vision_tower
        f"{model!r} is in the format of the original LLaVA, which transformers can't load: take "
        f"the same model as llava-hf/llava-1.5-{size}-hf.",
    )
    require(kind == "llava", f"{model!r} is a {kind!r} model, but {READABLE}.")
    # LlavaConfig would fill what is missing with the defaults of a 7B.
    missing = [part for part in ("text_config", "vision_config") if not config.get(part)]
    require(
        not missing,
        f"config.json of {model!r} has no {' and no '.join(missing)}, so the model's shape is not "
        "known: take llava-hf/llava-1.5-7b-hf, or mend the file.",
    )
    try:
        config = LlavaConfig.from_pretrained(model)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"config.json of {model!r} can't be read: {error}") from error
    text, vision = config.text_config.model_type, config.vision_config.model_type
    has = f"{model!r} has a {text!r} text model and a {vision!r} vision tower"
    require(text in TEXT_MODELS and vision in VISION_TOWERS, f"{has}, but {READABLE}.")
    depth, chosen = config.vision_config.num_hidden_layers, config.vision_feature_layer
    layers = [chosen] if isinstance(chosen, int) else chosen
    there = f"{model!r} has layers {-depth - 1} to {depth} in its vision tower"
    wrong = f"vision_feature_layer {chosen} in its config.json: set it as the model was trained"
    known = layers and all(-depth - 1 <= layer <= depth for layer in layers)
    require(known, f"{there}, and {wrong}.")
    return config


def n_features_of(config: LlavaConfig) -> int:
    """How many features a LLaVA makes of an image: of each patch and of the class token, of which
    "default" leaves out the first."""
    n_left_out = config.vision_feature_select_strategy == "default"
    n_class_tokens = VISION_TOWERS[config.vision_config.model_type]
    return n_class_tokens + patches_along(config)[0] ** 2 - n_left_out


def grey_image(width: int, height: int | None = None) -> Image.Image:
    return Image.new("RGB", (width, height or width), (128, 128, 128))


def load_processor(model: str, config: LlavaConfig):
    """The processor of a LLaVA, tried on a grey image before any weights are loaded.

    What its files leave out comes from the model's own `config`: the size of a patch, the class
    token, the image token, and `<s>` where there is no chat template. Raises ValueError if there
    is none, or if what it gives doesn't fit the model.
    """
    side, n_features = config.vision_config.image_size, n_features_of(config)
    n_patches = patches_along(config)[0] ** 2
    try:
        # The PIL processor everywhere: torchvision's, taken where it is installed, gives slightly
        # other pixels.
        processor = AutoProcessor.from_pretrained(model, backend="pil")
        tokenizer = processor.tokenizer
        processor.patch_size = processor.patch_size or config.vision_config.patch_size
        if not processor.vision_feature_select_strategy:
            processor.num_additional_image_tokens = n_features - n_patches
        processor.image_token_id = config.image_token_id
        processor.image_token = tokenizer.convert_ids_to_tokens(config.image_token_id)
        if tokenizer.bos_token_id is None and not has_template(processor):
            tokenizer.bos_token_id = config.text_config.bos_token_id
        # A wide image: what neither crops nor pads it makes no square of it.
        wide = grey_image(2 * side, side)
        pixels, (ids,) = encode_prompts(processor, wide, [question_of("description")])
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(
            f"The processor of {model!r} can't be used: its files for images and tokens "
            f"(processor_config.json, tokenizer.json and others) are missing or damaged. Take them "
            f"from the model that it was made from, as llava-hf/llava-1.5-7b-hf. ({error})"
        ) from error
    (height, width), n_tokens = pixels.shape[-2:], int((ids == config.image_token_id).sum())
    n_ids, n_rows = int(ids.max()) + 1, config.text_config.vocab_size
    misfit = f"The processor of {model!r} doesn't fit the model"
    require(
        height == width == side and n_tokens == n_features,
        f"{misfit}: it gives {width} x {height} pixels and {n_tokens} image tokens, where the "
        f"model takes {side} x {side} pixels and makes {n_features} features of them.",
    )
    # With a class token, which comes first, there is one more.
    require(
        n_features - n_patches in (0, 1),
        f"{model!r} makes {n_features} features of {n_patches} patches, so it is not known which "
        "patch each is of: is vision_feature_select_strategy in config.json right?",
    )
    ids_up_to = f"its tokenizer has ids up to {n_ids - 1}, and the model {n_rows} rows"
    require(n_ids <= n_rows, f"{misfit}: {ids_up_to}.")
    return processor


def _load_weights(model: str, **options) -> LlavaForConditionalGeneration:
    """The model. Weights that are missing or of another shape raise ValueError with their names;
    those that the model has no place for are printed."""
    # transformers fills what is missing with random numbers; TransformerLens silences its report.
    try:
        options |= dict(attn_implementation="eager", output_loading_info=True)
        hf_model, report = LlavaForConditionalGeneration.from_pretrained(
            model, ignore_mismatched_sizes=True, **options
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The weights of {model!r} can't be read: {error}") from error
    mismatched = [name for name, *_ in report["mismatched_keys"]]
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


def load_llava(model, dtype="float16", device: str | None = None, quantize: str | None = None):
    """`(bridge, processor)` of a LLaVA given as a hub id or a local folder.

    The weights are loaded once, to `device` (default: `device_map_for`). With `quantize` "4bit" the
    blocks' weights are stored in nf4 (Dettmers et al., arXiv 2305.14314). Raises ValueError if
    `model` is no LLaVA or lacks weights, MemoryError if it has no room; config, processor and room
    are checked before the weights are downloaded.
    """
    model = str(model)
    config = _llava_config(model)
    require(
        not hasattr(config, "quantization_config"),
        f"The weights of {model!r} are stored in fewer bits already, and perhaps the unembedding "
        "too: take the checkpoint that they were made from, and set quantize to 4bit.",
    )
    processor = load_processor(model, config)
    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]
    if on_kaggle() and not free and not device:
        remedy = "restart the kernel and run all cells from the top, or set device to cpu"
        raise RuntimeError(f"torch sees no GPU: {remedy} if that is meant.")
    device_map = {"": device} if device else device_map_for(config, dtype, free, quantize)
    options = dict(dtype=getattr(torch, dtype), device_map=device_map)
    if quantize:
        options["quantization_config"] = IN_4BIT | {"bnb_4bit_compute_dtype": dtype}
    hf_model = _load_weights(model, **options)
    for layer in hf_model.modules():  # bitsandbytes would compute in bfloat16 on some CPUs
        layer.support_avx512bf16_for_cpu = False
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
    for block in bridge.blocks:
        block.attn.register_forward_pre_hook(_name_the_cache, with_kwargs=True)
    return bridge.eval(), processor


def _name_the_cache(attention, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """TransformerLens 4.3 looks for the cache under the name that transformers gave it before
    5.24."""
    if "cache" in kwargs:
        kwargs["past_key_values"] = kwargs.pop("cache")
    return args, kwargs


_KEPT: dict[tuple, tuple] = {}  # the one model of this process, by what it was loaded with


def load_once(model: str, dtype: str, device: str | None, quantize: str | None):
    """What `load_llava` returns, kept in this process until another model is asked for."""
    wanted = model, dtype, device, quantize
    if wanted not in _KEPT:
        _KEPT.clear()  # first, because a GPU has no room for two
        _KEPT[wanted] = load_llava(*wanted)
    return _KEPT[wanted]
