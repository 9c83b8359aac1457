"""Time, memory and passes over the weights for one image, against a floor and a plain way.

    python benchmarks/bench_lens.py [--size small|7b] [--prompts 1 3 6] [--repeats 5]
                               [--ways floor project ...]

`small`: 8 layers, d_model 512, a vocabulary of 32,064, 576 image tokens, float32 on the CPU. `7b`:
LLaVA-1.5-7B's exact shape with random weights: float16 on a GPU capped at a P100's memory, or
bfloat16 on a CPU, with 17 GiB of memory.
The ways take turns; their times are medians with spread.

floor       bare forward passes with the project's batching, bare unembedding products
project     `read_image`
logit lens  the same without the embedding lens
embedding lens  that alone
causal      `read_causal`: knockout and route of these prompts, one counterfactual image
image       an image as Make_Analyse reads it: `read_image`, two controls, `read_causal`
image, logit lens   the same without the embedding lens
plain HF    per prompt `generate`, one whole pass with output_hidden_states, all of the lens at once

Passes: how often the weights of the language tower's blocks are read, in units of all of them.
TFLOP: of these products, by shape. Peak memory: on a GPU only.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import DynamicCache

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "demo")]
from tiny_llava import make_llava

from llava_lens import kinds
from llava_lens.data import prompts as data_prompts
from llava_lens.model import causal, images, lens, load, read, run

PARTS = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
SIZES = {  # of vision tower and language model, in the order of PARTS
    "small": [(256, 1024, 6, 4), (512, 1376, 8, 8)],
    "7b": [(1024, 4096, 24, 16), (4096, 11008, 32, 32)],
}
N_ANSWER, TOP_K, SLICE = 5, 10, 64
CUT = {"object": [*range(100, 130)], "background": [*range(300, 330)]}  # patches of the 576
WAYS = ["floor", "project", "logit lens", "embedding lens", "causal", "image", "image, logit lens"]
WAYS += ["plain HF"]


def on_gpu() -> bool:
    return torch.cuda.is_available()


def floor(bridge, pixel_values, sequences, n_prefix, first):
    """The prefix once, then all prompts in one pass and one pass per answer token; one product with
    the unembedding per layer and position."""
    model, n_layers = bridge.original_model, bridge.cfg.n_layers
    weight, cache = bridge.W_U.T, DynamicCache()

    def products(n_pos):
        for _ in range(n_layers + 1):
            for start in range(0, n_pos, SLICE):
                torch.nn.functional.linear(resid[: min(SLICE, n_pos - start)], weight)

    resid = torch.randn(SLICE, bridge.cfg.d_model, dtype=weight.dtype, device=weight.device)
    ids, kept = sequences[0][None, :n_prefix], dict(past_key_values=cache)
    model(input_ids=ids, pixel_values=pixel_values, logits_to_keep=1, **kept)
    products(n_prefix - first)
    new = torch.cat([sequence[n_prefix:] for sequence in sequences])[None]
    for _ in range(N_ANSWER):
        products(new.shape[1])
        new = model(input_ids=new, logits_to_keep=len(sequences), **kept).logits.argmax(-1)


def plain(bridge, pixel_values, sequences):
    """Everything again for each prompt, all positions of a layer at once."""
    model, last = bridge.original_model, []
    norm, lm_head = model.model.language_model.norm, model.lm_head
    # The last of `hidden_states` is normed already.
    hook = model.model.language_model.layers[-1].register_forward_hook(
        lambda module, args, out: last.append(out if torch.is_tensor(out) else out[0])
    )
    for sequence in sequences:
        inputs = dict(input_ids=sequence[None], pixel_values=pixel_values)
        ids = model.generate(**inputs, max_new_tokens=N_ANSWER, do_sample=False)[:, :-1]
        inputs["input_ids"] = ids
        out = model(**inputs, output_hidden_states=True)
        previous, residuals = None, [*out.hidden_states[:-1], last[-1]]
        final = lm_head(norm(residuals[-1])).float().softmax(-1)[0]
        for resid in residuals:
            p = lm_head(norm(resid)).float().softmax(-1)[0]
            p.topk(TOP_K)
            lens.entropy_bits(p)
            lens.jsd_bits(p, final)
            lens.jsd_bits(p, p if previous is None else previous)
            previous = p
    hook.remove()


class Products:
    """Counts the products with the weights of the language tower's blocks."""

    def __init__(self, bridge):
        layers = bridge.original_model.model.language_model.layers
        linear = [module for module in layers.modules() if isinstance(module, torch.nn.Linear)]
        self.n_weights = sum(module.weight.numel() for module in linear)
        self.n_read, self.flop = 0, 0
        self.hooks = [module.register_forward_hook(self.count) for module in linear]

    def count(self, module, args, out):
        self.n_read += module.weight.numel()
        self.flop += 2 * args[0][..., 0].numel() * module.weight.numel()


