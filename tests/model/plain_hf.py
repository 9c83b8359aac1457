"""The model in plain HF, written independently of this project: forward hooks on the decoder
layers, one uncached pass."""

import torch
from transformers import LlavaForConditionalGeneration


def load_hf(folder, dtype):
    return LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    ).eval()


def hf_inputs(hf, image, question, answer_ids=()):
    """What HF's own processor makes of image and prompt, with the answer appended."""
    inputs = hf[1](text=f"USER: <image>\n{question} ASSISTANT:", images=image, return_tensors="pt")
    input_ids = torch.cat(
        [inputs["input_ids"], torch.tensor([list(answer_ids)], dtype=torch.long)], dim=1
    )
    return {"input_ids": input_ids, "pixel_values": inputs["pixel_values"].to(hf[0].dtype)}


@torch.inference_mode()
def hf_lens(model, inputs):
    """Residual streams `[layer, pos, d_model]`, distributions `[layer, pos, d_vocab]` and logits
    `[pos, d_vocab]`."""
    language, residuals = model.model.language_model, []
    handles = [
        language.layers[0].register_forward_pre_hook(lambda module, args: residuals.append(args[0]))
    ]
    for layer in language.layers:
        handles.append(
            layer.register_forward_hook(
                lambda module, args, out: residuals.append(
                    out[0] if isinstance(out, tuple) else out
                )
            )
        )
    logits = model(**inputs).logits[0]
    for handle in handles:
        handle.remove()
    residuals = torch.stack(residuals)[:, 0]
    return (
        residuals,
        torch.softmax(model.lm_head(language.norm(residuals)).double(), dim=-1),
        logits,
    )
