"""Checkpoints of LLaVA's kind with random weights: each with its own kinds of tokenizer, processor,
tower and chat template, and with files as the hub has them.

`python -m tests.model.families FOLDER` saves llava-interleave-qwen-0.5b at its exact shape.
"""

import json
import re
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
from tiny_llava import make_tokenizer

TEMPLATES = json.loads(Path(__file__).with_name("chat_templates.json").read_text("utf-8"))
TEMPLATES = {name: entry["template"] for name, entry in TEMPLATES.items()}
# What each makes of a question, written out.
VICUNA = "USER: <image>\n{question} ASSISTANT:"
LLAMA_3 = "<|start_header_id|>user<|end_header_id|>\n\n<image>\n{question}<|eot_id|>"
LLAMA_3 += "<|start_header_id|>assistant<|end_header_id|>\n\n"
CHATML = "<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n"
CHATS = {
    "llava-1.5-7b": VICUNA,
    "llava-1.5-13b": VICUNA,
    "bakLlava-v1": VICUNA,
    "llava-llama-3-8b": LLAMA_3,
    "llava-interleave-qwen-0.5b": CHATML,
    "clip-full": VICUNA,  # whose features have the class token, as CLIP's 577 have
}
CORPUS = ["USER: ASSISTANT: user assistant", "Yes yes No no dog cat temple tree umbrella green red"]
CORPUS += ["What is the main object in the image? Is there a dog? Describe. Where are they? color"]
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
# A wide initialisation: distributions differ between layers and are far from flat.
TEXT = VISION | dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4)
TEXT |= {"initializer_range": 0.3, "rms_norm_eps": 1e-5}
CLIP = CLIPVisionConfig(image_size=56, patch_size=14, **VISION)
SIGLIP = SiglipVisionConfig(image_size=60, patch_size=14, vision_use_head=False, **VISION)
SIGLIP_SO400M = SiglipVisionConfig(
    hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16,
    image_size=384, patch_size=14, vision_use_head=False,
)  # fmt: skip
QWEN_1_5 = dict(
    hidden_size=1024, intermediate_size=2816, num_hidden_layers=24, num_attention_heads=16,
    num_key_value_heads=16, max_position_embeddings=32_768, rms_norm_eps=1e-6, rope_theta=1e6,
)  # fmt: skip


def _byte_level() -> dict:
    """`vocab` and `merges` of a byte-level BPE in which each word of the corpus is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [piece for text in CORPUS for piece in re.findall(r" ?\w+", " " + text)]
    trainer = trainers.BpeTrainer(vocab_size=5000, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(words, trainer)
    trained = json.loads(bpe.to_str())["model"]
    return {"vocab": trained["vocab"], "merges": [tuple(pair) for pair in trained["merges"]]}


def _llama_3_tokenizer():
    bpe = Tokenizer(models.BPE(**_byte_level()))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
    bpe.add_special_tokens([*special, "<|eot_id|>", "<pad>", "<image>"])
    begin = special[0], bpe.token_to_id(special[0])
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{begin[0]} $A", special_tokens=[begin]
    )
    named = {"bos_token": special[0], "eos_token": "<|eot_id|>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **named)


def _qwen_tokenizer(n_tokens: int = 0):
    """With `n_tokens` before the special ones: what the corpus doesn't fill never comes up."""
    trained = _byte_level()
    vocab = trained["vocab"]
    vocab |= {f"Ġ{'unused' * 3}{n}": n for n in range(len(vocab), n_tokens)}
    tokenizer = Qwen2Tokenizer(**trained)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return tokenizer


def make_family(folder: Path, name: str, exact: bool = False) -> None:
    """Save the checkpoint: 4 x 4 patches of 14 pixels, or `exact` (Qwen's only)."""
    is_siglip, full = "qwen" in name, name == "clip-full" or "qwen" in name
    vision = (SIGLIP_SO400M if exact else SIGLIP) if is_siglip else CLIP
    tokenizer = make_tokenizer([VICUNA, *CORPUS])
    if is_siglip:
        tokenizer = _qwen_tokenizer(151_643 if exact else 0)
    elif "llama-3" in name:
        tokenizer = _llama_3_tokenizer()
    rows = {"vocab_size": 64 * (len(tokenizer) // 64 + 1), "pad_token_id": tokenizer.pad_token_id}
    rows |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if exact:
        rows |= {"vocab_size": 152_000, "bos_token_id": 151_643}
    text = LlamaConfig(**TEXT, **rows)
    if name == "bakLlava-v1":
        text = MistralConfig(**TEXT, **rows, num_key_value_heads=2, sliding_window=4096)
    elif "llama-3" in name:
        text = LlamaConfig(**TEXT, **rows, num_key_value_heads=2, rope_theta=5e5)
    elif "13b" in name:
        text = LlamaConfig(**TEXT | {"hidden_size": 80, "num_attention_heads": 5}, **rows)
    elif is_siglip:
        text = Qwen2Config(
            **(QWEN_1_5 if exact else TEXT | {"num_key_value_heads": 4}),
            **rows,
            tie_word_embeddings=True,
        )
    side = {"height": vision.image_size, "width": vision.image_size}
    image_processor = SiglipImageProcessorPil(size=side)
    if not is_siglip:
        size = {"shortest_edge": vision.image_size}
        image_processor = CLIPImageProcessorPil(size=size, crop_size=side)
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1 if is_siglip else -2,
        vision_feature_select_strategy="full" if full else "default",
        architectures=["LlavaForConditionalGeneration"],
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    # Files as the hub has them: the template and the processor's sizes in files of their own.
    image_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if "llama-3" in name:  # xtuner's has neither; and two tokens end an answer
        ends = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])
        model.generation_config.eos_token_id = ends
        template = {"chat_template": TEMPLATES["llama-3"]}
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | template))
    else:
        template = {"chat_template": TEMPLATES.get(name, TEMPLATES["llava-1.5-7b"])}
        (folder / "chat_template.json").write_text(json.dumps(template, indent=2))
        sizes = {"patch_size": 14, "num_additional_image_tokens": int(not is_siglip)}
        sizes["vision_feature_select_strategy"] = config.vision_feature_select_strategy
        sizes |= {"processor_class": "LlavaProcessor", "image_token": "<image>"}
        (folder / "processor_config.json").write_text(json.dumps(sizes, indent=2))
    model.save_pretrained(folder)


if __name__ == "__main__":
    make_family(Path(sys.argv[1]), "llava-interleave-qwen-0.5b", exact=True)