def seconds_of(work) -> float:
    start = time.perf_counter()
    work()
    if on_gpu():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def make_model(size: str):
    """A random LLaVA-1.5 but for depth and width: 336 pixels, 24 x 24 patches, 32,064 rows."""
    dtype = "float32" if size == "small" else "float16" if on_gpu() else "bfloat16"
    torch.set_default_dtype(getattr(torch, dtype))
    torch.manual_seed(0)
    corpus = [kinds.CHAT, kinds.question_of("object"), kinds.question_of("description")]
    vision, text = (dict(zip(PARTS, sizes, strict=True)) for sizes in SIZES[size])
    text["vocab_size"] = 32_064
    with tempfile.TemporaryDirectory(prefix="bench_lens_") as folder:
        make_llava(folder, corpus, image_size=336, patch_size=14, vision=vision, text=text)
        torch.set_default_dtype(torch.float32)
        return load.load_llava(folder, dtype)


def ways_to_read(bridge, processor, image, n_prompts: int) -> dict:
    """The work to measure, by name of the way."""
    question = kinds.question_of("object")
    prompts = data_prompts.as_prompts([f"{question} {number}" for number in range(n_prompts)])
    settings = load.Settings("", top_k=TOP_K, max_new_tokens=N_ANSWER)
    questions = [prompt["question"] for prompt in prompts]
    pixel_values, sequences = run.encode_prompts(processor, image, questions)
    of_image = (sequences[0] == processor.image_token_id).nonzero()
    first, n_prefix = int(of_image[0]), int(of_image[-1]) + 1
    pixel_values = pixel_values.to(bridge.cfg.device, bridge.cfg.dtype)
    sequences = [sequence.to(bridge.cfg.device) for sequence in sequences]
    inputs = bridge, pixel_values, sequences
    _, residuals = run.run_prefix(bridge, pixel_values, sequences[0])
    own = bridge, processor, image, prompts
    without, other = replace(settings, embedding_lens=False), image.rotate(180)
    other = run.keep_prefix(bridge, processor, other)
    causal_of_image = causal_work(*own, settings, other)

    def whole(settings):
        record, *_ = read.read_image(*own, settings)
        for prefix in other, other:  # a grey image and another one
            read.read_control(bridge, prefix, record["prompts"])
        causal_of_image()

    return {
        "floor": lambda: floor(*inputs, n_prefix, first),
        "project": lambda: read.read_image(*own, settings),
        "logit lens": lambda: read.read_image(*own, without),
        "embedding lens": lambda: lens.read_embeddings(bridge, residuals),
        "causal": causal_of_image,
        "image": lambda: whole(settings),
        "image, logit lens": lambda: whole(without),
        "plain HF": lambda: plain(*inputs),
    }


def causal_work(bridge, processor, image, prompts, settings, other):  # noqa: PLR0913
    """Knockout and route, where the first other image gives another answer to each prompt."""
    about = images.describe_run(bridge, processor, settings)
    record, _, prefix = read.read_image(bridge, processor, image, prompts, settings)
    for prompt in record["prompts"]:  # a random model may answer the same to all images
        prompt["answer_ids"] = (prompt["answer_ids"] + 1) % 999
    causal._word = lambda bridge, ids: str(ids[0])
    patches = [CUT for _ in prompts]
    return lambda: causal.read_causal(
        bridge, prefix, lambda: iter([("other", other, {})]), record["prompts"], patches, about
    )


def measure(bridge, ways: dict, n_prompts: int, repeats: int) -> None:
    """Print time, peak memory and products of each way, and how many times the first one's time it
    takes. The counting pass warms up."""
    reference, counted, products = next(iter(ways)), {}, Products(bridge)
    for name, work in ways.items():
        products.n_read = products.flop = 0
        if on_gpu():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            base = torch.cuda.memory_allocated()
        work()
        counted[name] = f"{products.n_read / products.n_weights:6.1f} passes"
        counted[name] += f"{products.flop / 1e12:8.3f} TFLOP"
        if on_gpu():
            mib = (torch.cuda.max_memory_allocated() - base) / 2**20
            held = torch.cuda.max_memory_reserved() / 2**30
            counted[name] += f", peak {mib:.0f} MiB above the weights, {held:.2f} GiB held"
    for hook in products.hooks:
        hook.remove()
    # The ways take turns, so that what else the machine does meets them all.
    times = [{name: seconds_of(work) for name, work in ways.items()} for _ in range(repeats)]
    times = {name: np.array([turn[name] for turn in times]) for name in ways}
    print(f"\n{n_prompts} prompts per image: median s (min - max), x {reference} (min - max)")
    for name, seconds in times.items():
        of_times = seconds, seconds / times[reference]
        spread = [f"{np.median(v):8.2f} ({v.min():.2f} - {v.max():.2f})" for v in of_times]
        print(f"  {name:16}{spread[0]}  {spread[1]}  {counted[name]}", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 3, 6])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    args = parser.parse_args()
    if on_gpu():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 15.9 * 2**30 / total))
    bridge, processor = make_model(args.size)
    bridge.original_model.generation_config.eos_token_id = None  # answers of one length
    image = Image.effect_noise((640, 480), 100).convert("RGB")
    device = torch.cuda.get_device_name() if on_gpu() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.size}, {bridge.cfg.dtype}, {device}, torch {torch.__version__}")
    for n_prompts in args.prompts:
        ways = ways_to_read(bridge, processor, image, n_prompts)
        measure(bridge, {name: ways[name] for name in args.ways}, n_prompts, args.repeats)


if __name__ == "__main__":
    main()
