"""A LLaVA-1.5 for a laptop: a tokenizer made here, a CLIP image processor, random weights.

`demo/train.py` trains one into `demo/model/`; the tests use one untrained. Nothing is downloaded.
"""

import json
import re

from tokenizers import Tokenizer, models, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)


def make_tokenizer(corpus: list[str]) -> LlamaTokenizer:
    """A tokenizer of Llama-2's kind: `<s>` in front, `▁` for a leading space, byte tokens,
    `<image>` and `<pad>` last.

    Every word of the corpus becomes one token; anything else falls back to characters and bytes.
    """
    pieces = [
        piece.replace(" ", "▁")
        for text in corpus
        for piece in re.findall(r" ?\w+|[^\w\s]", " " + text)
    ]
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.train_from_iterator(
        pieces + ["▁"],
        trainers.BpeTrainer(vocab_size=100_000, special_tokens=special, show_progress=False),
    )
    trained = json.loads(bpe.to_str())["model"]
    tokenizer = LlamaTokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        add_bos_token=True,
        legacy=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def make_llava(
    folder, corpus: list[str], image_size: int, patch_size: int, vision: dict, text: dict
) -> LlavaForConditionalGeneration:
    """Save a LLaVA with random weights (torch's current seed) and its processor under `folder`, as
    the hub holds LLaVA-1.5.

    `vision` and `text` go to CLIPVisionConfig and LlamaConfig. Unless `text` has `vocab_size`, the
    unembedding has up to 64 rows more than the tokenizer has tokens: in LLaVA-1.5 there are more
    rows too (32,064 and 32,002).
    """
    tokenizer = make_tokenizer(corpus)
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" leaves out again
    )
    processor.save_pretrained(folder)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=image_size, patch_size=patch_size, **vision),
        text_config=LlamaConfig(
            rms_norm_eps=1e-5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **{"vocab_size": 64 * (len(tokenizer) // 64 + 1), **text},
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(image_size // patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        architectures=["LlavaForConditionalGeneration"],
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    return model
