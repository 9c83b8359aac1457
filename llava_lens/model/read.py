"""Read one image: all prompts, patches and controls."""

from functools import partial

import numpy as np
import torch
from PIL import Image
from transformers import DynamicCache

from llava_lens.kinds import question_of
from llava_lens.model.lens import (
    LAST_LAYER_TOLERANCE,
    SLICE,
    jsd_bits,
    layers_read,
    lens_logits,
    norms_of,
    read_answer,
    read_embeddings,
    read_positions,
)
from llava_lens.model.load import Settings
from llava_lens.model.run import (
    PIECE,
    as_cache,
    as_prefix,
    encode_prompts,
    patches_along,
    run_and_capture,
    run_prefix,
    run_prompts,
)
from llava_lens.schema import SEGMENTS
from llava_lens.text import require
from llava_lens.words import first_word, labels_and_words

IMAGE, PROMPT, ANSWER = range(len(SEGMENTS))


def check_last_layer(bridge, processor, image: Image.Image) -> float:
    """The largest JSD (bits) between the lens at the last layer and the model's own distribution,
    over all positions of one prompt. A wrong norm, hook or unembedding shows up: raises
    RuntimeError above LAST_LAYER_TOLERANCE, which leaves room for rounding only."""
    pixel_values, (input_ids,) = encode_prompts(processor, image, [question_of("description")])
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
            f"bits JSD (allowed in {dtype}: {LAST_LAYER_TOLERANCE[dtype]:g}). Nothing read with "
            "it would be right. Install transformers and transformer-lens of requirements.txt."
        )
    return largest


def read_image(
    bridge, processor, image: Image.Image, prompts: list[dict], settings: Settings, words=()
) -> tuple[dict, np.ndarray, list[tuple]]:
    """`(record, mean_probability, prefix)` of one image (RGB) with its prompts, as plain values.

    A reading is about the token that comes next. Answer positions hold the answer's tokens fed back
    as input, so the first answer token is read at the prompt's last position. The record has
    RECORD's fields but `name`, `objects` and the digests. `words_to_watch` gives `words`.
    `mean_probability` `[segment, layer, d_vocab]`, float32, is over the segment's positions, NaN
    where it has none. `prefix` is that of `keep_prefix`. Raises ValueError for `top_k` above
    d_vocab, for no prompt and for one beyond the model's context; FloatingPointError for NaN or
    infinity.
    """
    questions = [prompt["question"] for prompt in prompts]
    pixel_values, sequences = encode_prompts(processor, image, questions)
    _check_request(bridge, sequences, settings)
    shape = len(SEGMENTS), len(layers_read(bridge.cfg.n_layers)), bridge.cfg.d_vocab
    prob_sum = torch.zeros(shape, device=bridge.W_U.device)
    read = partial(read_positions, bridge, prob_sum=prob_sum, top_k=settings.top_k)
    with torch.inference_mode():
        cache, residuals = run_prefix(bridge, pixel_values, sequences[0])
        n_patches, n_prefix = len(residuals[0]), cache.get_seq_length()
        watched = [word["token_ids"] for word in words]
        patches = read(residuals, [IMAGE] * n_patches, [-1] * n_patches, words=watched)
        patches["norms"] = norms_of(residuals)
        of_words = {"log2_probs": _as_log2(patches.pop("words"))} if words else {}
        if settings.embedding_lens:
            patches |= read_embeddings(bridge, residuals, watched)
            of_words["cosines"] = patches.pop("cosines")
        texts = [sequence[n_prefix:] for sequence in sequences]
        answers = _read_prompts(bridge, cache, texts, settings.max_new_tokens, read)
    for answer in answers:
        answer["answer"] = processor.decode(answer["answer_ids"], skip_special_tokens=True).strip()
    _, side = patches_along(bridge.original_model.config)
    record = {
        "patches": patches,
        "words": [
            word | {name: values[number] for name, values in of_words.items()}
            for number, word in enumerate(words)
        ],
        "prompts": [{**prompt, **answer} for prompt, answer in zip(prompts, answers, strict=True)],
        "crop": crop_pixels(pixel_values[0].numpy(), processor.image_processor, side),
    }
    n_prompt = sum(answer["n_prompt"] for answer in answers)
    n_text = sum(len(answer["token_ids"]) for answer in answers)
    n_read = torch.tensor([n_patches, n_prompt, n_text - n_prompt], device=prob_sum.device)
    mean = prob_sum / n_read[:, None, None]  # 0 / 0 is NaN
    return record, mean.cpu().numpy(), as_prefix(cache)


