"""Loading: what is refused, by name, before anything large is loaded; where the weights go."""

import json
import os
import shutil

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_lens import kinds
from llava_lens.model import load
from llava_lens.model.lens import LAST_LAYER_TOLERANCE
from llava_lens.model.read import check_last_layer
from llava_lens.model.run import chat_of, encode_prompts
from tests.conftest import PROMPTS
from tests.model.conftest import read_image
from tests.model.families import make_family
from tests.model.plain_hf import hf_answer, load_hf


def test_the_model_is_where_its_weights_are(llava_folder, monkeypatch):
    """Also where there is a GPU that is not to be used."""
    monkeypatch.setattr(
        "transformer_lens.model_bridge.sources.transformers.source.get_device", lambda: "cuda"
    )
    assert str(load.load_llava(llava_folder, "float32", "cpu")[0].cfg.device) == "cpu"


def test_without_bitsandbytes_4bit_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    load.Settings("")
    with pytest.raises(ValueError, match="quantize needs bitsandbytes: pip install bitsandbytes=="):
        load.Settings("", quantize="4bit")


def test_in_4_bit_the_lens_is_exact_and_answers_are_those_of_plain_hf(llava_folder, image):
    """Only the blocks are in 4 bit, and they take what placement counts."""
    llava = bridge, _ = load.load_llava(llava_folder, "float32", "cpu", "4bit")
    assert check_last_layer(*llava, image) <= LAST_LAYER_TOLERANCE["float32"]
    hf = load_hf(llava_folder, torch.float32, quantize="4bit")
    for model in bridge.original_model, hf[0]:
        weights = [*model.parameters()]
        packed = [weight.quant_state for weight in weights if hasattr(weight, "quant_state")]
        assert len(packed) == 7 * bridge.cfg.n_layers  # q, k, v, o, gate, up, down
        assert all((one.quant_type, one.dtype) == ("nf4", torch.float32) for one in packed)
    stored = [*weights, *hf[0].buffers(), *(one.absmax for one in packed)]
    _, counted = load._empty_llava(LlavaConfig.from_pretrained(llava_folder), "float32", "4bit")
    assert counted == sum(one.nbytes for one in stored)

    record, _ = read_image(llava, image, PROMPTS, max_new_tokens=6)
    for prompt in record["prompts"]:
        said = hf_answer(hf, image, prompt["question"], max_new_tokens=6)
        assert prompt["answer_ids"].tolist() == said


# ---- Where the weights go -----------------------------------------------------------------------

GIB = 2**30
LLAVA_7B = LlavaConfig(text_config=LlamaConfig(vocab_size=32_064))  # 13.2 GiB in float16
WIDER = dict(hidden_size=5120, intermediate_size=13_824, num_hidden_layers=40)
WIDER |= dict(num_attention_heads=40, vocab_size=32_064)
LLAVA_13B = LlavaConfig(text_config=LlamaConfig(**WIDER))  # 24.9 GiB
GPU_8_GB, T4 = 7.3 * GIB, 14.4 * GIB  # of 8 and 14.56, what is free


@pytest.mark.parametrize(
    "config, quantize, free, device",
    [
        (LLAVA_7B, None, [], "cpu"),
        (LLAVA_7B, None, [3 * GIB, 15.5 * GIB], 1),
        (LLAVA_7B, None, [14.5 * GIB] * 2, 0),
        (LLAVA_7B, "4bit", [GPU_8_GB], 0),
        (LLAVA_13B, "4bit", [T4], 0),
    ],
)
def test_the_whole_model_goes_to_one_gpu_where_it_fits(config, quantize, free, device):
    assert load.device_map_for(config, "float16", free, quantize) == {"": device}


