"""Read all images of a run, in one or several processes."""

import hashlib
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from llava_lens.data.colours import with_colours
from llava_lens.data.crop import objects_in_crop, patches_to_cut
from llava_lens.data.images import digests_of, open_image
from llava_lens.data.prompts import make_prompts
from llava_lens.data.watched import count_together, words_to_watch
from llava_lens.kinds import CHAT, KINDS
from llava_lens.model.causal import knockout_windows, read_knockout
from llava_lens.model.lens import LAST_LAYER_TOLERANCE, check_last_layer
from llava_lens.model.load import Settings, load_llava
from llava_lens.model.read import grey_image, read_control, read_image_and_prefix
from llava_lens.model.run import keep_prefix
from llava_lens.schema import FORMAT_VERSION, SEGMENTS, UNIT
from llava_lens.store import Results
from llava_lens.text import require
from llava_lens.words import token_labels, word_ids


def describe_run(
    bridge, processor, settings: Settings, last_layer_jsd: float, categories: list[str] = ()
) -> dict:
    """RUN: all that is needed to read the records without the model or its tokenizer, or the data
    set's `categories`."""
    config = bridge.original_model.config
    vision = config.vision_config
    return {
        "format_version": FORMAT_VERSION,
        "model": str(settings.model),
        "revision": getattr(config, "_commit_hash", None) or _fingerprint(bridge.original_model),
        "dtype": str(bridge.cfg.dtype).removeprefix("torch."),
        "packages": {
            name: version(name) for name in ("torch", "transformers", "transformer-lens", "numpy")
        },
        "n_layers": bridge.cfg.n_layers,
        "layers": ["emb", *map(str, range(1, bridge.cfg.n_layers + 1))],
        "segments": SEGMENTS,
        "tokens": token_labels(processor.tokenizer, bridge.cfg.d_vocab),
        "grid": vision.image_size // vision.patch_size,
        "image_size": vision.image_size,
        "chat": CHAT,
        "questions": {name: kind.template for name, kind in KINDS.items() if kind.template},
        "own_prompts": settings.prompts,
        "categories": list(categories),
        "per_kind": settings.per_kind,
        "seed": settings.seed,
        "top_k": settings.top_k,
        "max_new_tokens": settings.max_new_tokens,
        "knockout_windows": knockout_windows(bridge.cfg.n_layers, settings.knockout_width)
        if settings.knockout
        else [],
        "last_layer_jsd": last_layer_jsd,
    }


