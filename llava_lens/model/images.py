"""Read all images of a run, in one or several processes."""

import hashlib
import itertools
import sys
import time
from collections.abc import Iterator
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from llava_lens.data.annotations import Annotations
from llava_lens.data.colours import with_colours
from llava_lens.data.crop import objects_in_crop, patches_to_cut
from llava_lens.data.images import digests_of, open_image
from llava_lens.data.prompts import make_prompts
from llava_lens.data.watched import count_together, words_to_watch
from llava_lens.kinds import KINDS
from llava_lens.model.causal import knockout_windows, read_causal, route_layers
from llava_lens.model.lens import LAST_LAYER_TOLERANCE, is_tied, layers_read
from llava_lens.model.load import NUMBERS, Settings, grey_image, load_once, n_features_of
from llava_lens.model.read import check_last_layer, read_control, read_image, text_of
from llava_lens.model.run import chat_of, keep_prefix, patches_along
from llava_lens.schema import FORMAT_VERSION, SEGMENTS, weights_label
from llava_lens.store import Results
from llava_lens.text import count_of, require
from llava_lens.words import WORDS_DIGEST, ids_by_label, token_labels, word_ids

# Images before one that are its control, and are tried as its counterfactual. Their prefixes are
# kept in the CPU's memory: of LLaVA-1.5-7B in float16 290 MiB each, 2.3 GiB in all.
NEAREST = 8


def describe_run(bridge, processor, settings: Settings, categories: list[str] = ()) -> dict:
    """RUN: all that is needed to read the records without the model or its tokenizer, or the data
    set's `categories`. `Reader.check_lens` adds the JSD at the last layer."""
    config, n_layers = bridge.original_model.config, bridge.cfg.n_layers
    n_along, covered = patches_along(config)
    packages = "torch", "transformers", "transformer-lens", "numpy"
    return {
        "format_version": FORMAT_VERSION,
        "model": str(settings.model),
        "revision": _fingerprint(bridge.original_model),
        "dtype": str(bridge.cfg.dtype).removeprefix("torch."),
        "quantize": settings.quantize,
        "packages": {name: version(name) for name in packages},
        "n_layers": n_layers,
        "layers": [str(layer or "emb") for layer in layers_read(n_layers)],
        "segments": SEGMENTS,
        "tokens": token_labels(processor.tokenizer, bridge.cfg.d_vocab),
        "image_size": covered,
        "grid": [n_along, n_along],
        "n_image_tokens": n_features_of(config),
        "chat": chat_of(processor),
        "words": WORDS_DIGEST,
        "questions": {name: KINDS[name].template for name in settings.kinds},
        "own_prompts": settings.prompts,
        "categories": list(categories),
        **{name: getattr(settings, name) for name in NUMBERS},
        "embedding_lens": settings.embedding_lens,
        "tied": is_tied(bridge.original_model),
        "knockout_windows": knockout_windows(n_layers) if settings.knockout else [],
        "route_layers": route_layers(n_layers) if settings.route else [],
        "last_layer_jsd": 0.0,
    }