def _check_request(bridge, sequences: list, settings: Settings) -> None:
    d_vocab = bridge.cfg.d_vocab
    most = f"top_k is {settings.top_k}: it must be from 1 to the vocabulary's {d_vocab}."
    require(settings.top_k <= d_vocab, most)
    require(sequences, "There are no prompts: there must be one at least.")
    longest = max(map(len, sequences)) + settings.max_new_tokens
    context = bridge.original_model.config.text_config.max_position_embeddings
    require(
        longest <= context,
        f"A prompt has, with its image and max_new_tokens, {longest} tokens, and the model's "
        f"context {context}: shorten it.",
    )


def _as_log2(probs: np.ndarray) -> np.ndarray:
    """`probs` `[layer, patch, word]` as log2 `[word, layer, patch]` in float16: right to 1 % of the
    probability above 2^-64, and to 2 % below."""
    log2_probs = np.log2(np.maximum(probs, np.float32(2**-126))).astype(np.float16)
    return np.ascontiguousarray(log2_probs.transpose(2, 0, 1))


def _read_prompts(bridge, cache, prompts: list, max_new_tokens: int, read) -> list[dict]:
    """Run and read prompts `[pos]` and their answers side by side; `cache` is left as it was.
    Returns the fields of PROMPT that the model gives."""
    token_ids, answer_ids, before = ([[] for _ in prompts] for _ in range(3))
    owners, waiting, segments, targets, readings = [], [], [], [], []  # run, but not read yet

    def read_waiting():
        if waiting:
            residuals = [torch.cat(layer) for layer in zip(*waiting, strict=True)]
            readings.append(read(residuals, segments, targets))
        for values in (waiting, segments, targets):
            values.clear()

    for pieces, residuals, next_ids in run_prompts(bridge, cache, prompts, max_new_tokens):
        waiting.append(residuals)
        end = 0  # of the prompt's positions in this pass
        for number, ids in pieces.items():
            end += len(ids)
            is_answer = len(token_ids[number]) >= len(prompts[number])
            token_ids[number] += ids.tolist()
            owners += [number] * len(ids)
            segments += [ANSWER if is_answer else PROMPT] * len(ids)
            targets += [-1] * (len(ids) - 1) + [next_ids[number]]
            if next_ids[number] >= 0:
                answer_ids[number].append(next_ids[number])
                # The states that the answer's token was read from, `[1, d_model]` per layer.
                before[number].append([resid[end - 1 : end].clone() for resid in residuals])
        if len(targets) >= PIECE:
            read_waiting()
    read_waiting()
    owners, labels = np.array(owners), labels_and_words(bridge.tokenizer, bridge.cfg.d_vocab)[0]
    every = {name: np.concatenate([one[name] for one in readings], axis=1) for name in readings[0]}
    answers = []
    for number, ids in enumerate(answer_ids):
        word_at, word_ids = first_word(labels, ids)
        first = read_answer(bridge, before[number][word_at], ids[word_at], word_ids)
        answers.append({
            "token_ids": np.array(token_ids[number]),
            "n_prompt": len(prompts[number]),
            "answer_ids": np.array(ids),
            "word_at": word_at,
            "word_ids": word_ids,
            "word_prob": first["word_prob"],
            "word_rank": first["word_rank"],
            "readings": {name: values[:, owners == number] for name, values in every.items()},
        })  # fmt: skip
    return answers


def read_control(bridge, prefix: list[tuple], prompts: list[dict]) -> list[dict]:
    """Control: the same prompts after the prefix of another image (`keep_prefix`).

    Per prompt of a record what `read_answer` gives for the first word of the answer that it got
    with its own image. Raises FloatingPointError for NaN or infinity.
    """
    texts, controls = [text_of(prompt) for prompt in prompts], []
    with torch.inference_mode():
        for pieces, residuals, next_ids in run_prompts(bridge, as_cache(prefix), texts, 1):
            ends = np.cumsum([len(ids) for ids in pieces.values()])
            for number, end in zip(pieces, ends, strict=True):
                if next_ids[number] >= 0:  # else the text goes on
                    prompt, states = prompts[number], [resid[end - 1 : end] for resid in residuals]
                    token_id = int(prompt["answer_ids"][prompt["word_at"]])
                    controls.append(read_answer(bridge, states, token_id, prompt["word_ids"]))
    return controls


def text_of(prompt: dict) -> torch.Tensor:
    """The tokens `[pos]` of a record's prompt and of its answer up to the answer's first word."""
    return torch.tensor(prompt["token_ids"][: prompt["n_prompt"] + prompt["word_at"]])


def crop_pixels(pixel_values: np.ndarray, image_processor, side: int) -> np.ndarray:
    """The image as the model saw it `[side, side, rgb]` in uint8, from the model's own input
    `[3, height, width]`."""
    mean, std = image_processor.image_mean, image_processor.image_std
    pixels = (pixel_values[:, :side, :side].transpose(1, 2, 0) * std + mean) * 255
    return pixels.round().clip(0, 255).astype(np.uint8)