@pytest.mark.parametrize(
    "config, quantize, free",
    [
        (LLAVA_7B, None, [14.0 * GIB] * 2),
        (LLAVA_7B, None, [5 * GIB, 12 * GIB]),
        (LLAVA_13B, None, [T4, T4]),
        (LLAVA_13B, "4bit", [GPU_8_GB, GPU_8_GB]),
    ],
)
def test_else_it_is_spread_and_each_gpu_keeps_room_to_read(config, quantize, free):
    placed = load.device_map_for(config, "float16", free, quantize)
    assert set(placed.values()) == {0, 1}
    with init_empty_weights():
        model = LlavaForConditionalGeneration(config)
    used = [0, 0]
    for name, weight in model.named_parameters():
        (at,) = [gpu for module, gpu in placed.items() if f"{name}.".startswith(f"{module}.")]
        in_4_bit = quantize and ".language_model.layers." in name and weight.ndim == 2
        used[at] += weight.numel() * (0.5 + 4 / 64 if in_4_bit else 2)  # none is left out
    assert all(most + GIB <= room for most, room in zip(used, free, strict=True))
    # A block is never divided: its states would have to cross within it.
    layers = {name.split(".layers.")[1] for name in placed if ".language_model.layers." in name}
    assert all("." not in layer for layer in layers)


@pytest.mark.parametrize(
    "config, quantize, free, message",
    [
        (LLAVA_7B, None, [8 * GIB], r"13\.2 GiB.* free are only 8\.0 GiB.*quantize to 4bit, or"),
        (LLAVA_7B, None, [7 * GIB, 7 * GIB], r"13\.2 GiB.* free are only 7\.0 \+ 7\.0 GiB"),
        (LLAVA_13B, None, [T4], r"24\.9 GiB"),
        (LLAVA_13B, "4bit", [8 * GIB], r"7\.9 GiB.*take a larger one, or set device to cpu"),
    ],
)
def test_no_room_is_said_in_numbers(config, quantize, free, message):
    with pytest.raises(MemoryError, match=message):
        load.device_map_for(config, "float16", free, quantize)


@pytest.mark.parametrize(
    "settings, free, copies",
    [
        ({}, [GIB], 1),
        ({}, [2 * GIB, 0, 2 * GIB], 2),
        (dict(dtype="float16"), [1.25 * GIB + 400_000] * 2, 1),
        (dict(dtype="float16", quantize="4bit"), [1.25 * GIB + 400_000] * 2, 2),
    ],
)
def test_as_many_copies_as_have_room(llava_folder, settings, free, copies):
    gpus = [{"free": one} for one in free]
    settings = load.Settings(str(llava_folder), **{"dtype": "float32"} | settings)
    assert load.copies_that_fit(settings, gpus) == copies


# ---- Checkpoints that lack something ------------------------------------------------------------


@pytest.fixture
def checkpoint(llava_folder, tmp_path):
    """The folder of a copy of the tiny LLaVA."""
    return shutil.copytree(llava_folder, tmp_path / "checkpoint")


def change_json(path, without=(), **changes):
    """Change values of a file and take out others; those of a group within it one by one."""
    values = json.loads(path.read_text())
    for name, new in changes.items():
        is_group = isinstance(new, dict) and isinstance(values.get(name), dict)
        values[name] = values[name] | new if is_group else new
    path.write_text(json.dumps({name: values[name] for name in values if name not in without}))


def change_weights(checkpoint, change):
    path = checkpoint / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def cut_mlp(weights):
    return {name: w[:3] if "layers.2.mlp.up" in name else w for name, w in weights.items()}


def without(part):
    return lambda weights: {name: w for name, w in weights.items() if part not in name}


@pytest.mark.parametrize(
    "change, message",
    [
        (without("projector"), r"lacks 4 weights.*multi_modal_projector\.linear_1\.bias"),
        (without("layers.3.mlp"), r"lacks 3 weights.*layers\.3\.mlp\.down_proj\.weight"),
        (without("lm_head"), r"lacks 1 weights.*lm_head\.weight"),
        (without("vision_tower"), r"lacks .* weights.*and \d+ more"),
        (cut_mlp, r"1 have another shape: \S*layers\.2\.mlp\.up_proj\.weight"),
    ],
)
def test_weights_that_are_missing_or_of_another_shape_are_named(checkpoint, change, message):
    """transformers would fill them with random numbers, in silence."""
    change_weights(checkpoint, change)
    with pytest.raises(ValueError, match=message):
        load.load_llava(checkpoint, "float32", "cpu")