def _fingerprint(model) -> str:
    """A digest of up to 1,024 values of each weight: two models may share a name, and transformers
    5 keeps no commit of the hub. A change of a weight in fewer places can be missed."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        values = weight.flatten()
        values = values[:: max(1, -(-len(values) // 1024))].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values.tobytes())
    return f"weights {digest.hexdigest()[:16]}"


def read_images(
    image_paths: dict[str, Path], annotations: Annotations, folder, settings: Settings, show=None
) -> None:
    """Load the model and read every image that has no record yet into the results in `folder`.

    The lens is checked on the first image; after it `show(run, record)` is called. Where accelerate
    has launched several processes, each loads the model and takes its share of the images; none
    waits for another. `image_paths` has all images, read or not: controls and counterfactuals are
    the images before. An image that can't be read is skipped by name. Raises ValueError if none
    can, and what `load_llava`, `check_last_layer` and `Results.begin` raise.
    """
    on_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    # Else the state of an earlier run stays, of this process or of the one that launched it.
    PartialState._reset_state()
    state, results = PartialState(cpu=on_cpu), Results(folder)
    if state.num_processes > 1:
        # A forked process has torch's pool of threads without its threads, if the notebook has used
        # torch before: it would wait for them without an end.
        torch.set_num_threads(1)
    share = _share_of(image_paths, state, results)
    device = str(state.device) if state.num_processes > 1 else settings.device
    model = bridge, processor = load_once(settings.model, settings.dtype, device, settings.quantize)
    categories, vocabulary = annotations.categories, ids_by_label(processor.tokenizer)
    run = describe_run(bridge, processor, settings, categories)
    shared = f", in {state.num_processes} processes" * (state.num_processes > 1)
    state.print(
        f"{settings.model}: {bridge.cfg.n_layers} layers, d_model {bridge.cfg.d_model}, vocabulary "
        f"{bridge.cfg.d_vocab:,}, {weights_label(run)} on {bridge.W_U.device}{shared}"
    )
    results.refuse_another(run)
    if wordless := [name for name in categories if not word_ids(vocabulary, name)]:
        state.print(
            f"Not watched in the patches, for want of a word that is one token: {len(wordless)} of "
            f"{len(categories)} categories ({', '.join(wordless)})"
        )
    _read_share(share, Reader(model, image_paths, annotations, run, settings), results, show)
    state.destroy_process_group()


def _share_of(image_paths: dict[str, Path], state, results: Results) -> list[str]:
    """The names of the images that this process is to read: consecutive ones, since each image is
    the control of the next."""
    # Not split_between_processes: before accelerate 1.15 it gives the last image to two processes
    # where there are fewer images than processes.
    ends = np.linspace(0, len(image_paths), state.num_processes + 1).astype(int)
    own = slice(ends[state.process_index], ends[state.process_index + 1])
    # Split first, so that the shares don't depend on how far another process is.
    return list(results.unread(dict(list(image_paths.items())[own])))


class Reader:
    """Reads images whole, one by one; keeps prefixes, which the next ones are compared with."""

    def __init__(self, model: tuple, image_paths: dict, annotations, run: dict, settings):
        """`model` is `(bridge, processor)`; the others are those of `read_images`, `run` is RUN."""
        self.bridge, self.processor = model
        self.paths, self.annotations = image_paths, annotations
        self.run, self.settings = run, settings
        self.together = count_together(annotations.objects)
        self.kept: dict[str, list[tuple]] = {}  # prefixes by image, NEAREST at most
        self.said: dict[str, dict] = {}  # by image, as `counterfactuals` takes it

    @cached_property
    def grey(self) -> list[tuple]:
        """The prefix of a grey image."""
        return keep_prefix(self.bridge, self.processor, grey_image(self.run["image_size"]))

    def open(self, name: str) -> Image.Image:
        """Raises OSError if the image can't be opened, or is not of its annotations' shape."""
        annotated = self.annotations.objects.get(name)
        return open_image(self.paths[name], annotated[0]["image_size"] if annotated else None)

    def check_lens(self, name: str) -> dict:
        """RUN with the result of the check on this image."""
        jsd = check_last_layer(self.bridge, self.processor, self.open(name))
        PartialState().print(
            f"largest JSD between the lens at the last layer and the model's output: {jsd:.2g} "
            f"bits (allowed: {LAST_LAYER_TOLERANCE[self.run['dtype']]:g})"
        )
        return {**self.run, "last_layer_jsd": jsd}

    def read(self, name: str) -> tuple[dict, np.ndarray]:
        """`(record, mean probability)` of one image. Raises OSError and FloatingPointError."""
        image, seed = self.open(name), f"{self.settings.seed} {name}"
        annotated, absent, dropped = self.annotations.of(name)
        objects = with_colours(annotated, image) if annotated else []
        processor, side = self.processor.image_processor, self.run["image_size"]
        objects = objects_in_crop(objects, image.size, processor, side)
        there = objects + objects_in_crop(dropped, image.size, processor, side)
        asked = self.settings.prompts or make_prompts(
            there, absent, seed, self.settings.per_kind, self.together, self.settings.kinds
        )
        if not asked:
            kinds = ", ".join(self.settings.kinds)
            raise OSError(f"none of the kinds of question can be asked about it: {kinds}")
        tokenizer = self.processor.tokenizer
        words = words_to_watch(tokenizer, objects, absent, asked, seed, self.together)
        record, mean, prefix = read_image(
            self.bridge, self.processor, image, asked, self.settings, words
        )
        prompts = record["prompts"]
        controls = {"grey": read_control(self.bridge, self.grey, prompts)}
        for _, nearest, _ in itertools.islice(self.before(name), 1):
            controls["other"] = read_control(self.bridge, nearest, prompts)
        patches = [patches_to_cut(prompt, objects, self.run, seed) for prompt in prompts]
        others = partial(self.before, name)
        causal = read_causal(self.bridge, prefix, others, prompts, patches, self.run)
        for number, prompt in enumerate(prompts):
            prompt |= {field: values[number] for field, values in controls.items()}
            prompt |= causal[number]
            key, first = tuple(text_of(prompt).tolist()), prompt["answer_ids"][prompt["word_at"]]
            self.said.setdefault(name, {})[key] = int(first)
        self._keep_for_next(name, prefix)
        digests = digests_of(self.paths[name], annotated, absent, dropped)
        return {"name": name, **digests, "objects": objects, **record}, mean

    def before(self, name: str) -> Iterator[tuple[str, list[tuple], dict]]:
        """`(name, prefix, said)` of up to NEAREST images before `name` in the list of all, nearest
        first; the list is a ring.

        An image that can't be read is passed over. A prefix is kept or else run again, so it is the
        same however a run was stopped or shared.
        """
        names, found = list(self.paths), 0
        at = names.index(name)
        for other in reversed(names[at + 1 :] + names[:at]):
            if found == NEAREST:
                return
            try:
                if other not in self.kept:
                    self.kept[other] = keep_prefix(self.bridge, self.processor, self.open(other))
            except (OSError, FloatingPointError):
                continue
            found += 1
            yield other, self.kept[other], self.said.setdefault(other, {})

    def _keep_for_next(self, name: str, prefix: list[tuple]) -> None:
        """Keep the prefix of the image just read; drop the farthest ones before it."""
        names = list(self.paths)
        at = names.index(name)
        near = {names[at - back] for back in range(min(NEAREST, len(names)))}
        self.kept = {other: kept for other, kept in self.kept.items() if other in near}
        self.said = {other: said for other, said in self.said.items() if other in near}
        self.kept[name] = prefix


def _read_share(share: list[str], reader: Reader, results: Results, show) -> None:
    """Read and save the images of one process, one after the other, until the deadline."""
    state, begun, seconds, skipped = PartialState(), False, [], {}
    quiet, bar = not state.is_main_process, dict(unit="image", file=sys.stdout, mininterval=5)
    for at, name in enumerate(tqdm(share, "images", disable=quiet, **bar)):
        start = time.monotonic()
        if seconds and start + max(seconds) > reader.settings.deadline:
            left = count_of(len(share) - at, "image")
            print(f"The time is over with {left} left: run this again to go on.")
            break
        try:
            run = None if begun else reader.check_lens(name)
            record, mean = reader.read(name)
        except (OSError, FloatingPointError) as error:
            skipped[name] = str(error)
        else:
            if not begun:
                results.begin(run, state.process_index)
            results.add(record, mean)
            seconds.append(time.monotonic() - start)
            if not begun and show and state.is_main_process:
                show(run, record)
            begun = True
        while begun and skipped:
            results.skip(*skipped.popitem())
    if skipped:
        reasons = " ".join(f"{name}: {reason}" for name, reason in skipped.items())
        message = f"{count_of(len(skipped), 'image')} tried, none can be read. {reasons}"
        require(state.num_processes > 1 or results.started, message)
        print(message)
    if seconds:
        each = f" in each of {state.num_processes} processes" * (state.num_processes > 1)
        state.print(f"{sum(seconds) / len(seconds):.2f} s per image{each}")