def _fingerprint(model) -> str:
    """A digest of the shape and up to 1,024 values of each weight, evenly spaced: a folder has no
    revision, and two models may share a name. A change of a weight in fewer places can be missed.
    """
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        values = weight.flatten()
        values = values[:: max(1, -(-len(values) // 1024))].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values.tobytes())
    return f"weights {digest.hexdigest()[:16]}"


def read_images(
    image_paths: dict[str, Path], annotations: dict, categories: list[str], folder, settings
) -> None:
    """Load the model and read every image that has no record yet into the results in `folder`.

    `annotations` are those of `lens_data.match_annotations`, `categories` of `read_annotations`,
    `settings` are Settings. The lens is checked on the first image. Where accelerate has launched
    several processes, each loads its own copy of the model and takes its share of the images, and
    none waits for another. An image that can't be read is skipped by name. `image_paths` has all
    images, read or not: the control `other` of each is the image before. Raises ValueError if no
    image can be opened, and what `load_llava`, `check_last_layer` and `Results.begin` raise.
    """
    # The state would else be that of a run before, in this process or in the one that launched it.
    PartialState._reset_state()
    state = PartialState(cpu=settings.device == "cpu")
    if state.num_processes > 1:
        # A forked process has torch's pool of threads without its threads, if the notebook has used
        # torch before: it would wait for them without an end.
        torch.set_num_threads(1)
    # Neighbours in one process: an image's prefix is the control of the next one. Not
    # split_between_processes: before accelerate 1.15 it gives the last image to two processes where
    # there are fewer images than processes.
    ends = np.linspace(0, len(image_paths), state.num_processes + 1).astype(int)
    own = slice(ends[state.process_index], ends[state.process_index + 1])
    # After the split, so that it does not depend on how far another process is.
    share = Results(folder).left(dict(list(image_paths.items())[own]))
    device = str(state.device) if state.num_processes > 1 else settings.device
    bridge, processor = load_llava(settings.model, settings.dtype, device)
    together = f", in {state.num_processes} processes" * (state.num_processes > 1)
    state.print(
        f"{settings.model}: {bridge.cfg.n_layers} layers, d_model {bridge.cfg.d_model}, vocabulary "
        f"{bridge.cfg.d_vocab:,}, {bridge.cfg.dtype} on {bridge.W_U.device}{together}"
    )
    run = describe_run(bridge, processor, settings, 0.0, categories)  # JSD: not known yet
    Results(folder).refuse_another(run)
    _name_wordless(state, processor.tokenizer.get_vocab(), categories)
    read_one = _reader((bridge, processor), image_paths, annotations, run, settings)

    def check_lens(path) -> dict:
        """`run` with the result of the check on this image."""
        largest = check_last_layer(bridge, processor, open_image(path))
        state.print(
            f"largest JSD between the lens at the last layer and the model's output: {largest:.2g} "
            f"{UNIT} (allowed: {LAST_LAYER_TOLERANCE[settings.dtype]:g})"
        )
        return {**run, "last_layer_jsd": largest}

    _read_share(share, check_lens, read_one, Results(folder), settings.deadline)
    state.destroy_process_group()


def _name_wordless(state, vocabulary: dict[str, int], categories: list[str]) -> None:
    wordless = [name for name in categories if not word_ids(vocabulary, name)]
    if wordless:
        state.print(
            f"{len(wordless)} of {len(categories)} categories have no word that is one token, so "
            f"they are not watched in the patches: {', '.join(wordless)}"
        )


def _reader(model: tuple, image_paths: dict, annotations: dict, run: dict, settings) -> Callable:
    """A function that reads one image whole, by name; `model` is `(bridge, processor)`.

    It keeps the prefix of the image that was read last: the next one's control.
    """
    bridge, processor = model
    together, last_prefix, plain = count_together(annotations), {}, {}

    def open_annotated(name) -> Image.Image:
        found = annotations.get(name, [])
        return open_image(image_paths[name], found[0]["image_size"] if found else None)

    def prefix_of(name) -> list[tuple]:
        return keep_prefix(bridge, processor, open_annotated(name))

    def read_one(name, path) -> tuple[dict, np.ndarray]:
        """The whole record of one image, and its mean probability."""
        image, annotated = open_annotated(name), annotations.get(name, [])
        found = with_colours(annotated, image) if annotated else []
        objects = objects_in_crop(found, image.size, processor.image_processor)
        seed, categories = f"{settings.seed} {name}", run["categories"]
        asked = settings.prompts or make_prompts(
            objects, categories, seed, settings.per_kind, together
        )
        words = words_to_watch(processor.tokenizer, objects, categories, asked, seed, together)
        record, mean, prefix = read_image_and_prefix(
            bridge, processor, image, asked, settings, words
        )
        prompts = record["prompts"]
        if not plain:
            plain["grey"] = keep_prefix(bridge, processor, grey_image(processor))
        controls = {"grey": read_control(bridge, plain["grey"], prompts)}
        if before := _prefix_before(list(image_paths), name, last_prefix, prefix_of):
            controls["other"] = read_control(bridge, before, prompts)
        where = objects, run["grid"], run["image_size"], seed
        patches = [patches_to_cut(prompt, *where) for prompt in prompts]
        controls["knockout"] = read_knockout(bridge, prefix, prompts, patches, run)
        for number, prompt in enumerate(prompts):
            prompt.update({control: read[number] for control, read in controls.items()})
        last_prefix.clear()
        last_prefix[name] = prefix
        return {"name": name, **digests_of(path, annotated), "objects": objects, **record}, mean

    return read_one


def _prefix_before(names: list[str], name: str, at_hand: dict, prefix_of) -> list[tuple] | None:
    """The prefix of the image before `name` in the list of all, the last one's for the first; one
    that can't be read is passed over. None if there is no other.

    It is taken from `at_hand` or else run, so that it is the same however the images are shared or
    a run was stopped.
    """
    at = names.index(name)
    for other in reversed(names[at + 1 :] + names[:at]):
        try:
            return at_hand[other] if other in at_hand else prefix_of(other)
        except (OSError, FloatingPointError):
            continue
    return None


def _read_share(share: dict[str, Path], check_lens, read_one, results, deadline: float) -> None:
    """Read and save the images of one process, one after the other, until `deadline`."""
    state, begun, seconds, skipped = PartialState(), False, [], {}
    for name, path in tqdm(
        share.items(),
        "images",
        unit="image",
        file=sys.stdout,
        mininterval=5,
        disable=not state.is_main_process,
    ):
        start = time.monotonic()
        if seconds and start + max(seconds) > deadline:
            left = len(share) - len(seconds) - len(skipped)
            print(f"The time is over with {left} images left: run this again to go on.")
            break
        try:
            run = None if begun else check_lens(path)
            record, mean = read_one(name, path)
        except (OSError, FloatingPointError) as error:
            skipped[name] = str(error)
            if begun:
                results.skip(name, str(error))
            continue
        if not begun:
            results.begin(run, state.process_index)
            for earlier, reason in skipped.items():
                results.skip(earlier, reason)
            begun = True
        results.add(record, mean)
        seconds.append(time.monotonic() - start)
    if skipped and not begun:
        reasons = " ".join(f"{name}: {reason}" for name, reason in skipped.items())
        message = f"None of these {len(skipped)} images can be read. {reasons}"
        require(state.num_processes > 1 or results.started, message)
        print(message)
    if seconds:
        each = f" in each of {state.num_processes} processes" * (state.num_processes > 1)
        state.print(f"{sum(seconds) / len(seconds):.2f} s per image{each}")