def test_weights_without_a_place_are_told_and_change_nothing(checkpoint, llava, capsys):
    change_weights(checkpoint, lambda weights: {**weights, "value_head.weight": torch.ones(3)})
    bridge, _ = load.load_llava(checkpoint, "float32", "cpu")
    assert "has 1 weights that the model doesn't use: value_head.weight" in capsys.readouterr().out
    for weight, expected in zip(bridge.parameters(), llava[0].parameters(), strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.parametrize("part", [0.5, 0])
def test_weights_that_cannot_be_read_are_refused(checkpoint, part):
    path = checkpoint / "model.safetensors"
    os.truncate(path, int(part * path.stat().st_size)) if part else path.unlink()
    with pytest.raises(ValueError, match=r"weights of '.*checkpoint' can't be read"):
        load.load_llava(checkpoint, "float32", "cpu")


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights fails the test: what is checked must be checked before."""
    loaded = load.LlavaForConditionalGeneration
    monkeypatch.setattr(loaded, "from_pretrained", lambda *_, **__: pytest.fail("they are loaded"))


def of_types(text, vision):
    parts = {"text_config": {"model_type": text}, "vision_config": {"model_type": vision}}
    return {"model_type": "llava", **parts}


ORIGINAL = "format of the original LLaVA.*take the same model as llava-hf/llava-1.5-"


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "llava", "mm_vision_tower": "x", "hidden_size": 4096}, f"{ORIGINAL}7b-hf"),
        ({"model_type": "llava_llama", "mm_a": 1, "hidden_size": 5120}, f"{ORIGINAL}13b-hf"),
        ({"model_type": "llava_mistral", "mm_projector_type": "mlp2x_gelu"}, f"{ORIGINAL}7b-hf"),
        ({}, "neither a folder with a saved LLaVA"),
        ({"model_type": "llama"}, "'llama' model, but what can be read is model_type llava with"),
        ({"model_type": "vipllava"}, "'vipllava' model, but what can be read is model_type"),
        (of_types("phi3", "clip_vision_model"), "has a 'phi3' text model .*text model of llama, m"),
        (of_types("llama", "pixtral"), "a 'pixtral' vision tower, but what .*tower of clip_vision"),
        ({"model_type": "llava"}, "has no text_config and no vision_config"),
        ({"model_type": "llava", "text_config": {}, "vision_config": {"a": 1}}, "no text_config,"),
        ({"model_type": "llava", "text_config": 7, "vision_config": 8}, "can't be read"),
    ],
)
def test_a_config_that_is_no_llavas_is_refused_by_name(tmp_path, no_weights, config, message):
    """Also where the copies are counted, which is done first."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as refused:
        load.load_llava(tmp_path)
    assert str(tmp_path) in str(refused.value)
    with pytest.raises(ValueError, match=message):
        load.copies_that_fit(load.Settings(str(tmp_path)), [])


SMALL = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
CROP_28 = {"image_processor": SMALL, "patch_size": 7}  # as many patches
NO_CROP = {"image_processor": {"do_center_crop": False, "size": {"shortest_edge": 56}}}
FEATURES_16 = "tokens, where the model takes 56 x 56 pixels and makes 16 features"


@pytest.mark.parametrize(
    "file, changes, message",
    [
        ("config", None, "neither a folder with a saved LLaVA"),
        ("config", {"quantization_config": {"load_in_4bit": True}}, "in fewer bits .*set quantize"),
        ("config", {"text_config": {"vocab_size": 300}}, "ids up to .*, and the model 300 rows"),
        # With `full` CLIP's class token is a feature.
        ("config", {"vision_feature_select_strategy": "full"}, "16 image tokens.* 17 features"),
        ("config", {"vision_feature_layer": -5}, "layers -4 to 3 .* vision_feature_layer -5 in"),
        ("config", {"vision_feature_layer": [3, 4]}, r"and vision_feature_layer \[3, 4\] in"),
        ("config", {"vision_feature_layer": []}, r"and vision_feature_layer \[\] in"),
        ("tokenizer", None, "processor of .* can't be used.*Take them from the model that"),
        ("processor_config", None, "processor of .* can't be used.*Take them from the model that"),
        ("processor_config", {"patch_size": 28}, f"56 x 56 pixels and 4 image {FEATURES_16}"),
        ("processor_config", CROP_28, f"28 x 28 pixels and 16 image {FEATURES_16}"),
        # Which gives squares of grey images, but not of wide ones.
        ("processor_config", NO_CROP, f"112 x 56 pixels and 32 image {FEATURES_16}"),
    ],
)
def test_files_that_do_not_fit_are_refused(checkpoint, no_weights, file, changes, message):
    path = checkpoint / f"{file}.json"
    if changes:
        change_json(path, **changes)
    else:
        path.unlink()
    with pytest.raises(ValueError, match=message):
        load.load_llava(checkpoint)


def test_a_processor_without_a_crop_may_give_squares(checkpoint):
    """Then a grey image is seen as it is."""
    no_crop = {"do_center_crop": False, "size": {"height": 56, "width": 56}}
    change_json(checkpoint / "processor_config.json", image_processor=no_crop)
    processor = load.load_processor(str(checkpoint), LlavaConfig.from_pretrained(checkpoint))
    pixels, _ = encode_prompts(processor, load.grey_image(56), [])
    assert pixels.shape == (1, 3, 56, 56) and (pixels == pixels[:, :, :1, :1]).all()


def test_siglip_has_no_class_token_to_leave_out(tmp_path, no_weights):
    make_family(tmp_path, "llava-interleave-qwen-0.5b")
    for file in ("config.json", "processor_config.json"):
        change_json(tmp_path / file, vision_feature_select_strategy="default")
    with pytest.raises(ValueError, match="makes 15 features of 16 patches, so it is not known"):
        load.load_llava(tmp_path)


def test_a_chat_template_must_place_image_and_question(checkpoint, no_weights):
    config = LlavaConfig.from_pretrained(checkpoint)
    path = checkpoint / "chat_template.jinja"
    path.write_text("{% for m in messages %}Q: {{ m['content'] }} {A}{% endfor %}")  # text alone
    processor = load.load_processor(str(checkpoint), config)
    assert chat_of(processor) == "Q: <image>\n{question} {A}"
    # The image after the question: nothing before it would be the same for all prompts.
    path.write_text("{% for m in messages %}{{ m['content'][1]['text'] }}<image>{% endfor %}")
    for template in (path.read_text(), "<image>", "{{ broken"):
        path.write_text(template)
        with pytest.raises(ValueError, match="its chat template has not one place for an image"):
            load.load_processor(str(checkpoint), config)


def test_what_the_processor_lacks_comes_from_the_models_config(checkpoint, llava, image):
    """A patch's size, the image token, and `<s>` at the front: the same pixels and the same ids."""
    change_json(checkpoint / "processor_config.json", without=["patch_size", "image_token"])
    change_json(checkpoint / "tokenizer_config.json", without=["bos_token", "add_bos_token"])
    change_json(checkpoint / "tokenizer.json", post_processor=None)
    (checkpoint / "generation_config.json").unlink()
    bridge, processor = load.load_llava(checkpoint, "float32", "cpu")
    question = [kinds.question_of("object")]
    expected = encode_prompts(llava[1], image, question)
    pixels, (ids,) = encode_prompts(processor, image, question)
    assert torch.equal(pixels, expected[0]) and ids.tolist() == expected[1][0].tolist()
    answers = []
    for model in (llava, (bridge, processor)):
        record, _ = read_image(model, image, PROMPTS[:1], max_new_tokens=4)
        answers.append(record["prompts"][0]["answer_ids"].tolist())
    assert answers[0] == answers[1]
    end = llava[0].original_model.generation_config.eos_token_id
    assert bridge.original_model.generation_config.eos_token_id == end == 2
