"""The model in plain HF, written independently of this project: forward hooks on the decoder
layers, one uncached pass."""

import torch
from transformers import AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration

# The blocks in 4 bit, and no more.
IN_4BIT = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
IN_4BIT["llm_int8_skip_modules"] = [".*vision_tower", ".*multi_modal_projector", "lm_head"]


def load_hf(folder, dtype, quantize=None):
    options = {"quantization_config": BitsAndBytesConfig(**IN_4BIT)} if quantize else {}
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", **options
    )
    for layer in model.modules():  # else bitsandbytes computes in bfloat16 on some CPUs
        layer.support_avx512bf16_for_cpu = False
    return model.eval(), AutoProcessor.from_pretrained(folder, backend="pil")


def hf_inputs(hf, image, question, answer_ids=()):
    """What HF's own processor makes of image and prompt, with the answer appended."""
    inputs = hf[1](text=f"USER: <image>\n{question} ASSISTANT:", images=image, return_tensors="pt")
    answer = torch.tensor([list(answer_ids)], dtype=torch.long)
    input_ids = torch.cat([inputs["input_ids"], answer], dim=1)
    return {"input_ids": input_ids, "pixel_values": inputs["pixel_values"].to(hf[0].dtype)}


@torch.inference_mode()
def hf_lens(model, inputs):
    """Residual streams `[layer, pos, d_model]`, distributions `[layer, pos, d_vocab]` and logits
    `[pos, d_vocab]`."""
    language, residuals = model.model.language_model, []

    def keep(module, args, out):
        residuals.append(out if torch.is_tensor(out) else out[0])

    handles = [layer.register_forward_hook(keep) for layer in language.layers]
    handles += [language.layers[0].register_forward_pre_hook(lambda m, args: keep(m, (), args[0]))]
    logits = model(**inputs).logits[0]
    for handle in handles:
        handle.remove()
    residuals = torch.stack(residuals)[:, 0]
    return residuals, model.lm_head(language.norm(residuals)).double().softmax(-1), logits
