"""Time, memory and passes over the weights for one image, against a floor and the plain ways.

Run by hand:

    python benchmarks/bench_lens.py [--size small|7b] [--prompts 1 3 6] [--repeats 5] [--words 0]
                               [--ways floor project ...] [--before FOLDER]

`small`: 8 layers, d_model 512, a vocabulary of 32,064, 576 image tokens, float32 on the CPU. `7b`:
LLaVA-1.5-7B's exact shape with random weights, float16, on a GPU capped at a P100's memory.
`--words` makes every question so many words longer. Side by side in one run, as medians over
repeats with their spread:

floor       bare forward passes with the project's batching (prefix once, then all prompts in one
            pass and one pass per answer token) and bare unembedding products at the same shapes
project     `read_image`
causal      `read_causal`: knockout and route of these prompts, one counterfactual image
plain HF    per prompt `generate`, then one whole pass with output_hidden_states, norm, unembedding,
            softmax, top-k, JSD for all positions of a layer at once
plain TL    per prompt the same, with TransformerLens' run_with_cache over everything in place of
            output_hidden_states
before      the release under `--before` (flat modules): `read_image`
knockout before   its `read_knockout`

Passes over the weights: how often the weights of the language tower's blocks are read, in units of
all of them. TFLOP: of these products, by shape.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from transformers import DynamicCache

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "demo")]
from tiny_llava import make_llava

from llava_lens import kinds
from llava_lens.data import prompts as data_prompts
from llava_lens.model import causal, images, lens, load, read, run

SIZES = {
    "small": dict(
        vision=dict(
            hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4
        ),
        text=dict(
            hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8
        ),
    ),
    "7b": dict(
        vision=dict(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
        ),
        text=dict(
            hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
        ),
    ),
}
N_ANSWER, TOP_K, SLICE = 5, 10, 64
CUT = {"object": [*range(100, 130)], "background": [*range(300, 330)]}  # patches of the 576
WAYS = ["floor", "project", "causal", "plain HF", "plain TL", "before", "knockout before"]


def on_gpu() -> bool:
    return torch.cuda.is_available()


def floor(bridge, pixel_values, sequences, n_prefix, first):
    """Forward passes without hooks, with all prompts as one sequence, and one product with the
    unembedding per layer and position; nothing is kept."""
    model, n_layers = bridge.original_model, bridge.cfg.n_layers
    weight, cache = bridge.W_U.T, DynamicCache()

    def products(n_pos):
        for _ in range(n_layers + 1):
            for start in range(0, n_pos, SLICE):
                torch.nn.functional.linear(resid[: min(SLICE, n_pos - start)], weight)

    resid = torch.randn(SLICE, bridge.cfg.d_model, dtype=weight.dtype, device=weight.device)
    model(
        input_ids=sequences[0][None, :n_prefix],
        pixel_values=pixel_values,
        past_key_values=cache,
        logits_to_keep=1,
    )
    products(n_prefix - first)
    new = torch.cat([sequence[n_prefix:] for sequence in sequences])[None]
    for _ in range(N_ANSWER):
        products(new.shape[1])
        logits = model(input_ids=new, past_key_values=cache, logits_to_keep=len(sequences)).logits
        new = logits.argmax(-1)


def plain(bridge, pixel_values, sequences, residuals_of):
    """Everything again for each prompt, all positions of a layer at once."""
    model = bridge.original_model
    norm, lm_head = model.model.language_model.norm, model.lm_head
    for sequence in sequences:
        ids = model.generate(
            input_ids=sequence[None],
            pixel_values=pixel_values,
            max_new_tokens=N_ANSWER,
            do_sample=False,
        )[:, :-1]
        previous, residuals = None, residuals_of(ids)
        final = lm_head(norm(residuals[-1])).float().softmax(-1)[0]
        for resid in residuals:
            p = lm_head(norm(resid)).float().softmax(-1)[0]
            p.topk(TOP_K)
            lens.entropy_bits(p)
            lens.jsd_bits(p, final)
            if previous is not None:
                lens.jsd_bits(p, previous)
            previous = p


def hf_residuals(bridge, pixel_values, ids):
    """The last of `hidden_states` is normed already, so the last layer's own comes from a hook."""
    last = []
    hook = bridge.original_model.model.language_model.layers[-1].register_forward_hook(
        lambda module, args, out: last.append(out)
    )
    out = bridge.original_model(input_ids=ids, pixel_values=pixel_values, output_hidden_states=True)
    hook.remove()
    return [*out.hidden_states[:-1], last[0] if torch.is_tensor(last[0]) else last[0][0]]


