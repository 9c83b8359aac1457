"""The model in plain HF, written independently of this project: forward hooks on the decoder
layers, one uncached pass."""

import torch
from transformers import AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration

CHOSEN = {"object": [0, 5, 6], "background": [3, 12, 15]}  # of a tiny model's 16 patches


# The blocks in 4 bit, and no more.
IN_4BIT = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
IN_4BIT["llm_int8_skip_modules"] = [".*vision_tower", ".*multi_modal_projector", "lm_head"]
VICUNA = "USER: <image>\n{question} ASSISTANT:"


def load_hf(folder, dtype, chat=VICUNA, quantize=None):
    """`(model, processor, chat)`."""
    options = {"quantization_config": BitsAndBytesConfig(**IN_4BIT)} if quantize else {}
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", **options
    )
    for layer in model.modules():  # else bitsandbytes computes in bfloat16 on some CPUs
        layer.support_avx512bf16_for_cpu = False
    return model.eval(), AutoProcessor.from_pretrained(folder, backend="pil"), chat


def hf_inputs(hf, image, question, answer_ids=()):
    """What HF's own processor makes of image and prompt, with the answer appended."""
    text = hf[2].replace("{question}", question)
    inputs = hf[1](text=text, images=image, return_tensors="pt")
    answer = torch.tensor([list(answer_ids)], dtype=torch.long)
    input_ids = torch.cat([inputs["input_ids"], answer], dim=1)
    return {"input_ids": input_ids, "pixel_values": inputs["pixel_values"].to(hf[0].dtype)}


def hf_answer(hf, image, question, max_new_tokens):
    """The tokens that HF's `generate` says."""
    inputs = hf_inputs(hf, image, question)
    ids = hf[0].generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)[0]
    return ids[inputs["input_ids"].shape[1] :].tolist()


class Hooked:
    """A prompt in plain HF, in one uncached pass: its states and distributions, and its logits
    where states are replaced or keys are hidden."""

    def __init__(self, hf, image, question, answer_ids=()):
        self.model, self.inputs = hf[0], hf_inputs(hf, image, question, answer_ids)
        self.ids = self.inputs["input_ids"][0]
        at_image = (self.ids == self.model.config.image_token_id).nonzero()[:, 0]
        self.end, self.n_pos = int(at_image[-1]) + 1, len(self.ids)
        question, last = torch.arange(self.end, self.n_pos - 1), torch.tensor([self.n_pos - 1])
        self.groups = {"image": at_image, "question": question, "last": last}

    @torch.inference_mode()
    def lens(self):
        """Residual streams `[layer, pos, d_model]`, distributions `[layer, pos, d_vocab]` and
        logits `[pos, d_vocab]`."""
        kept = []
        logits = self._run(lambda layer, resid: kept.append(resid[0].clone()))
        residuals, norm = torch.stack(kept), self.model.model.language_model.norm
        return residuals, self.model.lm_head(norm(residuals)).double().softmax(-1), logits

    @torch.inference_mode()
    def patched(self, group, layers, donor):
        """Logits `[d_vocab]` with the donor's states at a group of positions at these layers."""

        def replace(layer, resid):
            if layer in layers:
                resid[0, self.groups[group]] = donor[layer][self.groups[group]]

        return self._run(replace)[-1].float()

    @torch.inference_mode()
    def cut(self, cut, blocks):
        """Logits `[d_vocab]` where in `blocks` (from 1) HF's own mask hides what `cut` hides."""
        text, (image, question, last) = range(self.end, self.n_pos), self.groups.values()
        patches = image[-16:]  # a class token is before them
        queries, keys = {
            "object": (text, patches[CHOSEN["object"]]),
            "background": (text, patches[CHOSEN["background"]]),
            "image": (text, image),
            "image_last": (last, image),
            "question_last": (last, question),
        }[cut]
        least = torch.finfo(self.model.dtype).min
        reach = getattr(self.model.config.text_config, "sliding_window", None) or self.n_pos
        position = torch.arange(self.n_pos)
        back = position[:, None] - position
        plain = torch.where((back >= 0) & (back < reach), 0.0, least).to(self.model.dtype)
        hiding = plain.clone()
        for query in queries:
            hiding[query, list(keys)] = least
        mask_of = lambda block: hiding if block in blocks else plain  # noqa: E731
        return self._run(lambda *_: None, mask_of)[-1].float()

    def _run(self, see, mask_of=None):
        """Logits `[pos, d_vocab]`; `see(layer, resid)` is called with the states at each layer."""
        layers, handles = self.model.model.language_model.layers, []
        for number, layer in enumerate(layers):

            def before(module, args, kwargs, number=number):
                resid = args[0].clone()
                see(number, resid)
                if mask_of:
                    kwargs = {**kwargs, "attention_mask": mask_of(number + 1)[None, None]}
                return (resid, *args[1:]), kwargs

            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))

        def after(norm, args):  # what the last block gives, which the final norm reads
            resid = args[0].clone()
            see(len(layers), resid)
            return (resid,)

        handles.append(self.model.model.language_model.norm.register_forward_pre_hook(after))
        logits = self.model(**self.inputs).logits[0]
        for handle in handles:
            handle.remove()
        return logits