def tl_residuals(bridge, pixel_values, ids):
    _, cache = bridge.run_with_cache(ids, pixel_values=pixel_values)
    return [cache["blocks.0.hook_resid_pre"]] + [
        cache[f"blocks.{block}.hook_resid_post"] for block in range(bridge.cfg.n_layers)
    ]


class Peak:
    """Peak memory in MiB above what was in use at the start: allocated on the GPU, resident
    (sampled) on the CPU."""

    def __enter__(self):
        if on_gpu():
            torch.cuda.reset_peak_memory_stats()
            self.base = torch.cuda.memory_allocated()
        else:
            self.process, self.stop = psutil.Process(), threading.Event()
            self.base = self.highest = self.process.memory_info().rss
            self.sampler = threading.Thread(target=self.sample)
            self.sampler.start()
        return self

    def sample(self):
        while not self.stop.wait(0.002):
            self.highest = max(self.highest, self.process.memory_info().rss)

    def __exit__(self, *_):
        if on_gpu():
            self.mib = (torch.cuda.max_memory_allocated() - self.base) / 2**20
        else:
            self.stop.set()
            self.sampler.join()
            self.mib = (self.highest - self.base) / 2**20


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

    def count_in(self, work) -> None:
        self.n_read = self.flop = 0
        work()


def peak_mib(work) -> float:
    """Peak memory in MiB; a warm-up at the same time."""
    with Peak() as peak:
        work()
    return peak.mib


def seconds_of(work) -> float:
    start = time.perf_counter()
    work()
    if on_gpu():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def make_model(size: str):
    """A random LLaVA of the size: the exact shape of LLaVA-1.5 (336 pixels, 24 x 24 patches, 32,064
    rows) but for depth and width."""
    folder = tempfile.mkdtemp(prefix="bench_lens_")
    torch.set_default_dtype(torch.float16 if size == "7b" else torch.float32)
    torch.manual_seed(0)
    corpus = [kinds.CHAT, kinds.question_of("object"), kinds.question_of("description")]
    vision, text = SIZES[size]["vision"], SIZES[size]["text"] | {"vocab_size": 32_064}
    make_llava(folder, corpus, image_size=336, patch_size=14, vision=vision, text=text)
    torch.set_default_dtype(torch.float32)
    return load.load_llava(folder, "float16" if size == "7b" else "float32")


def ways_to_read(bridge, processor, image, n_prompts: int, args) -> dict:
    """The work to measure, by name of the way."""
    n_words, before = args.words, args.before
    question = kinds.question_of("object")
    prompts = data_prompts.as_prompts(
        [f"{question} {number}" + " image" * n_words for number in range(n_prompts)]
    )
    settings = load.Settings("", top_k=TOP_K, max_new_tokens=N_ANSWER)
    pixel_values, sequences = run.encode_prompts(
        processor, image, [prompt["question"] for prompt in prompts]
    )
    at_image = (sequences[0] == processor.image_token_id).nonzero()[:, 0]
    first, n_prefix = int(at_image[0]), int(at_image[-1]) + 1
    pixel_values = pixel_values.to(bridge.cfg.device, bridge.cfg.dtype)
    sequences = [sequence.to(bridge.cfg.device) for sequence in sequences]
    inputs = bridge, pixel_values, sequences
    ways = {
        "floor": lambda: floor(*inputs, n_prefix, first),
        "project": lambda: read.read_image(bridge, processor, image, prompts, settings),
        "causal": causal_work(bridge, processor, image, prompts, settings),
        "plain HF": lambda: plain(*inputs, lambda ids: hf_residuals(bridge, pixel_values, ids)),
        "plain TL": lambda: plain(*inputs, lambda ids: tl_residuals(bridge, pixel_values, ids)),
    }
    if before:
        ways |= ways_before(before, bridge, processor, image, prompts, settings)
    return ways


def causal_work(bridge, processor, image, prompts, settings):
    """Knockout and route, where the first other image gives another answer to each prompt."""
    about = images.describe_run(bridge, processor, settings, 0.0)
    record, _, prefix = read.read_image_and_prefix(bridge, processor, image, prompts, settings)
    for prompt in record["prompts"]:  # a random model may answer the same to all images
        prompt["answer_ids"] = (prompt["answer_ids"] + 1) % 999
    causal._word = lambda bridge, ids: str(ids[0])
    other = run.keep_prefix(bridge, processor, image.rotate(180))
    patches = [CUT for _ in prompts]
    return lambda: causal.read_causal(
        bridge, prefix, lambda: iter([("other", other)]), record["prompts"], patches, about
    )


def ways_before(folder: str, bridge, processor, image, prompts, settings) -> dict:
    """The same work done by a release with flat modules."""
    sys.path.insert(0, folder)
    import lens_model
    import lens_read

    sys.path.remove(folder)
    old = lens_model.Settings("", top_k=settings.top_k, max_new_tokens=settings.max_new_tokens)
    asked = [{**prompt, "way": ""} for prompt in prompts]
    record, _ = lens_read.read_image(bridge, processor, image, asked, old)
    about = lens_read.describe_run(bridge, processor, old, 0.0)
    prefix = lens_read.keep_prefix(bridge, processor, image)
    patches = [CUT for _ in prompts]
    return {
        "before": lambda: lens_read.read_image(bridge, processor, image, asked, old),
        "knockout before": lambda: lens_read.read_knockout(
            bridge, prefix, record["prompts"], patches, about
        ),
    }


def measure(bridge, ways: dict, n_prompts: int, repeats: int) -> None:
    """Print time, peak memory and products of each way, and how many times the first one's time it
    takes."""
    reference = next(iter(ways))
    mib, held, counted, products = {}, {}, {}, Products(bridge)
    for name, work in ways.items():
        if on_gpu():
            torch.cuda.empty_cache()
        mib[name] = peak_mib(partial(products.count_in, work))
        counted[name] = f"{products.n_read / products.n_weights:6.1f} passes"
        counted[name] += f"{products.flop / 1e12:8.3f} TFLOP"
        held[name] = torch.cuda.max_memory_reserved() / 2**30 if on_gpu() else None
    for hook in products.hooks:
        hook.remove()
    # The ways take turns, so that what else the machine does meets them all.
    times = [{name: seconds_of(work) for name, work in ways.items()} for _ in range(repeats)]
    print(
        f"\n{n_prompts} prompts per image{'':6}median s   (min - max)     "
        f"x {reference} (min - max)   peak MiB above weights"
    )
    for name in ways:
        seconds = [turn[name] for turn in times]
        ratios = [turn[name] / turn[reference] for turn in times]
        on_device = f", {held[name]:.2f} GiB of the device held" if on_gpu() else ""
        print(
            f"  {name:22}{statistics.median(seconds):8.2f}   "
            f"({min(seconds):.2f} - {max(seconds):.2f}){statistics.median(ratios):10.2f} "
            f"({min(ratios):.2f} - {max(ratios):.2f}){mib[name]:12.0f}  {counted[name]}{on_device}",
            flush=True,
        )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 3, 6])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--words", type=int, default=0)
    parser.add_argument("--before", help="folder of a release with flat modules")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    args = parser.parse_args()
    if on_gpu():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 15.9 * 2**30 / total))
    bridge, processor = make_model(args.size)
    bridge.original_model.generation_config.eos_token_id = None  # answers of one length
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    )
    device = torch.cuda.get_device_name() if on_gpu() else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{args.size}: {bridge.cfg.n_layers} layers, d_model {bridge.cfg.d_model}, "
        f"{bridge.cfg.dtype}, {device}, torch {torch.__version__}"
    )
    for n_prompts in args.prompts:
        ways = ways_to_read(bridge, processor, image, n_prompts, args)
        chosen = {name: ways[name] for name in args.ways if name in ways}
        measure(bridge, chosen, n_prompts, args.repeats)


if __name__ == "__main__":
    main()
