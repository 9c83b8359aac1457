"""A logit lens for LLaVA-1.5: from image + prompt to figures.

Read from top to bottom in the order in which data flows:
finding data -> prompts -> loading the model -> reading -> saving and loading results -> tables -> figures.

The first half (up to reading) needs torch and transformers and imports them where they are used, so that the second half
works on a machine that has neither. By hand, the top-5 tokens at layer 6 of the position where the answer is said:

    bridge, processor = load_llava("demo/model")
    image = open_image("demo/scenes/scene_00.png")
    record, _ = read_image(bridge, processor, image, own_prompts(["What color is the heart?"]), top_k=5)
    prompt, labels = record["prompts"][0], token_labels(processor.tokenizer, bridge.cfg.d_vocab)
    [labels[i] for i in prompt["readings"]["top_ids"][6, prompt["n_prompt"] - 1]]  # [layer, pos, k], layer 0 = emb
"""

import difflib
import gzip
import hashlib
import html
import io
import itertools
import json
import os
import pickle
import pickletools
import random
import re
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

# Torch's threads wait asleep, not spinning: on two cores of which one is busy, spinning made reading an image 50 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# --------------------------------------------------------------------------------------------------------------------
# The machine: what Kaggle lacks
# --------------------------------------------------------------------------------------------------------------------

KAGGLE_INPUT = Path("/kaggle/input")
# What was tested on Kaggle's versions of everything else. The P100's sm_60 is in no wheel of torch after 2.7.1, and
# torchvision or torchaudio of another torch break every import of LLaVA: the three go together.
PIP_LENS = ["transformer-lens==4.3.0"]
PIP_P100 = ["torch==2.7.1", "torchvision==0.22.1", "torchaudio==2.7.1"]


def on_kaggle() -> bool:
    """Whether this runs in a Kaggle notebook."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def find_gpus() -> list[tuple[str, tuple[int, int], int]]:
    """`(name, compute capability, MiB of memory)` of each GPU, asked of nvidia-smi, which needs no torch; empty where there is none."""
    query = [
        "nvidia-smi",
        "--query-gpu=name,compute_cap,memory.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        rows = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []
    cells = [[cell.strip() for cell in row.split(",")] for row in rows if row.strip()]
    return [
        (name, tuple(map(int, capability.split("."))), int(mib)) for name, capability, mib in cells
    ]


def find_torch() -> tuple[str, list[str]]:
    """Version of the installed torch and the GPU architectures it has code for (`sm_60`, ...), asked in a process of its own.

    Torch that is imported once can't be replaced any more in this one.
    """
    code = "import torch; print(torch.__version__, *torch.cuda.get_arch_list())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    version, *architectures = done.stdout.split() or ["none"]
    return version, architectures


def runs_on(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether code for one of `architectures` runs on a GPU: the same major version, and a minor one not above the GPU's."""
    numbers = [
        int(name.removeprefix("sm_").rstrip("af"))
        for name in architectures
        if name.startswith("sm_")
    ]
    return any(number // 10 == capability[0] and number % 10 <= capability[1] for number in numbers)


def prepare_kaggle() -> None:
    """On Kaggle: say what machine this is and install what is missing, before torch is imported. Elsewhere: nothing.

    Raises RuntimeError with the remedy if the machine can't do the work.
    """
    if not on_kaggle():
        print("Not on Kaggle: nothing to install here, requirements.txt has what is needed.")
        return
    # 13.5 GB of weights would fill /kaggle/working, and be saved with the notebook's output.
    os.environ.setdefault("HF_HOME", "/tmp/huggingface")
    gpus, (torch_version, architectures) = find_gpus(), find_torch()
    for name, capability, mib in gpus:
        print(f"GPU: {name}, compute capability {capability[0]}.{capability[1]}, {mib:,} MiB")
    print(f"torch {torch_version} with code for {', '.join(architectures) or 'no GPU'}")
    if not gpus:
        raise RuntimeError(
            "There is no GPU: choose one under Settings > Accelerator (GPU T4 x2 or P100) and run all cells again."
        )
    if not architectures:
        raise RuntimeError(
            f"torch ({torch_version}) can't be used or has no code for any GPU: choose Run > Factory reset, then run all cells again."
        )
    unfit = [
        (name, capability) for name, capability, _ in gpus if not runs_on(capability, architectures)
    ]
    if unfit and unfit[0][1] >= (7, 0):
        raise RuntimeError(
            f"torch {torch_version} has no code for a {unfit[0][0]}: choose another GPU under Settings > Accelerator."
        )
    needed = PIP_P100 * bool(unfit) + PIP_LENS * (
        not _installed("transformer-lens", (4, 3)) or not _installed("transformers", (5, 23))
    )
    if not needed:
        return
    imported = sorted({"torch", "transformers"} & sys.modules.keys())
    if imported:
        raise RuntimeError(
            f"{' and '.join(imported)} of a version that can't be used ({', '.join(needed)} must be installed) is imported already: choose Run > Restart & "
            "clear cell outputs, then run all cells from the top."
        )
    print("pip install", *needed, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *needed], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(
            f"pip could not install {' '.join(needed)}: turn the internet on (Settings > Turn on internet; it asks for a verified phone number "
            f"once) and run this cell again.\n{done.stderr[-1000:]}"
        )


def _installed(package: str, least: tuple[int, int]) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return tuple(map(int, version(package).split(".")[:2])) >= least
    except PackageNotFoundError:
        return False


def data_sets() -> list[Path]:
    """The data sets attached on Kaggle, mounted as `<slug>` or as `datasets/<owner>/<slug>`."""
    paths = sorted([*KAGGLE_INPUT.glob("*"), *KAGGLE_INPUT.glob("datasets/*/*")])
    return [path for path in paths if path.is_dir() and path != KAGGLE_INPUT / "datasets"]


# --------------------------------------------------------------------------------------------------------------------
# Finding data
# --------------------------------------------------------------------------------------------------------------------

IMAGE_FORMATS = [
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
]  # said, because Pillow knows formats that start programs
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def find_images(folder) -> dict[str, Path]:
    """All images under `folder`, by name: the path below `folder` with `/` written as `__`, so that a name is a file name (shortened, with a digest,
    where it would be too long, not UTF-8 or another one's).

    Raises FileNotFoundError if the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No folder {str(folder)!r}: set `images` to the folder that holds the images."
        )
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not paths:
        raise FileNotFoundError(
            f"No image under {str(folder)!r}: looked for {', '.join(sorted(IMAGE_SUFFIXES))} in it and its subfolders."
        )
    names = {}
    for path in paths:
        name = "__".join(path.relative_to(folder).parts)
        if (
            name in names or len(os.fsencode(name)) > 200 or not _is_text(name)
        ):  # it would not do as the name of one file
            digest = hashlib.sha256(os.fsencode(path.relative_to(folder))).hexdigest()[:12]
            name = f"{name.encode('ascii', 'replace').decode().replace('?', '_')[:100]}~{digest}{path.suffix}"
        names[name] = path
    return names


def _is_text(value) -> bool:
    """Whether `value` is a text that can be written to any file."""
    try:
        return isinstance(value, str) and value.strip() != "" and value.encode("utf-8") is not None
    except UnicodeEncodeError:  # half a character, from a file name that is not UTF-8 for instance
        return False


def find_data() -> Path:
    """The attached Kaggle data set to read, chosen by what is in it: images with COCO annotations, else images.

    Raises FileNotFoundError, which says how to attach one, if no data set holds an image.
    """
    with_images = [
        folder
        for folder in data_sets()
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))
    ]
    annotated = [folder for folder in with_images if read_annotations(folder)[0]]
    if not with_images:
        raise FileNotFoundError(
            "No attached data set holds an image: choose Add Input, search for COCO-data-100, add it, and run this cell again."
        )
    return (annotated or with_images)[0]


def read_annotations(folder) -> tuple[dict[str, list[dict]], list[str], list[str]]:
    """Objects per image and all category names, from the COCO instances files (`*.json`) under `folder`, and what in them can't be used.

    Returns `({file name: [{"category", "box": (x, y, width, height) in pixels, "crowd", "color", "image_size": (width, height) or None}]},
    [category, ...], [problem, ...])`; the first two are empty where there are no annotations. `color` is None unless an annotation carries that extra attribute.
    """
    paths = sorted(Path(folder).rglob("*.json"))
    # COCO ships keypoints and captions beside the instances; they name the same objects again, or none.
    paths = [path for path in paths if path.name.startswith("instances")] or paths
    objects, categories, problems, contents, ambiguous = {}, set(), [], set(), set()
    for path in paths:
        try:
            content = path.read_bytes()
            data = json.loads(content)
            names = _by_id(path, data["categories"], lambda category: category["name"], problems)
            images = _by_id(
                path,
                data["images"],
                lambda image: (
                    Path(image["file_name"]).name,
                    image.get("width"),
                    image.get("height"),
                ),
                problems,
            )
            annotations = list(data["annotations"])
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:  # another file, JSON lines for instance
            problems.append(
                f"{path.name} has no annotations in COCO's instances format ({type(error).__name__}: {str(error)[:80]})"
            )
            continue
        if content in contents:  # a copy of a file
            continue
        contents.add(content)
        for number, name in list(names.items()):
            if not _is_text(name) or "<image>" in name:
                problems.append(
                    f"{path.name}, category {number}: {name!r:.50} can't be asked about"
                )
                del names[number]
        categories.update(names.values())
        listed = Counter(file for file, _, _ in images.values())
        ambiguous |= {file for file, times in listed.items() if times > 1 or file in objects}
        objects.update({file: [] for file in listed if file not in objects})
        seen = set()
        for number, annotation in enumerate(annotations):
            try:
                file, width, height = images[annotation["image_id"]]
                category, box = names[annotation["category_id"]], annotation["bbox"]
                if (
                    not isinstance(box, list)
                    or len(box) != 4
                    or not all(isinstance(side, (int, float)) and abs(side) <= 1e6 for side in box)
                    or min(box[2:]) <= 0
                ):
                    raise ValueError(
                        f"the box {box!r:.60} is not x, y and a width and height above 0"
                    )
                its_id = annotation.get("id", f"number {number}")
                if its_id in seen:
                    raise ValueError(f"the id {its_id} is there twice")
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
                problems.append(f"{path.name}, annotation {number}: {reason[:120]}")
                continue
            seen.add(its_id)
            color = annotation.get("color")
            objects[file].append(
                {
                    "category": category,
                    "box": tuple(map(float, box)),
                    "crowd": bool(annotation.get("iscrowd", 0)),
                    "color": color if _is_text(color) else None,
                    "image_size": (width, height)
                    if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0
                    else None,
                }
            )
    for file in sorted(ambiguous):
        problems.append(
            f"{file}: several annotated images have this name, so its objects are left out"
        )
        del objects[file]
    return objects, sorted(categories), problems


def _by_id(path: Path, entries, value_of: Callable, problems: list[str]) -> dict:
    """`{id: value_of(entry)}`, without what several entries call by one id; these are added to `problems`."""
    times = Counter(entry["id"] for entry in entries)
    problems += [
        f"{path.name}: {count} entries have the id {number!r:.20}, none is used"
        for number, count in times.items()
        if count > 1
    ]
    return {entry["id"]: value_of(entry) for entry in entries if times[entry["id"]] == 1}


def open_image(path, size: tuple[int, int] | None = None) -> Image.Image:
    """The first frame of an image in RGB, whatever its mode (greyscale, palette, alpha, CMYK, 16 bits), upright.

    `size` (width, height) is that of its annotations: if it is the image's as stored, and not upright, so are the boxes, and the image stays as stored.
    Raises OSError, which names the file, if it can't be decoded to its end, is more than 100 times as long as wide, or has another shape than `size`.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as stored:
            stored.load()
            image = ImageOps.exif_transpose(stored)
            if size == stored.size != image.size:
                image = stored
            if max(image.size) > 100 * min(image.size):
                raise ValueError(
                    f"it is {image.width} x {image.height}, and the model would see next to nothing of it"
                )
            # Annotations of the same image in another resolution do; rounded to whole pixels, either side may be off by one.
            if size and abs(size[0] * image.height - size[1] * image.width) > max(
                *size, *image.size
            ):
                raise ValueError(
                    f"it is {image.width} x {image.height}, and its annotations are for {size[0]} x {size[1]}"
                )
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers of an unknown range")
            if image.mode.startswith(
                "I"
            ):  # 16 bits per pixel, which convert() would clip, not scale
                image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
            if "transparency" in image.info or image.mode in ("LA", "PA", "RGBa"):
                image = image.convert("RGBA")
            if (
                image.mode == "RGBA"
            ):  # on white, as a viewer shows it: what lies under full transparency is arbitrary
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Exception as error:  # a damaged image can raise nearly anything
        raise OSError(
            f"Image {str(path)!r} can't be read ({error}): replace or remove it."
        ) from error


def to_crop(
    box, image_size: tuple[int, int], image_processor
) -> tuple[tuple[float, float, float, float], float]:
    """A box `(x, y, width, height)` of the image in pixels of the model's crop, clipped to it, and its visible share (0 ... 1).

    CLIP's processor resizes the shortest edge and crops the centre: what lies outside the crop was never seen.
    """
    width, height = image_size
    short = image_processor.size["shortest_edge"]
    crop_width, crop_height = (
        image_processor.crop_size["width"],
        image_processor.crop_size["height"],
    )
    # int() as in transformers.image_transforms.get_resize_output_image_size
    new_width, new_height = (
        (short, int(short * height / width))
        if width <= height
        else (int(short * width / height), short)
    )
    left, top = (new_width - crop_width) // 2, (new_height - crop_height) // 2
    x, y, w, h = box
    x, w = x * new_width / width - left, w * new_width / width
    y, h = y * new_height / height - top, h * new_height / height
    x0, x1 = np.clip([x, x + w], 0, crop_width)
    y0, y1 = np.clip([y, y + h], 0, crop_height)
    visible = min(1.0, (x1 - x0) * (y1 - y0) / (w * h)) if w > 0 and h > 0 else 0.0
    return (float(x0), float(y0), float(x1 - x0), float(y1 - y0)), float(visible)


def crop_objects(objects: list[dict], image_size: tuple[int, int], image_processor) -> list[dict]:
    """Objects of `read_annotations` with `box` in the model's crop, `visible` (share of the object) and `share` (of the crop).

    Boxes for another resolution of the image (their own `image_size`) are scaled.
    """
    crop_area = image_processor.crop_size["width"] * image_processor.crop_size["height"]
    cropped = []
    for item in objects:
        box, visible = to_crop(item["box"], item.get("image_size") or image_size, image_processor)
        kept = {name: value for name, value in item.items() if name != "image_size"}
        cropped.append(
            {**kept, "box": box, "visible": visible, "share": box[2] * box[3] / crop_area}
        )
    return cropped


def patch_cover(box, grid: int, crop_size: int) -> np.ndarray:
    """The share (0 ... 1) of each patch `[grid * grid]`, row by row, that a box of the crop (`crop_objects`) covers."""
    edges = np.linspace(0, crop_size, grid + 1)
    x, y, width, height = box
    columns = np.clip(np.minimum(edges[1:], x + width) - np.maximum(edges[:-1], x), 0, None)
    rows = np.clip(np.minimum(edges[1:], y + height) - np.maximum(edges[:-1], y), 0, None)
    return np.outer(rows, columns).ravel() * (grid / crop_size) ** 2


# --------------------------------------------------------------------------------------------------------------------
# Prompts
# --------------------------------------------------------------------------------------------------------------------

CHAT = "USER: <image>\n{question} ASSISTANT:"  # LLaVA-1.5's conversation format: the image stands before the question
SHORT_ANSWER = (
    "Answer the question using a single word or phrase."  # LLaVA-1.5's own line for short answers
)
KINDS = ["object", "presence", "colour", "relation", "description", "own"]


def object_question() -> str:
    return f"What is the main object in the image?\n{SHORT_ANSWER}"


def presence_question(category: str) -> str:
    return f"Is there {'an' if category[0] in 'aeiou' else 'a'} {category} in the image?\n{SHORT_ANSWER}"


def colour_question(category: str) -> str:
    return f"What color is the {category}?\n{SHORT_ANSWER}"


def relation_question(a: str, b: str) -> str:
    return f"Where is the {a} relative to the {b}: left, right, above or below?\n{SHORT_ANSWER}"


DESCRIPTION_QUESTION = "Describe the image."


def relation_of(box_a, box_b) -> str | None:
    """Where `a` is relative to `b` (`left`, `right`, `above`, `below`), or None unless the boxes are clearly apart.

    Clearly: no overlap along the main direction, and the centres 1.5 times as far apart along it as along the other.
    """
    (ax, ay, aw, ah), (bx, by, bw, bh) = box_a, box_b
    dx, dy = (ax + aw / 2) - (bx + bw / 2), (ay + ah / 2) - (by + bh / 2)
    if abs(dx) >= 1.5 * abs(dy) and abs(dx) >= (aw + bw) / 2:
        return "left" if dx < 0 else "right"
    if abs(dy) >= 1.5 * abs(dx) and abs(dy) >= (ah + bh) / 2:
        return "above" if dy < 0 else "below"
    return None


def make_prompts(
    objects: list[dict], categories: list[str], seed: int | str = 0, per_kind: int = 1
) -> list[dict]:
    """Prompts of the five kinds for one image: `[{"kind", "question", "truth"}]`, truth None where it is not known.

    `objects` come from `crop_objects`, `categories` are all that the data set knows. Asked about are objects at least half of which is in the
    crop and which fill at least 1 % of it. Among the candidates of a kind `per_kind` are drawn with `seed` (presence: so many
    present and as many absent categories). Without annotations (`objects` empty): object and description alone.
    """
    rng, prompts = random.Random(seed), []

    def add(kind, candidates):
        for question, truth in rng.sample(candidates, min(per_kind, len(candidates))):
            prompts.append({"kind": kind, "question": question, "truth": truth})

    if not objects:
        add("object", [(object_question(), None)])
        add("description", [(DESCRIPTION_QUESTION, None)])
        return prompts
    clear = [
        item
        for item in objects
        if not item["crowd"] and item["visible"] >= 0.5 and item["share"] >= 0.01
    ]
    # A second dog makes "the dog" ambiguous even where it is small, cut off or part of a crowd.
    count = Counter(item["category"] for item in objects)
    single = [item for item in clear if count[item["category"]] == 1]
    if clear:
        largest = max(clear, key=lambda item: item["share"])
        rest = [item["share"] for item in objects if item["category"] != largest["category"]]
        if largest["share"] >= 1.5 * max(rest, default=0):
            add("object", [(object_question(), largest["category"])])
    add(
        "presence",
        [
            (presence_question(category), "yes")
            for category in sorted({item["category"] for item in clear})
        ],
    )
    add(
        "presence",
        [(presence_question(category), "no") for category in categories if category not in count],
    )
    add("colour", [(colour_question(item["category"]), item["color"]) for item in single])
    pairs = [
        (a["category"], b["category"], relation_of(a["box"], b["box"]))
        for a, b in itertools.permutations(single, 2)
    ]
    add("relation", [(relation_question(a, b), relation) for a, b, relation in pairs if relation])
    add("description", [(DESCRIPTION_QUESTION, None)])
    return prompts


def own_prompts(prompts: list) -> list[dict]:
    """The reader's own prompts in the form of `make_prompts`; each is a question or a dict with `question` and optionally `kind`, `truth`.

    Raises ValueError for an empty question, one that brings its own `<image>`, and an unknown kind.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the text {prompts!r}: put it into a list, [{prompts!r}].")
    prompts = [
        {
            "kind": "own",
            "truth": None,
            **(prompt if isinstance(prompt, dict) else {"question": prompt}),
        }
        for prompt in prompts
    ]
    for number, prompt in enumerate(prompts):
        if not _is_text(prompt.get("question")):
            raise ValueError(
                f"Prompt {number} is empty or no text: give a question, or an empty list for the prompts made from annotations."
            )
        if unknown := prompt.keys() - {"kind", "question", "truth"}:
            raise ValueError(
                f"Prompt {number} has {', '.join(map(repr, unknown))}: only question, kind and truth have a meaning."
            )
        if not (prompt["truth"] is None or _is_text(prompt["truth"])):
            raise ValueError(
                f"Prompt {number} has the truth {prompt['truth']!r}: it must be a text or None."
            )
        if prompt["kind"] not in KINDS:
            raise ValueError(
                f"Prompt {number} is of the kind {prompt['kind']!r}: it must be one of {', '.join(KINDS)}."
            )
        if "<image>" in prompt["question"]:
            raise ValueError(
                f"Prompt {number} ({prompt['question']!r}) has its own <image>: leave it out, "
                f"the image is put before the question ({CHAT!r})."
            )
    return prompts


# --------------------------------------------------------------------------------------------------------------------
# Loading the model
# --------------------------------------------------------------------------------------------------------------------


ROOM = 2**30  # bytes that reading needs on a GPU beside the weights


def placement(weights: int, free: list[int]):
    """A device_map for `weights` bytes on GPUs with `free` bytes each: one GPU if ROOM is left there, else split, else an error.

    A P100 or one T4 holds LLaVA-1.5-7B in float16 (13.2 GiB). Without a GPU: the CPU. Raises MemoryError with the numbers.
    """
    if not free:
        return {"": "cpu"}
    largest = max(range(len(free)), key=lambda gpu: free[gpu])
    if weights + ROOM <= free[largest]:
        return {"": largest}
    if weights + len(free) * ROOM <= sum(free):
        return "balanced"
    raise MemoryError(
        f"The weights take {weights / 2**30:.1f} GiB and reading some {ROOM / 2**30:.1f} GiB per GPU more, but free are only "
        f"{' + '.join(f'{one / 2**30:.1f}' for one in free)} GiB: end what else uses the GPU (restart the kernel), take a larger one, or set device to cpu."
    )


def copies_that_fit(model: str, dtype: str = "float16", revision: str | None = None) -> int:
    """On how many GPUs the whole model has room, at least 1: so many processes can share the images.

    Asked in a process of its own: once a notebook has used a GPU, the processes that it launches can't. Errors as of `load_llava`.
    """
    code = "import torch; print(*(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    weights = weight_bytes(_llava_config(model, revision), dtype)
    return max(1, sum(weights + ROOM <= int(free) for free in done.stdout.split()))


def weight_bytes(config, dtype: str) -> int:
    """Bytes of the weights of a LLaVA of this configuration in `dtype`; nothing is allocated."""
    import torch
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        return (
            sum(weight.numel() for weight in LlavaForConditionalGeneration(config).parameters())
            * getattr(torch, dtype).itemsize
        )


def _llava_config(model: str, revision: str | None):
    from transformers import AutoConfig

    if not Path(model).is_dir() and Path(model).parent.is_dir() and Path(model).parent != Path("."):
        raise ValueError(
            f"{model!r} is neither a folder nor a hub id: {str(Path(model).parent)!r} has no {Path(model).name!r} in it."
        )
    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{model!r} is neither a folder with a saved LLaVA nor a model that the hub gives out here. On Kaggle, turn the internet on under Settings. ({error})"
        ) from error
    if config.model_type != "llava":
        raise ValueError(
            f"{model!r} is a {config.model_type!r} model, not a LLaVA-1.5: try llava-hf/llava-1.5-7b-hf."
        )
    return config


def load_llava(
    model: str, dtype: str = "float16", device: str | None = None, revision: str | None = None
):
    """`(bridge, processor)` of a LLaVA-1.5 given as a hub id or a local folder, on `device` (default: see `placement`).

    The weights are loaded once, straight to where they stay, in `dtype`; the TransformerBridge shares them. Raises ValueError if `model`
    is no LLaVA, MemoryError, before anything large is downloaded, if it has no room.
    """
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = str(model)
    if dtype not in LAST_LAYER_TOLERANCE:
        raise ValueError(
            f"dtype is {dtype!r}: it must be one of {', '.join(LAST_LAYER_TOLERANCE)}."
        )
    weights = weight_bytes(_llava_config(model, revision), dtype)
    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]
    if on_kaggle() and not free and not device:
        raise RuntimeError(
            "torch sees no GPU: restart the kernel and run all cells from the top, or set device to cpu if that is meant."
        )
    dtype = getattr(torch, dtype)
    hf_model = LlavaForConditionalGeneration.from_pretrained(
        model,
        revision=revision,
        dtype=dtype,
        attn_implementation="eager",
        device_map={"": device} if device else placement(weights, free),
    )
    # The PIL processor everywhere: torchvision's, taken where it is installed, gives slightly other pixels.
    processor = AutoProcessor.from_pretrained(model, revision=revision, backend="pil")
    bridge = TransformerBridge.boot_transformers(
        model,
        hf_model=hf_model,
        tokenizer=processor.tokenizer,
        dtype=dtype,
        # Said, because it would take a GPU for the model's device wherever there is one.
        device=hf_model.get_input_embeddings().weight.device,
    )
    return bridge.eval(), processor


def token_labels(tokenizer, d_vocab: int) -> list[str]:
    """One label per row of the unembedding: the token as the vocabulary spells it (`▁dog` is not `dog`).

    Rows past the tokenizer's last token (LLaVA-1.5: 32,002 to 32,063) are named `<rowN>`.
    """
    labels = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))[:d_vocab]
    return labels + [f"<row{row}>" for row in range(len(labels), d_vocab)]


PLURALS = {
    "person": "people",
    "mouse": "mice",
    "knife": "knives",
    "sheep": "sheep",
    "skis": "skis",
    "scissors": "scissors",
}


def plural_of(noun: str) -> str:
    """The plural of a noun, as far as COCO's categories need it."""
    if noun in PLURALS:
        return PLURALS[noun]
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


def category_words(
    tokenizer,
    objects: list[dict],
    categories: list[str],
    prompts: list[dict] = (),
    seed: int | str = 0,
) -> list[dict]:
    """The words to watch in the patches of one image: its own categories, of which at least a tenth of an object is in the crop, and as many that it does not have.

    The latter are first those that its presence `prompts` ask about, then others drawn with `seed`, none with a token of one that is there. Returns
    `[{"category", "plural", "present", "token_ids", "several_tokens"}]`: the ids are of the first token of the singular and of the plural, each with a leading
    space; `several_tokens` says that one of these is a fragment, which may belong to another word. `objects` as of `crop_objects`.
    """

    def word(category, present):
        # As it stands within a sentence: alone, some tokenizers give a word no leading space.
        article, *both = (
            tokenizer(f"a {noun}".strip(), add_special_tokens=False)["input_ids"]
            for noun in ("", category, plural_of(category))
        )
        singular, plural = (ids[len(article) :] for ids in both)
        return {
            "category": category,
            "plural": plural_of(category),
            "present": present,
            "token_ids": sorted({singular[0], plural[0]}),
            "several_tokens": len(singular) > 1 or len(plural) > 1 and plural[0] != singular[0],
        }

    present = [
        word(category, True)
        for category in sorted({item["category"] for item in objects if item["visible"] >= 0.1})
    ]
    taken = {i for its in present for i in its["token_ids"]}
    others = [
        word(category, False)
        for category in sorted(set(categories) - {item["category"] for item in objects})
    ]
    others = [its for its in others if not taken & set(its["token_ids"])]
    questions = {prompt["question"] for prompt in prompts}
    asked = [its for its in others if presence_question(its["category"]) in questions][
        : len(present)
    ]
    rest = [its for its in others if its not in asked]
    return (
        present
        + asked
        + random.Random(seed).sample(rest, min(len(present) - len(asked), len(rest)))
    )


# --------------------------------------------------------------------------------------------------------------------
# Reading: the lens, the divergence, one image
# --------------------------------------------------------------------------------------------------------------------

SEGMENTS = ["image", "prompt", "answer"]
# Bits. Entropies in float32 leave 2e-6; logits rounded otherwise by one unit in the last place of float16 up to 2e-4.
LAST_LAYER_TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}


def lens_logits(bridge, resid):
    """Logit lens: the logits `[pos, d_vocab]`, float32, that norm and unembedding, in the model's dtype, read from `resid` `[pos, d_model]`.

    Their softmax is the distribution. Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    return bridge.unembed(bridge.ln_final(resid[None]))[0].float()


def by_rows(function, *distributions):
    """`function` `[...]` of distributions `[..., d_vocab]`, called on a few at a time: on a CPU 16 stay in its cache, which is twice as fast."""
    import torch

    n_rows = 16 if distributions[0].device.type == "cpu" else 1024
    rows = [p.reshape(-1, p.shape[-1]).split(n_rows) for p in distributions]
    return torch.cat([function(*some) for some in zip(*rows)]).view(distributions[0].shape[:-1])


def entropy_bits(p):
    """Entropy `[...]` in bits of the distributions `p` `[..., d_vocab]`."""
    import torch

    # Four times faster than torch.special.entr on a CPU; the clamp makes 0 log 0 = 0.
    return by_rows(
        lambda some: (
            some.clamp_min(torch.finfo(p.dtype).tiny).log_().mul_(some).sum(-1) / -np.log(2)
        ),
        p,
    )


def jsd_bits(p, q, entropy_p=None, entropy_q=None):
    """Jensen-Shannon divergence `[...]` in bits (0 ... 1) of `p` and `q` `[..., d_vocab]`: H(m) - H(p)/2 - H(q)/2, m = (p + q)/2.

    The divergence, not its square root (the distance). Entropies that are known already can be given.
    Source: Lin, "Divergence measures based on the Shannon entropy" (1991).
    """
    entropy_p = entropy_bits(p) if entropy_p is None else entropy_p
    entropy_q = entropy_bits(q) if entropy_q is None else entropy_q
    # The clamp removes rounding only: a difference of entropies of some 15 bits in float32.
    entropy_m = by_rows(lambda some_p, some_q: entropy_bits(some_p.lerp(some_q, 0.5)), p, q)
    return (entropy_m - (entropy_p + entropy_q) / 2).clamp(0, 1)


def top_k_of(p, k: int):
    """`p.topk(k)` of `p` `[pos, d_vocab]`, by way of the `k` blocks of 64 tokens with the largest maxima: exact, and three times faster on a CPU."""
    n_pos, d_vocab = p.shape
    if d_vocab % 64 or d_vocab // 64 <= k:
        return p.topk(k)
    blocks = p.view(n_pos, -1, 64)
    chosen = blocks.amax(-1).topk(k).indices
    values, within = blocks.gather(1, chosen[:, :, None].expand(-1, -1, 64)).flatten(1).topk(k)
    return values, chosen.gather(1, within // 64) * 64 + within % 64


def rank_of(p, prob):
    """Rank `[pos]` (1 = top) of a token with the probability `prob` `[pos, 1]` in `p` `[pos, d_vocab]`."""
    import torch

    # As bytes: torch sums booleans slowly on a CPU.
    return (
        by_rows(lambda some, its: (some > its).view(torch.int8).sum(-1, dtype=torch.int32), p, prob)
        + 1
    )


def run_and_capture(bridge, input_ids, cache, logits_to_keep: int = 1, **inputs):
    """Run the model on `input_ids` `[pos]` after what `cache` holds, capturing the residual stream by hooks.

    Returns `([residual stream [pos, d_model] per layer], logits [kept, d_vocab])`; layer 0 is the embedding output, logits are kept at
    the last `logits_to_keep` positions (0: all). All on the unembedding's device, which in a model split over two GPUs is not that of every layer.
    Raises FloatingPointError, which names the layer, for NaN or infinity.
    """
    import torch

    n_layers, device = bridge.cfg.n_layers, bridge.W_U.device
    residuals = [None] * (n_layers + 1)

    def keep(resid, hook, layer):
        residuals[layer] = resid[0].to(device)

    hooks = [("blocks.0.hook_resid_pre", partial(keep, layer=0))]
    hooks += [
        (f"blocks.{block}.hook_resid_post", partial(keep, layer=block + 1))
        for block in range(n_layers)
    ]
    with bridge.hooks(fwd_hooks=hooks):
        logits = bridge(
            input_ids[None].to(bridge.cfg.device),
            past_key_values=cache,
            logits_to_keep=logits_to_keep,
            **inputs,
        )
    logits = logits[0].to(device)
    # A sum is finite only if all that it adds is; in float32, where sums of half precision can't overflow. One wait for the GPU for all layers.
    finite = (
        torch.stack([values.sum(dtype=torch.float32) for values in [*residuals, logits]])
        .isfinite()
        .tolist()
    )
    if not all(finite):
        where = (
            "the logits"
            if all(finite[:-1])
            else f"the residual stream, first at layer {finite.index(False)} of {n_layers}"
        )
        raise FloatingPointError(f"NaN or infinity in {where}: try dtype float32.")
    return residuals, logits


def read_positions(
    bridge, residuals: list, segments, targets, prob_sum, top_k: int, slice_size: int = 64, words=()
) -> dict[str, np.ndarray]:
    """Read every layer at every position: `residuals` is `[pos, d_model]` per layer, readings are arrays `[layer, pos]`.

    `top_ids`, `top_probs` `[layer, pos, top_k]`; `jsd_prev` to the previous layer (NaN at layer 0) and `jsd_final` to the last, in bits;
    `entropy` in bits; `target_prob` and `target_rank` (1 = top) of `targets` `[pos]`, or, where that is -1, of the last layer's top-1.
    `prob_sum` `[segment, layer, d_vocab]` is added to in place: the distributions, summed per segment, where `segments` `[pos]` says.
    With `words` (lists of token ids) also `words` `[layer, pos, word]`: the sum of the probabilities of each one's tokens.
    Slices of `slice_size` positions bound the memory: all layers' distributions of an image would be 2.5 GB.
    """
    import torch

    n_pos, device = len(segments), prob_sum.device
    shape = (len(residuals), n_pos)
    readings = {
        name: torch.full(shape, torch.nan, device=device)
        for name in ("jsd_prev", "jsd_final", "entropy", "target_prob")
    }
    readings["target_rank"] = torch.zeros(shape, dtype=torch.int32, device=device)
    readings["top_ids"] = torch.zeros(*shape, top_k, dtype=torch.int32, device=device)
    readings["top_probs"] = torch.zeros(*shape, top_k, device=device)
    if words:
        readings["words"] = torch.zeros(*shape, len(words), device=device)
    logit_sums = torch.zeros(
        shape, device=device
    )  # finite only if all logits are: softmax would hide a -inf
    one_hot = (segments[None] == torch.arange(len(SEGMENTS), device=device)[:, None]).float()
    for start in range(0, n_pos, slice_size):
        at = slice(start, start + slice_size)
        final_logits = lens_logits(bridge, residuals[-1][at])
        final = final_logits.softmax(-1)
        entropy_final = entropy_bits(final)
        target = torch.where(targets[at] >= 0, targets[at], top_k_of(final, 1)[1][:, 0])[:, None]
        for layer, resid in enumerate(residuals):
            last = layer == len(residuals) - 1
            logits = final_logits if last else lens_logits(bridge, resid[at])
            logit_sums[layer, at] = logits.sum(-1)
            p = final if last else logits.softmax(-1)
            entropy = entropy_bits(p)
            readings["entropy"][layer, at] = entropy
            readings["jsd_final"][layer, at] = jsd_bits(p, final, entropy, entropy_final)
            if layer > 0:
                readings["jsd_prev"][layer, at] = jsd_bits(p, previous, entropy, entropy_previous)
            previous, entropy_previous = p, entropy
            readings["top_probs"][layer, at], readings["top_ids"][layer, at] = top_k_of(p, top_k)
            target_prob = p.gather(1, target)
            readings["target_prob"][layer, at] = target_prob[:, 0]
            readings["target_rank"][layer, at] = rank_of(p, target_prob)
            prob_sum[:, layer] += one_hot[:, at] @ p
            for number, ids in enumerate(words):
                readings["words"][layer, at, number] = p[:, ids].sum(-1)
    readings = {name: values.cpu().numpy() for name, values in readings.items()}
    broken = np.flatnonzero(~logit_sums.isfinite().all(dim=1).cpu())
    if broken.size:  # the residual stream was finite (`run_and_capture`), so it is the unembedding that overflowed
        raise FloatingPointError(
            f"NaN or infinity in the lens's logits, first at layer {broken[0]} of {len(residuals) - 1}: try dtype float32."
        )
    id_type = np.min_scalar_type(bridge.cfg.d_vocab)  # uint16 for LLaVA-1.5
    return {
        **readings,
        "top_ids": readings["top_ids"].astype(id_type),
        "target_rank": readings["target_rank"].astype(id_type),
    }


def encode(processor, image: Image.Image, questions: list[str]):
    """`(pixel_values [1, 3, height, width], [input ids [pos] per question])`, each prompt tokenised whole, `<s>` in front.

    The image is processed once. What the processor would do once per prompt, putting as many `<image>` as there are patches, is done here.
    """
    import torch

    pixel_values = processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
    n_patches = (
        pixel_values.shape[-2]
        // processor.patch_size
        * (pixel_values.shape[-1] // processor.patch_size)
    )
    texts = [
        CHAT.format(question=question).replace("<image>", processor.image_token * n_patches)
        for question in questions
    ]
    sequences = [torch.tensor(processor.tokenizer(text)["input_ids"]) for text in texts]
    assert all(sequence[0] == processor.tokenizer.bos_token_id for sequence in sequences), (
        "the tokenizer left out <s>"
    )
    return pixel_values, sequences


def read_image(
    bridge,
    processor,
    image: Image.Image,
    prompts: list[dict],
    top_k: int = 10,
    max_new_tokens: int = 20,
    words: list[dict] = (),
    at_once: int = 256,
) -> tuple[dict, np.ndarray]:
    """`(record, mean_probability)` of one image (RGB) with its prompts (`make_prompts`, `own_prompts`), as plain values.

    The prefix up to the last image token runs once; each prompt and its greedy answer go on from its key-value cache, `at_once` tokens at a
    time, which bounds the memory for a prompt of any length. A position's reading is about the token that comes next: the answer's first token is read
    at the prompt's last position. The tokens before the image see neither image nor question, so they are run, not read.

    The record: `patches` (readings as of `read_positions`, positions = patches row by row), `prompts` (each as given, with the `token_ids` `[pos]` at the
    positions read, of which the first `n_prompt` are the prompt's, `answer_ids` with the end token, `answer`, and `readings`), `words` (`category_words`, each with
    `log2_probs` `[layer, patch]`, in float16: right to a hundredth of the probability) and `crop` (the image as the model saw it, JPEG). `mean_probability` `[segment, layer, d_vocab]`, float32: over the segment's positions; NaN where it has none.
    Raises ValueError for `top_k` outside 1 ... d_vocab, for no prompt or new token and for a prompt beyond the model's context, FloatingPointError for
    NaN or infinity.
    """
    import torch
    from transformers import DynamicCache

    d_vocab, device = bridge.cfg.d_vocab, bridge.W_U.device
    if not 1 <= top_k <= d_vocab:
        raise ValueError(f"top_k is {top_k}: it must be from 1 to the vocabulary's {d_vocab}.")
    if max_new_tokens < 1 or not prompts:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens} and there are {len(prompts)} prompts: there must be one at least of each."
        )
    end_ids = np.atleast_1d(bridge.original_model.generation_config.eos_token_id)
    pixel_values, sequences = encode(processor, image, [prompt["question"] for prompt in prompts])
    longest, context = (
        max(map(len, sequences)) + max_new_tokens,
        bridge.original_model.config.text_config.max_position_embeddings,
    )
    if longest > context:
        raise ValueError(
            f"A prompt has, with its image and max_new_tokens, {longest} tokens, and the model's context {context}: shorten it."
        )
    at_image = (sequences[0] == bridge.original_model.config.image_token_id).nonzero()[:, 0]
    first, n_prefix = int(at_image[0]), int(at_image[-1]) + 1
    assert n_prefix - first == len(at_image), "the image tokens are not in one piece"
    prob_sum = torch.zeros(len(SEGMENTS), bridge.cfg.n_layers + 1, d_vocab, device=device)
    n_read = np.zeros(len(SEGMENTS), dtype=int)

    def read(residuals, segments, targets, words=()):
        n_read[:] += np.bincount(segments, minlength=len(SEGMENTS))
        return read_positions(
            bridge,
            residuals,
            torch.tensor(segments, device=device),
            torch.tensor(targets, device=device),
            prob_sum,
            top_k,
            words=words,
        )

    record = {"prompts": []}
    with torch.inference_mode():
        cache = DynamicCache()
        pixels = pixel_values.to(bridge.cfg.device, bridge.cfg.dtype)
        residuals, _ = run_and_capture(bridge, sequences[0][:n_prefix], cache, pixel_values=pixels)
        record["patches"] = read(
            [resid[first:] for resid in residuals],
            [0] * len(at_image),
            [-1] * len(at_image),
            [word["token_ids"] for word in words],
        )
        probs = np.log2(
            np.maximum(record["patches"].pop("words", np.zeros((0, 0, 0))), np.float32(2**-126))
        ).astype(np.float16)
        record["words"] = [
            {**word, "log2_probs": np.ascontiguousarray(probs[:, :, number])}
            for number, word in enumerate(words)
        ]
        for prompt, sequence in zip(prompts, sequences):
            to_run = list(sequence[n_prefix:].split(at_once))
            n_prompt, token_ids, answer_ids, readings, runs, segments, targets = (
                len(sequence) - n_prefix,
                [],
                [],
                [],
                [],
                [],
                [],
            )
            while to_run:
                ids = to_run.pop(0)
                residuals, logits = run_and_capture(bridge, ids, cache)
                runs.append(residuals)
                segments += [1 if len(token_ids) < n_prompt else 2] * len(ids)
                targets += [-1] * len(ids)
                token_ids += ids.tolist()
                if len(token_ids) >= n_prompt:
                    answer_ids.append(int(logits[-1].argmax()))
                    targets[-1] = answer_ids[-1]
                    if answer_ids[-1] not in end_ids and len(answer_ids) < max_new_tokens:
                        to_run.append(torch.tensor(answer_ids[-1:]))
                if len(targets) >= at_once or not to_run:
                    readings.append(
                        read([torch.cat(layer) for layer in zip(*runs)], segments, targets)
                    )
                    runs, segments, targets = [], [], []
            cache.crop(-len(token_ids))  # back to the prefix, for the next prompt
            record["prompts"].append(
                {
                    **prompt,
                    "token_ids": np.array(token_ids),
                    "n_prompt": n_prompt,
                    "answer_ids": np.array(answer_ids),
                    "answer": processor.decode(answer_ids, skip_special_tokens=True).strip(),
                    "readings": {
                        name: np.concatenate([some[name] for some in readings], axis=1)
                        for name in readings[0]
                    },
                }
            )
    record["crop"] = seen_image(pixel_values[0].numpy(), processor.image_processor)
    n_read = torch.tensor(n_read, device=device)[:, None, None]
    return record, torch.where(n_read > 0, prob_sum / n_read, torch.nan).cpu().numpy()


def grey_prefix(bridge, processor) -> list[tuple]:
    """The key-value cache of the prefix of a plain grey image, per layer `(keys, values, device)`, kept in the CPU's memory: the control for `read_grey`.

    One for a whole run, since every crop has the same size.
    """
    import torch
    from transformers import DynamicCache

    cache, crop = DynamicCache(), processor.image_processor.crop_size
    pixel_values, (input_ids,) = encode(
        processor,
        Image.new("RGB", (crop["width"], crop["height"]), (128, 128, 128)),
        [DESCRIPTION_QUESTION],
    )
    n_prefix = int((input_ids == bridge.original_model.config.image_token_id).nonzero()[-1, 0]) + 1
    with torch.inference_mode():
        run_and_capture(
            bridge,
            input_ids[:n_prefix],
            cache,
            pixel_values=pixel_values.to(bridge.cfg.device, bridge.cfg.dtype),
        )
    return [(layer.keys.cpu(), layer.values.cpu(), layer.keys.device) for layer in cache.layers]


def read_grey(bridge, prefix: list[tuple], prompts: list[dict], at_once: int = 256) -> list[dict]:
    """What the language tower says to each of a record's `prompts` without the image: with a grey one instead (`grey_prefix`).

    Per prompt `target_prob` and `target_rank` `[layer]` of the first token of the answer that it gave with the image, read at the same position. Raises FloatingPointError for NaN or infinity.
    """
    import torch
    from transformers import DynamicCache

    device, last = bridge.W_U.device, []
    with torch.inference_mode():
        cache = DynamicCache()
        for number, (keys, values, its_device) in enumerate(prefix):
            cache.update(keys.to(its_device), values.to(its_device), number)
        for prompt in prompts:
            for ids in torch.tensor(prompt["token_ids"][: prompt["n_prompt"]]).split(at_once):
                residuals, _ = run_and_capture(bridge, ids, cache)
            last.append([resid[-1:].clone() for resid in residuals])
            cache.crop(-prompt["n_prompt"])
        targets = torch.tensor([int(prompt["answer_ids"][0]) for prompt in prompts], device=device)
        sums = torch.zeros(
            len(SEGMENTS), bridge.cfg.n_layers + 1, bridge.cfg.d_vocab, device=device
        )  # not wanted here
        readings = read_positions(
            bridge,
            [torch.cat(layer) for layer in zip(*last)],
            torch.ones_like(targets),
            targets,
            sums,
            1,
        )
    return [
        {name: readings[name][:, number].copy() for name in ("target_prob", "target_rank")}
        for number in range(len(prompts))
    ]


def seen_image(pixel_values: np.ndarray, image_processor) -> np.ndarray:
    """The image as the model saw it, from its own input `[3, height, width]`: a JPEG as an array of bytes."""
    pixels = (
        pixel_values.transpose(1, 2, 0) * image_processor.image_std + image_processor.image_mean
    )
    jpeg = io.BytesIO()
    Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8)).save(
        jpeg, "JPEG", quality=90
    )
    return np.frombuffer(jpeg.getvalue(), np.uint8)


def check_last_layer(bridge, processor, image: Image.Image, question: str) -> float:
    """The largest JSD (bits) between the lens at the last layer and the model's own distribution, over all positions of one prompt.

    The two are the same thing computed twice, so that a wrong norm, hook or unembedding shows. Raises RuntimeError above
    LAST_LAYER_TOLERANCE, which leaves room only for the rounding of matrix products of another shape.
    """
    import torch
    from transformers import DynamicCache

    pixel_values, (input_ids,) = encode(processor, image, [question])
    dtype = str(bridge.cfg.dtype).removeprefix("torch.")
    with torch.inference_mode():
        pixels = pixel_values.to(bridge.cfg.device, bridge.cfg.dtype)
        residuals, logits = run_and_capture(
            bridge, input_ids, DynamicCache(), logits_to_keep=0, pixel_values=pixels
        )
        largest = max(
            float(
                jsd_bits(lens_logits(bridge, resid).softmax(-1), own.float().softmax(-1))
                .max()
                .nan_to_num(torch.inf)
            )
            for resid, own in zip(residuals[-1].split(64), logits.split(64))
        )
    if not largest <= LAST_LAYER_TOLERANCE[dtype]:
        raise RuntimeError(
            f"The lens at the last layer differs from the model's own output by {largest:.2g} bits JSD (allowed in {dtype}: "
            f"{LAST_LAYER_TOLERANCE[dtype]:g}). Nothing read with it would be right. The versions of transformers and transformer-lens are "
            "the first thing to look at (requirements.txt has the tested ranges)."
        )
    return largest


# --------------------------------------------------------------------------------------------------------------------
# Saving and loading results
# --------------------------------------------------------------------------------------------------------------------

FORMAT_VERSION = 2
# Bounds for a file, unpacked, of which only the first is ever near: at LLaVA-1.5-7B's size a record has 2 MB, a part 25.
MOST_BYTES, MOST_OPCODES = 2**26, 2**21
# Of the pickle language, what numpy arrays of numbers and builtin containers need.
PLAIN_OPCODES = set(
    "PROTO FRAME MARK STOP MEMOIZE BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE "
    "SHORT_BINBYTES BINBYTES BYTEARRAY8 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "STACK_GLOBAL REDUCE BUILD".split()
)


class _PlainDtype:
    """What a pickle says of an array's dtype: numbers only. numpy's own dtype would take any state, even one that makes pointers of bytes."""

    def __init__(self, code, align, copy):
        if code not in {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}:
            raise pickle.UnpicklingError("it has an array of something else than numbers")
        self.code = code

    def __setstate__(self, state):
        if state not in [(3, order, None, None, None, -1, -1, 0) for order in "<|"]:
            raise pickle.UnpicklingError("it has an array of an odd kind of numbers")


class _PlainArray:
    """Calling it gives a numpy array over `buffer`; ValueError if length and shape don't agree."""

    def __new__(cls, buffer, dtype, shape, order):
        return np.frombuffer(buffer, dtype.code).reshape(shape, order=order)


class PlainUnpickler(pickle._Unpickler):
    """Loads numpy arrays of numbers and builtin containers and refuses everything else: results are shared, and a pickle can run code.

    Python's unpickler in Python, because the one in C can't be told what follows. A key is a text: to hash nested tuples can take forever. What is met
    a second time is a text or a dtype: lists that hold each other's copies grow without end as one looks at them. Only dtypes have a state.
    """

    allowed = {
        ("numpy", "dtype"): _PlainDtype,
        ("numpy._core.numeric", "_frombuffer"): _PlainArray,
        ("numpy.core.numeric", "_frombuffer"): _PlainArray,
    }

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(
                f"it refers to {module[:50]}.{name[:50]}, which results never do"
            )
        return self.allowed[module, name]

    def load_reduce(self):
        if self.stack[-2] not in (_PlainDtype, _PlainArray):
            raise pickle.UnpicklingError("it calls what is not there to be called")
        super().load_reduce()

    def load_build(self):
        if type(self.stack[-2]) is not _PlainDtype:
            raise pickle.UnpicklingError("it gives a state to what has none")
        super().load_build()

    def load_binget(self):
        self.get(self.read(1)[0])

    def load_long_binget(self):
        self.get(int.from_bytes(self.read(4), "little"))

    def get(self, at):
        value = self.memo[at]
        if not (type(value) in (str, _PlainDtype) or value is _PlainDtype or value is _PlainArray):
            raise pickle.UnpicklingError("it has one thing in two places")
        self.append(value)

    def load_short_binunicode(self):
        self.append(self.read(self.read(1)[0]).decode())

    def load_binunicode(self):
        self.append(self.read(int.from_bytes(self.read(4), "little")).decode())

    def load_setitems(self):
        items = self.pop_mark()
        self.set(items[::2], items[1::2])

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.set([key], [value])

    def set(self, keys, values):
        if type(self.stack[-1]) is not dict or not all(type(key) is str for key in keys):
            raise pickle.UnpicklingError("it has a dict with keys that are no texts")
        self.stack[-1].update(zip(keys, values, strict=True))

    dispatch = {
        **pickle._Unpickler.dispatch,
        **{
            getattr(pickle, name.upper())[0]: value
            for name, value in (
                ("reduce", load_reduce),
                ("build", load_build),
                ("binget", load_binget),
                ("long_binget", load_long_binget),
                ("binunicode", load_binunicode),
                ("short_binunicode", load_short_binunicode),
                ("setitem", load_setitem),
                ("setitems", load_setitems),
            )
        },
    }


def save(path, value, compresslevel: int = 1) -> None:
    """Pickle and gzip `value` to `path` under a temporary name and rename it, so that the file is whole or absent; gzip's checksum shows damage.

    Raises ValueError for more than MOST_BYTES, OSError if it can't be written (a full disk, for instance).
    """
    path, data = Path(path), pickle.dumps(value, protocol=5)
    if len(data) > MOST_BYTES:
        raise ValueError(
            f"{str(path)!r} would have {len(data) / 2**20:.0f} MiB and may have {MOST_BYTES / 2**20:.0f}: choose a smaller top_k or fewer prompts."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(gzip.compress(data, compresslevel, mtime=0))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path, check: Callable = lambda value: None) -> dict:
    """What `save` wrote. Raises ValueError, which names the file, if it is damaged, holds anything but plain results, or `check` of it raises."""
    try:
        with gzip.open(path) as file:
            data = file.read(MOST_BYTES + 1)
        _require(len(data) <= MOST_BYTES, f"it has more than {MOST_BYTES / 2**20:.0f} MiB")
        # First read only, so that no length in it is taken at its word.
        for number, (opcode, _, _) in enumerate(pickletools.genops(data)):
            _require(number < MOST_OPCODES, "it has too many parts")
            _require(
                opcode.name in PLAIN_OPCODES,
                f"its pickle has {opcode.name}, which results never do",
            )
        value = PlainUnpickler(io.BytesIO(data)).load()
        check(value)
        return value
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(
            f"{str(path)!r} is damaged, of another release, or no result of this project ({reason}): get it again or delete it."
        ) from error


def _require(holds, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _require_array(value, name: str, kind: str, shape: tuple, least, most) -> None:
    _require(
        type(value) is np.ndarray
        and value.dtype.kind == kind
        and value.shape == shape
        and ((value >= least) & (value <= most)).all(),
        f"{name} is not an array {shape} of numbers ({kind}) from {least:g} to {most:g}",
    )


def check_run(run) -> None:
    """Raise an error unless `run` can be what `describe_run` returned."""
    version = run["format_version"]
    _require(
        version == FORMAT_VERSION,
        f"its format version is {str(version)[:20]}, this lens_utils.py reads {FORMAT_VERSION}",
    )
    types = {
        "model": str,
        "revision": str,
        "dtype": str,
        "packages": dict,
        "layers": list,
        "tokens": list,
        "grid": int,
        "prompts": dict,
        "top_k": int,
        "last_layer_jsd": float,
    }
    for name, its_type in types.items():
        _require(type(run[name]) is its_type, f"{name} is no {its_type.__name__}")
    _require(
        run["layers"] == ["emb", *map(str, range(1, len(run["layers"])))]
        and len(run["layers"]) > 1,
        "layers are not emb, 1, 2, ...",
    )
    _require(run["segments"] == SEGMENTS, f"segments are not {SEGMENTS}")
    _require(
        run["tokens"] and all(type(token) is str for token in run["tokens"]),
        "tokens are not all texts",
    )
    _require(
        1 <= run["grid"] <= 256 and 1 <= run["top_k"] <= len(run["tokens"]),
        "grid or top_k is out of range",
    )
    _require(0 <= run["last_layer_jsd"] <= 1, "last_layer_jsd is not from 0 to 1")


def check_record(record, run: dict, name: str) -> None:
    """Raise an error unless `record` can be that of the image `name`, as `read_images` saved it in `run`."""
    d_vocab = len(run["tokens"])
    _require(record["name"] == name, "name is not that of the file")
    check_readings(record["patches"], run, run["grid"] ** 2, "patches")
    _require(
        type(record["objects"]) is list and type(record["prompts"]) is list,
        "objects or prompts are no list",
    )
    for item in record["objects"]:
        _require(
            type(item["category"]) is str and type(item["color"]) in (str, type(None)),
            "an object's category or color is no text",
        )
        _require(
            type(item["share"]) is float and 0 <= item["share"] <= 1.001,
            "an object's share is not from 0 to 1",
        )
        _require(
            len(item["box"]) == 4
            and all(type(side) is float and 0 <= side <= 1e5 for side in item["box"]),
            "an object's box is not four lengths",
        )
    _require(record["prompts"], "there are no prompts")
    for number, prompt in enumerate(record["prompts"]):
        n_pos, n_prompt, n_answer = (
            len(prompt["token_ids"]),
            prompt["n_prompt"],
            len(prompt["answer_ids"]),
        )
        _require(
            prompt["kind"] in KINDS and type(prompt["truth"]) in (str, type(None)),
            f"prompt {number} has no known kind or truth",
        )
        _require(
            _is_text(prompt["question"]) and type(prompt["answer"]) is str,
            f"question or answer {number} is no text",
        )
        _require(
            type(n_prompt) is int
            and 1 <= n_prompt
            and n_answer >= 1
            and n_pos == n_prompt + n_answer - 1,
            f"the lengths of prompt {number} don't agree",
        )
        _require_array(prompt["token_ids"], "token_ids", "i", (n_pos,), 0, d_vocab - 1)
        _require_array(prompt["answer_ids"], "answer_ids", "i", (n_answer,), 0, d_vocab - 1)
        check_readings(prompt["readings"], run, n_pos, f"prompt {number}")
        _require_array(
            prompt["grey"]["target_prob"],
            "grey, target_prob",
            "f",
            (len(run["layers"]),),
            0,
            1 + 1e-4,
        )
        _require_array(
            prompt["grey"]["target_rank"],
            "grey, target_rank",
            "u",
            (len(run["layers"]),),
            1,
            d_vocab,
        )
    _require(type(record["words"]) is list, "words is no list")
    for word in record["words"]:
        _require(
            _is_text(word["category"])
            and type(word["present"]) is bool
            and type(word["several_tokens"]) is bool,
            "a word has no category or marks",
        )
        _require(
            not word["present"]
            or any(
                item["category"] == word["category"] and min(item["box"][2:]) > 0
                for item in record["objects"]
            ),
            "a present word is no object's",
        )
        _require(
            type(word["token_ids"]) is list
            and all(type(i) is int and 0 <= i < d_vocab for i in word["token_ids"]),
            "a word has no tokens of the vocabulary",
        )
        _require_array(
            word["log2_probs"],
            "log2_probs",
            "f",
            (len(run["layers"]), run["grid"] ** 2),
            -127,
            0.01,
        )
    _require(record["crop"].nbytes <= 2**22, "crop is too large")
    with Image.open(io.BytesIO(record["crop"].tobytes()), formats=["JPEG"]) as crop:
        # A progressive JPEG of a few bytes can take hours.
        _require(
            crop.size[0] == crop.size[1] <= 2048
            and crop.mode == "RGB"
            and "progressive" not in crop.info,
            "crop is no plain square image in RGB",
        )
        crop.load()


def check_readings(readings, run: dict, n_pos: int, where: str) -> None:
    """Raise an error unless `readings` can be what `read_positions` returned for `n_pos` positions."""
    n_layers, d_vocab, rounding = len(run["layers"]), len(run["tokens"]), 1e-4
    _require(
        np.isnan(readings["jsd_prev"][0]).all(),
        f"{where}, jsd_prev: the embedding has no layer before it",
    )
    for name, value, kind, shape, least, most in [
        ("top_ids", readings["top_ids"], "u", (n_layers, n_pos, run["top_k"]), 0, d_vocab - 1),
        ("top_probs", readings["top_probs"], "f", (n_layers, n_pos, run["top_k"]), 0, 1 + rounding),
        ("jsd_prev", readings["jsd_prev"][1:], "f", (n_layers - 1, n_pos), 0, 1),
        ("jsd_final", readings["jsd_final"], "f", (n_layers, n_pos), 0, 1),
        (
            "entropy",
            readings["entropy"],
            "f",
            (n_layers, n_pos),
            -rounding,
            np.log2(d_vocab) + rounding,
        ),
        ("target_prob", readings["target_prob"], "f", (n_layers, n_pos), 0, 1 + rounding),
        ("target_rank", readings["target_rank"], "u", (n_layers, n_pos), 1, d_vocab),
    ]:
        _require_array(value, f"{where}, {name}", kind, shape, least, most)


def check_part(part, run: dict) -> None:
    """Raise an error unless `part` can be what `read_images` saved in `run`."""
    images, skipped = part["images"], part["skipped"]
    _require(
        type(images) is list and type(skipped) is dict, "images or skipped are of another type"
    )
    # Names become paths.
    _require(
        all(
            type(name) is str
            and name == Path(name).name not in ("", "..")
            and not set("\\\0") & set(name)
            for name in images
        ),
        "an image's name is no name of a file",
    )
    _require(len(set(images)) == len(images), "an image is counted twice")
    _require(
        all(type(text) is str for item in skipped.items() for text in item),
        "skipped is not names and reasons",
    )
    _require_array(part["n_images"], "n_images", "i", (len(SEGMENTS),), 0, len(images))
    shape = len(SEGMENTS), len(run["layers"]), len(run["tokens"])
    _require_array(part["sums"], "sums", "f", shape, 0, (1 + 1e-4) * max(len(images), 1))


def record_path(results, name: str) -> Path:
    """Where the record of the image `name` (`find_images`) is."""
    return Path(results) / "images" / f"{name}.pkl"


def part_path(results, process: int) -> Path:
    """Where the process of that number keeps what it has read: see `new_part`."""
    return Path(results) / "parts" / f"{process}.pkl"


def new_part(run: dict) -> dict:
    """What one process has read so far: `images`, their names; `skipped`, the reason by name; `sums` `[segment, layer, d_vocab]`, the images' mean
    probabilities added up, and `n_images` `[segment]`, how many images had positions in the segment.

    Sums, because the mean probabilities of one image over the whole vocabulary are six times as large as its record. An image counts as read once it is in a part.
    """
    shape = len(run["segments"]), len(run["layers"]), len(run["tokens"])
    return {
        "images": [],
        "skipped": {},
        "sums": np.zeros(shape),
        "n_images": np.zeros(shape[0], dtype=int),
    }


def add_to_part(part: dict, name: str, mean_probability: np.ndarray) -> None:
    """Count an image, with its mean probability as of `read_image`, in. Raises ValueError if it is counted already."""
    if name in part["images"]:
        raise ValueError(f"{name!r} is counted already.")
    part["images"].append(name)
    part["skipped"].pop(name, None)
    # In steps of 2**-39 (2e-12) the sums of up to 2**14 images are exact, so that their order, and by which process, changes nothing.
    part["sums"] += np.round(np.nan_to_num(mean_probability).astype(float) * 2**39) / 2**39
    part["n_images"] += ~np.isnan(mean_probability[:, 0, 0])


def take_over(results, earlier=None) -> None:
    """Clear what a killed run left half-written in `results`; where that holds no run yet, copy the run in or under the folder `earlier` to it.

    Raises FileNotFoundError or ValueError if `earlier` holds no run or a damaged one.
    """
    for pattern in ("run.pkl.*.tmp", "images/*.pkl.*.tmp", "parts/*.pkl.*.tmp"):
        for temporary in Path(results).glob(pattern):
            temporary.unlink()
    if not earlier:
        return
    if (Path(results) / "run.pkl").exists():
        print(
            f"{str(results)!r} holds a run already and goes on from that, not from {str(earlier)!r}."
        )
        return
    earlier = find_results(earlier)
    load_run(earlier)
    # run.pkl comes last: until then the copy is not whole.
    for path in [
        *sorted(earlier.glob("images/*.pkl")),
        *sorted(earlier.glob("parts/*.pkl")),
        earlier / "run.pkl",
    ]:
        save(Path(results) / path.relative_to(earlier), load(path))


def refuse_another(results, run: dict) -> bool:
    """Whether `results` holds results. Raises ValueError, which names what differs, if they are of another run: they must not be mixed."""
    if not (any(Path(results).glob("images/*.pkl")) or any(Path(results).glob("parts/*.pkl"))):
        return False
    if not (Path(results) / "run.pkl").exists():
        raise ValueError(
            f"{str(results)!r} holds records but no run.pkl, perhaps half of a copy: set go_on_from as before, choose another folder, or delete what is in this one."
        )
    before = load_run(results)
    for key in sorted({*before, *run} - {"packages", "last_layer_jsd"}):
        if before.get(key) != run.get(key):
            raise ValueError(
                f"{str(results)!r} holds results of another run ({_first_difference(key, before.get(key), run.get(key))}): choose another "
                "folder, or delete what is in this one."
            )
    return True


def start_run(results, run: dict) -> None:
    """Write `run.pkl` unless there are results of this run already. Errors as of `refuse_another`."""
    if not refuse_another(results, run):
        save(Path(results) / "run.pkl", run)


def _first_difference(where: str, there, now) -> str:
    """`prompts, own, 1: 'a' there, 'b' now`: the first place in which two plain values differ."""
    if isinstance(there, dict) and isinstance(now, dict):
        there, now = (
            {**{key: None for key in other}, **one} for one, other in ((there, now), (now, there))
        )
        key = next(key for key in there if there[key] != now[key])
        return _first_difference(f"{where}, {key}", there[key], now[key])
    if isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        at = next(at for at in range(len(now)) if there[at] != now[at])
        return _first_difference(f"{where}, {at}", there[at], now[at])
    return f"{where}: {str(there)[:100]} there, {str(now)[:100]} now"


def describe_run(
    bridge, processor, model: str, last_layer_jsd: float, prompts: dict, **settings
) -> dict:
    """What `run.pkl` holds: all that is needed to read the records without the model or its tokenizer."""
    from importlib.metadata import version

    vision = bridge.original_model.config.vision_config
    # A folder has no revision: what tells one model of that name from another is then its unembedding.
    fingerprint = hashlib.sha256(
        bridge.W_U[:, :64].detach().float().cpu().numpy().tobytes()
    ).hexdigest()[:16]
    return {
        "format_version": FORMAT_VERSION,
        "model": str(model),
        "revision": getattr(bridge.original_model.config, "_commit_hash", None)
        or f"unembedding {fingerprint}",
        "dtype": str(bridge.cfg.dtype).removeprefix("torch."),
        "packages": {
            name: version(name) for name in ("torch", "transformers", "transformer-lens", "numpy")
        },
        "layers": ["emb"] + [str(layer) for layer in range(1, bridge.cfg.n_layers + 1)],
        "segments": SEGMENTS,
        "tokens": token_labels(processor.tokenizer, bridge.cfg.d_vocab),
        "grid": vision.image_size // vision.patch_size,
        "chat": CHAT,
        "prompts": prompts,
        "last_layer_jsd": last_layer_jsd,
        **settings,
        "definitions": {
            "layers": "residual stream: emb = embedding output, l = after block l",
            "lens": "softmax in float32 over the whole vocabulary of unembed(ln_final(residual stream))",
            "position": "a reading at a position is about the token that follows it",
            "jsd_prev, jsd_final": "Jensen-Shannon divergence in bits (0 ... 1) to the previous and to the last layer",
            "entropy": "in bits",
            "target_prob, target_rank": "of the answer token that follows, elsewhere of the last layer's top-1; rank 1 = top",
            "sums": "of the images' full mean probability over the positions of a segment",
        },
    }


def find_results(folder) -> Path:
    """The one folder at or under `folder` that holds a `run.pkl`. Raises FileNotFoundError for none, ValueError for several."""
    found = sorted(path.parent for path in Path(folder).rglob("run.pkl"))
    if not found:
        raise FileNotFoundError(
            f"No results (run.pkl) under {str(folder)!r}: run Make_Analyse.ipynb first, or attach its output as a data set."
        )
    if len(found) > 1:
        raise ValueError(
            f"Several results under {str(folder)!r}: set `results` to one of {', '.join(map(str, found))}."
        )
    return found[0]


def load_run(results) -> dict:
    """`run.pkl`. Raises ValueError if it is damaged or its format version is not this module's."""
    return load(Path(results) / "run.pkl", check_run)


def load_record(results, run: dict, name: str) -> dict:
    """The record of one image. Raises ValueError if it is damaged or not of this run."""
    return load(record_path(results, name), partial(check_record, run=run, name=name))


def load_parts(results, run: dict) -> list[dict]:
    """The parts (`new_part`) of all processes. Raises ValueError at a damaged one, and for an image that was counted twice or is gone."""
    parts, seen = [], set()
    for path in sorted((Path(results) / "parts").glob("*.pkl")):
        parts.append(load(path, partial(check_part, run=run)))
        if twice := seen & set(parts[-1]["images"]):
            raise ValueError(
                f"{str(path)!r} counts in {min(twice)!r}, which another part does as well: delete one of the two, and its images are read again."
            )
        seen.update(parts[-1]["images"])
        for name in parts[-1]["images"]:
            if not record_path(results, name).is_file():
                raise ValueError(
                    f"{str(path)!r} counts in {name!r}, but {str(record_path(results, name))!r} is gone: put it back, or delete "
                    f"{str(path)!r} as well, and its {len(parts[-1]['images'])} images are read again."
                )
    return parts


def images_left(results, image_paths: dict[str, Path]) -> dict[str, Path]:
    """Those of `image_paths` that have not been read into `results` yet. Errors as of `load_run` and `load_parts`."""
    if not (Path(results) / "run.pkl").exists():
        return image_paths
    done = set(images_read(results, load_run(results)))
    return {name: path for name, path in image_paths.items() if name not in done}


def images_read(results, run: dict) -> list[str]:
    """The names of the images that were read, sorted. Errors as of `load_parts`."""
    return sorted(name for part in load_parts(results, run) for name in part["images"])


def load_records(results, run: dict) -> Iterator[dict]:
    """The records one after the other, by name. Raises FileNotFoundError if there is none, ValueError at a damaged one."""
    names = images_read(results, run)
    if not names:
        raise FileNotFoundError(
            f"No records under {str(Path(results) / 'images')!r}: run Make_Analyse.ipynb to its end."
        )
    return (load_record(results, run, name) for name in names)


def load_mean_probability(results, run: dict) -> np.ndarray:
    """The mean probability of every token `[segment, layer, d_vocab]`: over the segment's positions, then over images. Errors as of `load_records`."""
    parts = load_parts(results, run)
    if not parts:
        raise FileNotFoundError(
            f"No parts under {str(Path(results) / 'parts')!r}: run Make_Analyse.ipynb to its end."
        )
    n_images = sum(part["n_images"] for part in parts)
    return sum(part["sums"] for part in parts) / np.maximum(n_images, 1)[:, None, None]


def load_sample(
    results, run: dict, image: str | None, prompt: int, layers: list[int]
) -> tuple[dict, dict]:
    """`(record, prompt)` to look at closely: the record of `image` (None: the first) and its prompt of that number.

    Raises ValueError, which says what there is to choose from, for an image, a prompt or `layers` that the results do not have.
    """
    names = images_read(results, run)
    if image is not None and image not in names:
        near = difflib.get_close_matches(image, names, 5) or names[:10]
        raise ValueError(
            f"No image {image!r} in {str(results)!r}: set `image` to one of its {len(names)} images, for instance {', '.join(near)}."
        )
    record = load_record(results, run, image or names[0])
    if prompt not in range(len(record["prompts"])):
        raise ValueError(
            f"prompt is {prompt}: {record['name']} has the prompts 0 to {len(record['prompts']) - 1}."
        )
    if not set(layers) <= set(range(len(run["layers"]))):
        raise ValueError(
            f"layers_shown is {layers}: the layers are 0 (emb) to {len(run['layers']) - 1}."
        )
    return record, record["prompts"][prompt]


# --------------------------------------------------------------------------------------------------------------------
# The run: every image read and saved
# --------------------------------------------------------------------------------------------------------------------


def read_images(
    image_paths: dict[str, Path],
    annotations: dict,
    categories: list[str],
    results,
    model: str,
    dtype: str = "float16",
    device: str | None = None,
    prompts: list[dict] = (),
    per_kind: int = 1,
    seed: int = 0,
    top_k: int = 10,
    max_new_tokens: int = 20,
    deadline: float = float("inf"),
) -> None:
    """Load the model, check the lens on the first image, read every image that was not (`images_left`) and save its record; stop before `deadline` (`time.time()`).

    `annotations` and `categories` as of `read_annotations`; without `prompts` (`own_prompts`) those of `make_prompts` are asked. Where accelerate has
    launched several processes, each loads its own copy of the model and takes its share of the images, and none waits for another. An image that
    can't be read is skipped by name (`new_part`). Raises ValueError if no image can be opened, and what `load_llava`, `check_last_layer` and `start_run` do.
    """
    from accelerate import PartialState
    from tqdm import tqdm

    PartialState._reset_state()  # or it would be that of a run before, in this process or in the one that launched it
    state = PartialState(cpu=device == "cpu")
    # Not split_between_processes, which before accelerate 1.15 gives the last image to two processes where there are fewer images than processes.
    share = dict(list(image_paths.items())[state.process_index :: state.num_processes])
    share = images_left(
        results, share
    )  # after the split, so that it does not depend on how far another process is
    bridge, processor = load_llava(
        model, dtype, str(state.device) if state.num_processes > 1 else device
    )
    state.print(
        f"{model}: {bridge.cfg.n_layers} layers, d_model {bridge.cfg.d_model}, vocabulary {bridge.cfg.d_vocab:,}, {bridge.cfg.dtype} on "
        f"{bridge.W_U.device}" + f", in {state.num_processes} processes" * (state.num_processes > 1)
    )
    asked = {"own": list(prompts), "per_kind": per_kind, "seed": seed}
    run = describe_run(
        bridge, processor, model, None, asked, top_k=top_k, max_new_tokens=max_new_tokens
    )
    refuse_another(results, run)
    path_of_part = part_path(results, state.process_index)
    part, grey, skipped, seconds = None, None, {}, []
    for name, path in tqdm(
        share.items(),
        "images",
        unit="image",
        file=sys.stdout,
        mininterval=5,
        disable=not state.is_main_process,
    ):
        start = time.time()
        if seconds and start + max(seconds) > deadline:
            print(
                f"The time is over with {len(share) - len(seconds) - len(skipped)} images left: run this again to go on."
            )
            break
        try:
            found = annotations.get(path.name, [])
            image = open_image(path, found[0]["image_size"] if found else None)
            if part is None:
                run["last_layer_jsd"] = check_last_layer(
                    bridge, processor, image, DESCRIPTION_QUESTION
                )
            objects = crop_objects(found, image.size, processor.image_processor)
            image_prompts = prompts or make_prompts(objects, categories, f"{seed} {name}", per_kind)
            words = category_words(
                processor.tokenizer, objects, categories, image_prompts, f"{seed} {name}"
            )
            record, mean_probability = read_image(
                bridge, processor, image, image_prompts, top_k, max_new_tokens, words
            )
            grey = grey or grey_prefix(bridge, processor)
            for prompt, without in zip(
                record["prompts"], read_grey(bridge, grey, record["prompts"])
            ):
                prompt["grey"] = without
        except (OSError, FloatingPointError) as error:
            skipped[name] = str(error)
            continue
        if part is None:
            state.print(
                f"largest JSD between the lens at the last layer and the model's output: {run['last_layer_jsd']:.2g} bits "
                f"(allowed: {LAST_LAYER_TOLERANCE[dtype]:g})"
            )
            start_run(results, run)
            part = (
                load(path_of_part, partial(check_part, run=run))
                if path_of_part.exists()
                else new_part(run)
            )
        save(record_path(results, name), {"name": name, "objects": objects, **record})
        # Only now does the image count: what is killed before is read again.
        add_to_part(part, name, mean_probability)
        save(
            path_of_part, part, compresslevel=0
        )  # after every image: at LLaVA-1.5-7B's size 0.04 s instead of 0.25
        seconds.append(time.time() - start)
    if part is not None and skipped:
        save(path_of_part, {**part, "skipped": {**part["skipped"], **skipped}}, compresslevel=0)
    elif skipped:
        message = f"None of these {len(skipped)} images can be read. " + " ".join(
            f"{name}: {reason}" for name, reason in skipped.items()
        )
        if state.num_processes == 1 and not (Path(results) / "run.pkl").exists():
            raise ValueError(message)
        print(message)
    if seconds:
        state.print(
            f"{sum(seconds) / len(seconds):.2f} s per image"
            + f" in each of {state.num_processes} processes" * (state.num_processes > 1)
        )
    state.destroy_process_group()


# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------


def settling_layer(target_rank: np.ndarray) -> np.ndarray:
    """The first layer `[...]` from which on the target stays top-1 to the end, from its rank `[layer, ...]`.

    The number of layers, one past the last, if it is not top-1 even there (two tokens within the rounding of float16).
    """
    return len(target_rank) - np.cumprod((target_rank == 1)[::-1], axis=0).sum(axis=0)


def readable_layer(target_prob: np.ndarray) -> np.ndarray:
    """The first layer `[...]` from which on the target keeps 90 % of its last probability, from that probability `[layer, ...]`.

    Unlike `settling_layer` it is hardly ever reached by luck, which among few possible answers is common.
    """
    return settling_layer(np.where(target_prob >= 0.9 * target_prob[-1], 1, 0))


def is_right(answer: str, truth: str) -> bool:
    """Whether an answer is the truth, but for case and a full stop. Synonyms count as wrong ("man" for "person")."""
    return answer.strip().rstrip(".").lower() == truth.lower()


def summarise(records: Iterable[dict], run: dict) -> dict:
    """One pass over the records, so that only one is in memory at a time. Raises ValueError for a damaged one (`load`). Returns

    `layers`: DataFrame, a row per image, prompt, segment and layer: mean `jsd_prev`, `jsd_final`, `entropy` (bits) over the positions,
    and `no_word`, the share of them whose top-1 token is no word.
    `answers`: DataFrame, a row per image, prompt, answer token and layer: the lens at the position that the token follows; `grey_probability` and `grey_rank` are those with a grey image
    (`read_grey`), NaN after the first token.
    `categories`: all annotated categories, sorted.
    """
    categories, labels, no_grey = (
        set(),
        np.array(run["tokens"], dtype=object),
        np.full(len(run["layers"]), np.nan),
    )
    # A word or a part of one, without the mark of a leading space; not a byte, a sign, a number or a special token.
    is_word = np.array([token.lstrip("▁Ġ").isalpha() for token in run["tokens"]])
    layers, answers = ([], {}), ([], {})

    def add(table, row, **columns):
        table[0].append(row)
        for name, values in columns.items():
            table[1].setdefault(name, []).append(values)

    def add_means(readings, positions, **row):
        if positions.stop > positions.start:
            means = {
                name: readings[name][:, positions].mean(axis=1)
                for name in ("jsd_prev", "jsd_final", "entropy")
            }
            add(
                layers,
                row,
                **means,
                no_word=1 - is_word[readings["top_ids"][:, positions, 0]].mean(axis=1),
            )

    for record in records:
        categories.update(item["category"] for item in record["objects"])
        add_means(
            record["patches"],
            slice(0, run["grid"] ** 2),
            image=record["name"],
            prompt=-1,
            kind="image",
            segment="image",
        )
        for number, prompt in enumerate(record["prompts"]):
            readings, n_prompt, truth = prompt["readings"], prompt["n_prompt"], prompt["truth"]
            where = {"image": record["name"], "prompt": number, "kind": prompt["kind"]}
            add_means(readings, slice(0, n_prompt), **where, segment="prompt")
            add_means(
                readings, slice(n_prompt, len(prompt["token_ids"])), **where, segment="answer"
            )
            asked = {
                "question": prompt["question"],
                "truth": truth,
                "answer": prompt["answer"],
                "right": None if truth is None else is_right(prompt["answer"], truth),
            }
            settled, readable = (
                settling_layer(readings["target_rank"]),
                readable_layer(readings["target_prob"]),
            )
            for token, token_id in enumerate(prompt["answer_ids"]):
                at = n_prompt - 1 + token
                row = {
                    "token": token,
                    "token_id": int(token_id),
                    "token_label": labels[token_id],
                    "settling_layer": int(settled[at]),
                    "readable_layer": int(readable[at]),
                }
                add(
                    answers,
                    {**where, **asked, **row},
                    top1=labels[readings["top_ids"][:, at, 0]],
                    probability=readings["target_prob"][:, at],
                    rank=readings["target_rank"][:, at].astype(int),
                    grey_probability=no_grey if token else prompt["grey"]["target_prob"],
                    grey_rank=no_grey if token else prompt["grey"]["target_rank"].astype(float),
                    **{
                        name: readings[name][:, at] for name in ("jsd_prev", "jsd_final", "entropy")
                    },
                )
    return {
        "layers": _per_layer(*layers),
        "answers": _per_layer(*answers),
        "categories": sorted(categories),
    }


def _per_layer(rows: list[dict], columns: dict[str, list[np.ndarray]]) -> pd.DataFrame:
    """A row per one of `rows` and layer, with `columns`, of which each has an array `[layer]` per one of `rows`."""
    n_layers = len(next(iter(columns.values()))[0])
    repeated = {
        name: np.repeat(
            np.array([row[name] for row in rows], dtype=int if type(value) is int else object),
            n_layers,
        )
        for name, value in rows[0].items()
    }
    every = {
        **repeated,
        "layer": np.tile(np.arange(n_layers), len(rows)),
        **{name: np.concatenate(values) for name, values in columns.items()},
    }
    # Said, because pandas' own kind of text would copy each question to all its rows; these refer to one.
    return pd.DataFrame(
        {name: pd.Series(values, dtype=values.dtype) for name, values in every.items()}
    )


def top_tokens(mean: np.ndarray, run: dict, n: int = 30) -> pd.DataFrame:
    """The `n` tokens with the largest mean probability over all layers, from `mean` `[layer, d_vocab]`.

    Columns: `token`, `id`, `mean` over the layers, then one column per layer.
    """
    over_layers = mean.mean(axis=0)
    ids = np.argsort(-over_layers, kind="stable")[:n]
    columns = {"token": [run["tokens"][i] for i in ids], "id": ids, "mean": over_layers[ids]}
    return pd.DataFrame({**columns, **dict(zip(run["layers"], mean[:, ids]))})


def per_prompt(answers: pd.DataFrame) -> pd.DataFrame:
    """A row per image and prompt of `summarise`'s `answers`: what does not depend on layer or token, and the first token's settling and readable layer."""
    return answers[(answers["token"] == 0) & (answers["layer"] == 0)]


MIN_IMAGES = (
    6  # for an interval: of five values not even the range from least to largest covers 95 %
)


def settling_table(answers: pd.DataFrame, column: str = "settling_layer") -> pd.DataFrame:
    """Per kind of prompt: numbers of images, answers and known truths, share that is right, and `column` of the first answer token.

    `median` is over images (a mean within an image that has several prompts of the kind); `low` and `high` bound its bootstrap 95 %
    interval over images (percentile method), NaN below MIN_IMAGES.
    """
    from scipy.stats import bootstrap

    first, rows = per_prompt(answers), {}
    for kind in KINDS:
        of_kind = first[first["kind"] == kind]
        if of_kind.empty:
            continue
        layers, graded = (
            of_kind.groupby("image")[column].mean().to_numpy(),
            of_kind["right"].dropna(),
        )
        low, high = np.nan, np.nan
        if len(layers) >= MIN_IMAGES:
            low, high = bootstrap(
                (layers,), np.median, method="percentile", rng=0, n_resamples=2000
            ).confidence_interval
        rows[kind] = {
            "images": len(layers),
            "answers": len(of_kind),
            "graded": len(graded),
            "right": graded.mean() if len(graded) else np.nan,
            "median": np.median(layers),
            "low": low,
            "high": high,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def auroc(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The chance `[...]` that a value inside is larger than one outside (ties count half), from `values` `[..., n]` and `inside` `[n]`, True and False.

    The area under the ROC curve, as Mann and Whitney's U (1947).
    """
    from scipy.stats import rankdata

    n_inside, n_outside = inside.sum(), (~inside).sum()
    return (rankdata(values, axis=-1)[..., inside].sum(-1) - n_inside * (n_inside + 1) / 2) / (
        n_inside * n_outside
    )


SIZES = [
    "small",
    "medium",
    "large",
]  # of an object: below 1 %, below 10 % and from 10 % of the crop


def patches_of(record: dict, run: dict, category: str) -> np.ndarray:
    """Which patches `[grid * grid]` are a category's: at least half within one of its boxes (crowd regions too), and for a smaller box the one with the largest part of it."""
    crop_size = seen_crop(record).size[0]
    covers = [
        patch_cover(item["box"], run["grid"], crop_size)
        for item in record["objects"]
        if item["category"] == category
    ]
    # The small number is for rounding: an exact half counts.
    return np.any(
        [cover >= min(0.5, cover.max()) - 1e-9 for cover in covers if cover.max() > 0], axis=0
    )


def grounding(records: Iterable[dict], run: dict) -> pd.DataFrame:
    """How well P(word) tells a category's patches from the others: a row per image, category that is there, and layer.

    `auroc`: of the patches inside the category's boxes against those outside (`patches_of`); `said`: the share of its patches of which the top-1 token is the word; `shuffled` and
    `said_shuffled`, the controls: the same readings against boxes of the image before (NaN for the first). With `size` (SIZES) and `several_tokens`. Categories that fill the whole crop are left out.
    Sources: AUROC against boxes is this project's; patches that decode to the word of their object: Neo et al., arXiv 2410.07149.
    """
    rows, columns, before = [], {"auroc": [], "shuffled": [], "said": [], "said_shuffled": []}, []
    for record in records:
        masks = []
        for word in record["words"]:
            if not word["present"]:
                continue
            inside = patches_of(record, run, word["category"])
            if inside.all():
                continue
            share = max(
                item["share"] for item in record["objects"] if item["category"] == word["category"]
            )
            other = before[len(masks) % len(before)] if before else None
            masks.append(inside)
            rows.append(
                {
                    "image": record["name"],
                    "category": word["category"],
                    "several_tokens": word["several_tokens"],
                    "size": SIZES[int(share >= 0.01) + int(share >= 0.1)],
                }
            )
            is_word, unknown = (
                np.isin(record["patches"]["top_ids"][:, :, 0], word["token_ids"]),
                np.full(len(run["layers"]), np.nan),
            )
            columns["auroc"].append(auroc(word["log2_probs"], inside))
            columns["shuffled"].append(
                unknown if other is None else auroc(word["log2_probs"], other)
            )
            columns["said"].append(is_word[:, inside].mean(axis=1))
            columns["said_shuffled"].append(
                unknown if other is None else is_word[:, other].mean(axis=1)
            )
        before = masks or before
    if not rows:
        return pd.DataFrame(
            columns=["image", "category", "several_tokens", "size", "layer", *columns]
        )
    return _per_layer(rows, columns)


def confidence(records: Iterable[dict]) -> pd.DataFrame:
    """The internal confidence that a category is there: the largest probability of its word over all layers and patches; a row per image and watched category
    (`category_words`), with `present` and `several_tokens`. Source: Jiang et al., arXiv 2410.02762.
    """
    columns = ["image", "category", "present", "several_tokens", "confidence"]
    return pd.DataFrame(
        [
            (
                record["name"],
                word["category"],
                word["present"],
                word["several_tokens"],
                2.0 ** float(word["log2_probs"].max()),
            )
            for record in records
            for word in record["words"]
        ],
        columns=columns,
    )


def confidence_auroc(table: pd.DataFrame) -> tuple[float, float, float]:
    """AUROC of `confidence` for present against absent categories, and its bootstrap 95 % interval over images; NaN where there is only one kind, the interval below MIN_IMAGES."""
    present, values = table["present"].to_numpy(bool), table["confidence"].to_numpy()

    def of(rows):
        return (
            float(auroc(values[rows], present[rows]))
            if 0 < present[rows].sum() < len(rows)
            else np.nan
        )

    whole, images = of(np.arange(len(table))), list(table.groupby("image").indices.values())
    if len(images) < MIN_IMAGES or np.isnan(whole):
        return whole, np.nan, np.nan
    rng = np.random.default_rng(0)
    draws = [
        of(np.concatenate([images[at] for at in rng.integers(len(images), size=len(images))]))
        for _ in range(1000)
    ]
    return whole, *map(float, np.nanpercentile(draws, [2.5, 97.5]))


def own_answers(answers: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The model's answers to presence prompts about watched categories in the form of `table` (`confidence`): 1 where it says yes, else 0; and `patches`, that confidence."""
    asked = (
        per_prompt(answers)
        .query("kind == 'presence'")
        .assign(yes=lambda rows: [float(is_right(answer, "yes")) for answer in rows["answer"]])
    )
    watched = table.assign(question=[presence_question(category) for category in table["category"]])
    both = watched.merge(asked[["image", "question", "yes"]], on=["image", "question"])
    return both.rename(columns={"confidence": "patches", "yes": "confidence"}).drop(
        columns="question"
    )


# --------------------------------------------------------------------------------------------------------------------
# Figures and the report
# --------------------------------------------------------------------------------------------------------------------

# Fonts that can draw what matplotlib's own DejaVu Sans cannot; taken where the machine has them.
WIDE_FONTS = [
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "Microsoft YaHei",
]
PANEL_COLUMNS = 14  # token columns that are legible side by side at notebook width


@cache
def _drawable() -> tuple[list[str], frozenset[int]]:
    """The fonts to draw tokens with, and the code points that they have."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans"] + [name for name in WIDE_FONTS if name in installed]
    charmaps = [font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in fonts]
    return fonts, frozenset().union(*charmaps)


def printable(label: str, length: int | None = None, in_figure: bool = True) -> str:
    """A token label in which every character can be seen: what is blank, or no font here draws, becomes `U+4E2D`; cut to `length`.

    `in_figure` False leaves the fonts to a browser, which has more of them than matplotlib.
    """

    def seen(char):
        return (
            char.isprintable()
            and not char.isspace()
            and (not in_figure or ord(char) in _drawable()[1])
        )

    shown = "".join(char if seen(char) else f"U+{ord(char):04X}" for char in label)
    return shown if length is None or len(shown) <= length else shown[: length - 1] + "…"


def use_style() -> None:
    """The one style of all figures: fonts that draw the vocabulary, notebook width, colour maps that survive print and colour-blindness."""
    import matplotlib.pyplot as plt

    pd.set_option("display.html.use_mathjax", False)  # a token may hold a `$`
    pd.set_option("styler.html.mathjax", False)
    plt.rcParams.update(
        {
            "font.family": _drawable()[0],
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "image.cmap": "viridis",
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def _asked(prompt: dict) -> str:
    """Question and answer in short, for titles."""
    text = f"{prompt['question'].strip().splitlines()[0]} \u2192 {prompt['answer'][:40]}"
    return " ".join(printable(word) for word in text.split())


def _layer_ticks(run: dict) -> np.ndarray:
    """The layers to label on an axis: all of a small model's, every fourth and the last of a large one's."""
    last = len(run["layers"]) - 1
    return np.unique(np.append(np.arange(0, last, 1 if last <= 12 else 4), last))


def _token_panels(
    run: dict,
    prompt: dict,
    values: np.ndarray,
    title: str,
    unit: str,
    words: np.ndarray | None = None,
):
    """Heatmap of `values` `[layer, pos]` over the text positions, wrapped into panels, with `words` `[layer, pos]` in the cells."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    token_ids, n_layers = prompt["token_ids"], len(run["layers"])
    n_panels = -(-len(token_ids) // PANEL_COLUMNS)
    columns = -(-len(token_ids) // n_panels)  # panels of nearly one width
    row_height = 0.21 if words is not None else 0.13
    figure, axes = plt.subplots(
        n_panels, squeeze=False, figsize=(10, n_panels * (row_height * n_layers + 1.2))
    )
    for panel, axis in enumerate(axes[:, 0]):
        positions = np.arange(panel * columns, min((panel + 1) * columns, len(token_ids)))
        sns.heatmap(
            values[:, positions],
            ax=axis,
            cmap="viridis",
            vmin=0,
            vmax=1,
            cbar_kws={"label": unit, "pad": 0.01},
            annot=False if words is None else words[:, positions],
            fmt="",
            annot_kws={"size": 7, "parse_math": False},
        )
        # Columns keep their own place: two positions with the same token stay two columns.
        axis.set_xticks(
            np.arange(len(positions)) + 0.5,
            [printable(run["tokens"][token_ids[p]], 10) for p in positions],
            rotation=40,
            ha="right",
            rotation_mode="anchor",
            fontsize=8,
            parse_math=False,
        )
        for tick, position in zip(axis.get_xticklabels(), positions):
            tick.set_fontweight("bold" if position >= prompt["n_prompt"] else "normal")
        shown = _layer_ticks(run)
        axis.set_yticks(shown + 0.5, [run["layers"][layer] for layer in shown], rotation=0)
        axis.set(xlim=(0, columns), ylim=(0, n_layers), ylabel="layer")
        if prompt["n_prompt"] in positions:
            axis.axvline(prompt["n_prompt"] - positions[0], color="white", linewidth=3)
    axes[-1, 0].set_xlabel("input token at the position (bold: the answer, fed back)")
    axes[0, 0].set_title(f"{title}: {_asked(prompt)}", parse_math=False)
    return figure


def plot_top1(run: dict, prompt: dict):
    """Heatmap layers x text positions: the lens's top-1 token in each cell, its probability as colour."""
    words = np.vectorize(lambda i: printable(run["tokens"][i], 9), otypes=[object])(
        prompt["readings"]["top_ids"][:, :, 0]
    )
    return _token_panels(
        run,
        prompt,
        prompt["readings"]["top_probs"][:, :, 0],
        "Top-1 token per layer and position",
        "probability",
        words,
    )


def plot_jsd(run: dict, prompt: dict, series: str):
    """Heatmap layers x text positions of `series`: `jsd_prev` (to the previous layer) or `jsd_final` (to the last), bits."""
    other = {"jsd_prev": "the previous layer", "jsd_final": "the last layer"}[series]
    return _token_panels(
        run,
        prompt,
        prompt["readings"][series],
        f"Jensen-Shannon divergence to {other}",
        "JSD (bits)",
    )


def plot_top_tokens(table: pd.DataFrame, run: dict, title: str):
    """Heatmap tokens x layers of the mean probability, from `top_tokens`."""
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.colors import PowerNorm

    figure, axis = plt.subplots(figsize=(10, 0.2 * len(table) + 1))
    # Square-root colours: one token often has most of the probability, and the others would all be dark.
    sns.heatmap(
        table[run["layers"]].to_numpy(),
        ax=axis,
        cmap="viridis",
        norm=PowerNorm(0.5, vmin=0),
        cbar_kws={"label": "mean probability (square-root colours)", "pad": 0.01},
    )
    axis.set_yticks(
        np.arange(len(table)) + 0.5,
        [printable(token, 16) for token in table["token"]],
        rotation=0,
        fontsize=8,
        parse_math=False,
    )
    axis.set_xticks(np.arange(len(run["layers"])) + 0.5, run["layers"], rotation=0)
    axis.set(xlabel="layer", ylabel="token", title=title)
    return figure


def _layer_axis(axis, run: dict) -> None:
    shown = _layer_ticks(run)
    axis.set_xticks(shown, [run["layers"][layer] for layer in shown])
    axis.set(xlabel="layer", xlim=(-0.5, len(run["layers"]) - 0.5))


def _curves(table: pd.DataFrame, run: dict, axis, y: str, hue: str, order: list[str]) -> None:
    """Mean of `y` per layer, a line per value of `hue`, with bootstrap 95 % bands over images for those of at least MIN_IMAGES."""
    import seaborn as sns

    per_image = table.groupby(["image", hue, "layer"], as_index=False)[y].mean()
    present = [value for value in order if value in set(per_image[hue])]
    palette = dict(zip(present, sns.color_palette("colorblind")))
    sns.lineplot(
        per_image,
        x="layer",
        y=y,
        hue=hue,
        style=hue,
        hue_order=present,
        style_order=present,
        markers=True,
        palette=palette,
        errorbar=None,
        ax=axis,
    )
    n_images = per_image.dropna(subset=y).groupby(hue)["image"].nunique()
    enough = per_image[per_image[hue].isin(n_images.index[n_images >= MIN_IMAGES])]
    if len(enough):
        sns.lineplot(
            enough,
            x="layer",
            y=y,
            hue=hue,
            palette=palette,
            errorbar=("ci", 95),
            n_boot=1000,
            seed=0,
            linewidth=0,
            legend=False,
            ax=axis,
        )
    _layer_axis(axis, run)


def plot_mean_jsd(layers: pd.DataFrame, run: dict, by: str = "segment"):
    """Mean JSD per layer, both series, per `segment` or, over the prompts' positions, per `kind`; bootstrap 95 % bands over images."""
    import matplotlib.pyplot as plt

    table, order = (
        (layers, SEGMENTS) if by == "segment" else (layers[layers["segment"] == "prompt"], KINDS)
    )
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, series, title in zip(
        axes, ["jsd_prev", "jsd_final"], ["to the previous layer", "to the last layer"]
    ):
        _curves(table, run, axis, series, by, order)
        axis.set(title=f"JSD {title}", ylabel="mean JSD (bits)", ylim=(0, None))
    return figure


def plot_answers(answers: pd.DataFrame, run: dict):
    """Probability and rank of the first answer token per layer and kind of prompt, means with bootstrap 95 % bands over images; dotted, the probability of
    the same token with a grey image instead."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    first = answers[answers["token"] == 0].assign(
        rank=lambda table: np.log10(table["rank"]),
        grey_rank=lambda table: np.log10(table["grey_rank"]),
    )
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    _curves(first, run, axes[0], "probability", "kind", KINDS)
    colours = dict(
        zip([kind for kind in KINDS if kind in set(first["kind"])], sns.color_palette("colorblind"))
    )
    for kind, rows in first.groupby("kind"):
        for axis, column in zip(axes, ("grey_probability", "grey_rank")):
            axis.plot(
                rows.groupby(["image", "layer"])[column].mean().groupby("layer").mean(),
                ":",
                color=colours[kind],
            )
    axes[0].get_legend().remove()  # the other panel's is the same
    axes[0].set(
        title="Probability of the answer (dotted: with a grey image)",
        ylabel="mean probability",
        ylim=(0, 1.02),
    )
    _curves(first, run, axes[1], "rank", "kind", KINDS)
    powers = np.arange(0, int(np.ceil(first[["rank", "grey_rank"]].max().max())) + 1)
    axes[1].set_yticks(powers, [f"{10**power:,}" for power in powers])
    axes[1].set(
        title="Rank of the answer (1 = top; dotted: with a grey image)",
        ylabel="rank, geometric mean",
    )
    axes[1].invert_yaxis()
    return figure


def plot_settling(answers: pd.DataFrame, run: dict):
    """Layer at which the first answer token settles and from which it is readable, per kind of prompt: a point per answer, the median over
    images and its 95 % interval (`settling_table`)."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    first, n_layers = per_prompt(answers), len(run["layers"])
    titles = {
        "settling_layer": "Settles: top-1 from here on",
        "readable_layer": "Readable: 90 % of its last probability from here on",
    }
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
    for axis, (column, title) in zip(axes, titles.items()):
        table = settling_table(answers, column)
        sns.stripplot(
            first,
            x=column,
            y="kind",
            order=table.index,
            jitter=0.25,
            size=4,
            alpha=0.5,
            color="0.5",
            ax=axis,
        )
        rows = np.arange(len(table))
        axis.hlines(rows, table["low"], table["high"], color="black", linewidth=2, zorder=3)
        axis.plot(table["median"], rows, "D", color="#d55e00", markersize=7, zorder=4)
        _layer_axis(axis, run)
        if first[column].max() >= n_layers:
            axis.set(xlim=(-0.5, n_layers + 0.5), xticks=[*axis.get_xticks(), n_layers])
            axis.set_xticklabels(
                [*[label.get_text() for label in axis.get_xticklabels()][:-1], "never"]
            )
        axis.set(ylabel="", title=title)
    return figure


def seen_crop(record: dict) -> Image.Image:
    """The image as the model saw it."""
    return Image.open(io.BytesIO(record["crop"].tobytes()))


def _draw_patches(
    axis, run: dict, record: dict, values: np.ndarray, words: list[str] | None = None
):
    """`values` `[grid * grid]` (NaN: left out) over the patches of the crop, with `words` in them and the annotated boxes over them."""
    grid, size = run["grid"], seen_crop(record).size[0]
    axis.imshow(seen_crop(record).convert("L"), cmap="gray", extent=(0, size, size, 0))
    mesh = axis.imshow(
        np.reshape(values, (grid, grid)),
        cmap="viridis",
        vmin=0,
        vmax=1,
        extent=(0, size, size, 0),
        interpolation="nearest",
        alpha=0.75,
    )
    axis.set(xticks=[], yticks=[])
    for at, word in enumerate(words or []):
        colour = "black" if values[at] > 0.45 else "white"
        x, y = ((at % grid) + 0.5) * size / grid, ((at // grid) + 0.5) * size / grid
        axis.text(
            x,
            y,
            word,
            ha="center",
            va="center",
            fontsize=5.5 if grid > 12 else 7,
            color=colour,
            parse_math=False,
            clip_on=True,
        )
    _draw_boxes(axis, record)
    return mesh


def _draw_boxes(axis, record: dict, names: bool = False) -> None:
    import matplotlib.patches

    for item in record["objects"]:
        x, y, width, height = item["box"]
        if not (width and height):  # outside the crop
            continue
        axis.add_patch(
            matplotlib.patches.Rectangle(
                (x, y), width, height, fill=False, edgecolor="#d55e00", linewidth=1.5
            )
        )
        if names:
            label = dict(facecolor="white", alpha=0.8, linewidth=0, pad=1)
            axis.text(
                x,
                y,
                item["category"],
                color="#d55e00",
                fontsize=8,
                va="bottom",
                bbox=label,
                parse_math=False,
                clip_on=True,
            )


def plot_patches(run: dict, record: dict, layers: list[int]):
    """The crop with its annotated boxes, then per layer the lens's top-1 token (without `▁`) in each patch, its probability as colour."""
    import matplotlib.pyplot as plt

    columns = 1 if run["grid"] > 12 else 3
    rows = -(-(len(layers) + 1) // columns)
    height = rows * 9.3 / columns
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(10, height))
    axes[0, 0].imshow(seen_crop(record))
    axes[0, 0].set(xticks=[], yticks=[], title="the image as the model saw it")
    _draw_boxes(axes[0, 0], record, names=True)
    for axis, layer in zip(axes.flat[1:], layers):
        top, probs = (
            record["patches"]["top_ids"][layer, :, 0],
            record["patches"]["top_probs"][layer, :, 0],
        )
        mesh = _draw_patches(
            axis,
            run,
            record,
            probs,
            [printable(run["tokens"][i].removeprefix("▁") or "▁", 7) for i in top],
        )
        axis.set_title(f"layer {run['layers'][layer]}")
    for axis in axes.flat[len(layers) + 1 :]:
        axis.set_axis_off()
    figure.colorbar(
        mesh, ax=axes, label="probability of the top-1 token", shrink=min(0.5, 4 / height), pad=0.01
    )
    return figure


def plot_grounding(table: pd.DataFrame, layers: pd.DataFrame, run: dict):
    """From `grounding` and `summarise`'s `layers`, per layer: AUROC of P(word), inside against outside the boxes, by size of the object and for the control; and the share
    of an object's patches that say its word, of all patches that say no word. Means over images with bootstrap 95 % bands."""
    import matplotlib.pyplot as plt

    control = "control: another image's boxes"
    shuffled = table.dropna(subset="shuffled").assign(
        auroc=lambda rows: rows["shuffled"], said=lambda rows: rows["said_shuffled"], size=control
    )
    both = pd.concat([table, table.assign(size="all sizes"), shuffled])
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    _curves(both, run, axes[0], "auroc", "size", ["all sizes", *SIZES, control])
    axes[0].axhline(0.5, color="0.6", linewidth=1, linestyle=":")
    axes[0].set(
        title="P(word) inside against outside its boxes",
        ylabel="AUROC (0.5 = chance)",
        ylim=(0, 1.02),
    )
    no_word = layers[layers["segment"] == "image"].assign(
        size="all patches: no word at all", said=lambda rows: rows["no_word"]
    )
    _curves(
        pd.concat([both, no_word]),
        run,
        axes[1],
        "said",
        "size",
        ["all sizes", *SIZES, control, "all patches: no word at all"],
    )
    axes[1].set(
        title="Patches whose top-1 token is their object's word",
        ylabel="share of the patches",
        ylim=(0, 1.02),
    )
    for axis in axes:
        axis.legend(fontsize=8)
    return figure


def plot_gallery(results, run: dict, table: pd.DataFrame, layer: int, n: int = 3):
    """P(word) over the crop with the category's boxes, for the `n` best and the `n` worst cases of `grounding` at a layer, each of another image."""
    import matplotlib.pyplot as plt

    ordered = table[table["layer"] == layer].sort_values("auroc", ascending=False, kind="stable")
    best = ordered.drop_duplicates("image").head(n)
    worst = ordered.drop(best.index)[::-1].drop_duplicates("image").head(n)
    figure, axes = plt.subplots(2, len(best), squeeze=False, figsize=(10, 22.0 / max(3, len(best))))
    for row, cases, name in zip(axes, (best, worst), ("best", "worst")):
        for axis in row[len(cases) :]:
            axis.set_axis_off()
        for axis, case in zip(row, cases.itertuples()):
            record = load_record(results, run, case.image)
            word = next(word for word in record["words"] if word["category"] == case.category)
            probs = 2.0 ** word["log2_probs"][layer].astype(float)
            own = {
                **record,
                "objects": [
                    item for item in record["objects"] if item["category"] == case.category
                ],
            }
            _draw_patches(axis, run, own, probs / probs.max())
            axis.set_title(
                f"{name}: {printable(case.category)}, AUROC {case.auroc:.2f} ({'no control' if np.isnan(case.shuffled) else f'control {case.shuffled:.2f}'})\nP at most {probs.max():.2g}, {printable(case.image, 24)}",
                fontsize=9,
                parse_math=False,
            )
    return figure


def _auroc_range(table: pd.DataFrame) -> str:
    """`0.91 (0.85 to 0.96)`: `confidence_auroc`, with its interval where there is one."""
    value, low, high = confidence_auroc(table)
    return (
        f"{value:.2f} ({low:.2f} to {high:.2f})"
        if np.isfinite(low)
        else f"{value:.2f} (too few images for an interval)"
    )


def plot_presence(table: pd.DataFrame, answers: pd.DataFrame):
    """ROC curve of the internal confidence (`confidence`) for present against absent categories, and the model's own answers (`own_answers`) as a point."""
    import matplotlib.pyplot as plt

    def curve(rows, values):
        ordered = rows.sort_values(values, ascending=False)
        last = ordered[values].ne(ordered[values].shift(-1)).to_numpy()  # ties are one step
        return [
            np.append(0, np.cumsum(kind)[last] / kind.sum())
            for kind in (~ordered["present"].to_numpy(bool), ordered["present"].to_numpy(bool))
        ]

    own = own_answers(answers, table)
    figure, axis = plt.subplots(figsize=(5.6, 5.2))
    axis.plot(
        *curve(table, "confidence"),
        color="#0072b2",
        label=f"largest P(word) in the patches: AUROC {_auroc_range(table)}",
    )
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="chance")
    if own["present"].nunique() == 2:
        patches = own.assign(confidence=own["patches"])
        axis.plot(
            *curve(own, "patches"),
            color="#0072b2",
            linestyle="--",
            label=f"the same, only those asked about: {_auroc_range(patches)}",
        )
        said_yes = own.groupby("present")["confidence"].mean()
        label = f'answers to "Is there a ...?": {_auroc_range(own)}'
        axis.plot(
            said_yes[False],
            said_yes[True],
            "D",
            color="#d55e00",
            markersize=8,
            label=label,
            clip_on=False,
            zorder=3,
        )
    axis.set(
        xlabel="share of absent categories taken for present",
        ylabel="share of present categories found",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )
    axis.legend(fontsize=8, loc="lower right")
    return figure


def word_ids(run: dict, word: str) -> list[int]:
    """The ids of the tokens that are `word` as a whole, with or without a leading space; empty if it is no token of this vocabulary."""
    spellings = {word, f"▁{word}", f"Ġ{word}"}
    return [i for i, token in enumerate(run["tokens"]) if token in spellings]


def words_to_look_for(run: dict, record: dict, categories: list[str]) -> list[str]:
    """Up to three annotations of the image that are one token of the vocabulary, and as a control one category that it does not have."""
    own = [
        value for item in record["objects"] for value in (item["category"], item["color"]) if value
    ]
    single = [word for word in dict.fromkeys([*own, *categories]) if word_ids(run, word)]
    return [word for word in single if word in own][:3] + [
        word for word in single if word not in own
    ][:1]


def plot_words(run: dict, record: dict, words: list[str], layers: list[int]):
    """P(word) per patch of the crop, words x layers, with the annotated boxes. Summed over the word's tokens (`word_ids`) among the top-k kept;
    left out where none is. A word that is no annotation of the image is marked so."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(words), len(layers), squeeze=False, figsize=(10, 10.5 / len(layers) * len(words))
    )
    for row, word in zip(axes, words):
        ids = word_ids(run, word)
        if not ids:
            raise ValueError(
                f"{word!r} is not one token of this vocabulary: choose another word, or its first part as the vocabulary spells it."
            )
        is_word = np.isin(record["patches"]["top_ids"], ids)
        probs = np.where(
            is_word.any(-1), (record["patches"]["top_probs"] * is_word).sum(-1), np.nan
        )
        annotated = any(word in (item["category"], item.get("color")) for item in record["objects"])
        row[0].set_ylabel(
            printable(word) + ("\n(not annotated)" if record["objects"] and not annotated else ""),
            parse_math=False,
        )
        for axis, layer in zip(row, layers):
            mesh = _draw_patches(axis, run, record, probs[layer])
            axis.set_title(f"layer {run['layers'][layer]}")
    figure.colorbar(mesh, ax=axes, label="P(word), from the top-k kept", shrink=0.7, pad=0.01)
    return figure


def _layer_runs(run: dict, top_ids: np.ndarray) -> str:
    """Top-1 across layers `[layer]` in short, as HTML: `▁the emb-4, ▁dog 5-8`."""
    starts = [0, *(np.flatnonzero(np.diff(top_ids.astype(int))) + 1), len(top_ids)]
    spans = [
        (run["layers"][a], run["layers"][b - 1], top_ids[a]) for a, b in itertools.pairwise(starts)
    ]
    return ", ".join(f"{_as_html(run, i)} {a if a == b else f'{a}-{b}'}" for a, b, i in spans)


def _as_html(run: dict, token_id: int) -> str:
    return html.escape(printable(run["tokens"][token_id], in_figure=False))


def _hover_texts(run: dict, readings: dict, names: list[str]) -> list[list[str]]:
    """What hovering shows, `[layer][pos]`: the name of the position, its top-k at the layer, its top-1 across layers."""
    across = [
        "<br>".join(textwrap.wrap(_layer_runs(run, column), 90, break_long_words=False))
        for column in readings["top_ids"][:, :, 0].T
    ]
    return [
        [
            f"{name}, layer {run['layers'][layer]}<br>"
            + "<br>".join(
                f"{prob:.3f} {_as_html(run, i)}"
                for i, prob in zip(readings["top_ids"][layer, at], readings["top_probs"][layer, at])
            )
            + f"<br>top-1 across layers: {across[at]}"
            for at, name in enumerate(names)
        ]
        for layer in range(len(run["layers"]))
    ]


def save_explorer(path, run: dict, record: dict, prompt: dict) -> Path:
    """Write one self-contained HTML page: hover a patch or a text token for its top-k at the layer of the slider and its top-1 across layers."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    grid, n_text = run["grid"], len(prompt["token_ids"])
    figure = make_subplots(
        1,
        2,
        column_widths=[0.6, 0.4],
        horizontal_spacing=0.12,
        subplot_titles=["image patches", "text: input token > top-1"],
    )
    patch_names = [f"patch row {at // grid + 1}, column {at % grid + 1}" for at in range(grid**2)]
    inputs = [_as_html(run, i) for i in prompt["token_ids"]]
    patch_texts = _hover_texts(run, record["patches"], patch_names)
    text_texts = _hover_texts(
        run,
        prompt["readings"],
        [f"position {at + 1}, input {name}" for at, name in enumerate(inputs)],
    )
    look = dict(
        colorscale="Viridis",
        zmin=0,
        zmax=1,
        hovertemplate="%{hovertext}<extra></extra>",
        showscale=False,
        visible=False,
    )
    for layer in range(len(run["layers"])):
        probs, words = (
            record["patches"]["top_probs"][layer, :, 0],
            prompt["readings"]["top_ids"][layer, :, 0],
        )
        hover = [patch_texts[layer][row * grid : (row + 1) * grid] for row in range(grid)]
        figure.add_trace(
            go.Heatmap(z=probs.reshape(grid, grid), hovertext=hover, opacity=0.6, **look), 1, 1
        )
        figure.add_trace(
            go.Heatmap(
                z=prompt["readings"]["top_probs"][layer, :, :1],
                hovertext=[[text] for text in text_texts[layer]],
                text=[[_as_html(run, i)] for i in words],
                texttemplate="%{text}",
                **{**look, "showscale": True},
                colorbar={"title": "probability"},
            ),
            1,
            2,
        )
    last = len(run["layers"]) - 1
    figure.data[2 * last].visible = figure.data[2 * last + 1].visible = True
    figure.update_layout(
        title="<br>".join(
            html.escape(line)
            for line in (
                f"{record['name']}: {prompt['question']}",
                f"answer: {prompt['answer'][:80]}",
            )
        ),
        height=max(720, 20 * n_text + 220),
        template="plotly_white",
        sliders=[
            {
                "active": last,
                "currentvalue": {"prefix": "layer "},
                "steps": [
                    {
                        "label": label,
                        "method": "update",
                        "args": [{"visible": [at // 2 == layer for at in range(2 * last + 2)]}],
                    }
                    for layer, label in enumerate(run["layers"])
                ],
            }
        ],
    )
    figure.add_layout_image(
        source=seen_crop(record),
        xref="x",
        yref="y",
        x=-0.5,
        y=-0.5,
        sizex=grid,
        sizey=grid,
        sizing="stretch",
        layer="below",
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(
        autorange="reversed", visible=False, scaleanchor="x", constrain="domain", row=1, col=1
    )
    figure.update_yaxes(
        autorange="reversed", tickvals=list(range(n_text)), ticktext=inputs, row=1, col=2
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True, full_html=True)
    return path


def save_figure(figure, output, name: str) -> None:
    """Save a figure as `figures/<name>.png` under `output`."""
    path = Path(output) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _as_code(text: str) -> str:
    """Any text as code in Markdown: every special character as an entity, so that none is mark-up, mathematics or a tag."""
    return "<code>" + re.sub(r"[^\w ]", lambda match: f"&#{ord(match[0])};", text) + "</code>"


def _layer_name(run: dict, layer: float) -> str:
    if layer >= len(run["layers"]):
        return "never"
    return run["layers"][int(layer)] if float(layer).is_integer() else f"{layer:g}"


def _share(right: pd.Series) -> str:
    """`67 % of 24 (47 to 82 %)`: the share of True with its 95 % interval (Wilson)."""
    from scipy.stats import binomtest

    interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return f"{right.mean():.0%} of {len(right)} ({100 * interval.low:.0f} to {interval.high:.0%})"


def _peak_range(run: dict, per_image: np.ndarray) -> str:
    """`6 (5 to 7)`: the layer at which the mean over images of `per_image` `[image, layer]` is largest, with its bootstrap 95 % range."""
    peak = _layer_name(run, np.nanargmax(per_image.mean(axis=0)))
    if len(per_image) < MIN_IMAGES:
        return f"{peak} (too few images for an interval)"
    draws = np.random.default_rng(0).integers(len(per_image), size=(1000, len(per_image)))
    low, high = np.percentile(
        [np.nanargmax(per_image[draw].mean(axis=0)) for draw in draws],
        [2.5, 97.5],
        method="nearest",
    )
    return f"{peak} ({_layer_name(run, low)} to {_layer_name(run, high)})"


def _median_range(run: dict, row: pd.Series) -> str:
    """`6 (5 to 7)` from a row of `settling_table`."""
    interval = (
        f"{_layer_name(run, row['low'])} to {_layer_name(run, row['high'])}"
        if np.isfinite(row["low"])
        else "too few images for an interval"
    )
    return f"{_layer_name(run, row['median'])} ({interval})"


DEMO_NOTE = (
    "This is the small demo model: it knows six shapes and seven colours, and what is read from it says nothing about LLaVA-1.5-7B. For photographs, set "
    "`model` to llava-hf/llava-1.5-7b-hf (a GPU of 16 GB)."
)


def report_places(run: dict, tables: dict, grounded: pd.DataFrame, confident: pd.DataFrame) -> str:
    """What `grounding` and `confidence` say about where things are, as Markdown; every number in it is computed from the loaded results."""
    lines = []

    def over_images(table, column):
        return table.groupby(["image", "layer"])[column].mean().groupby("layer").mean()

    def control(value, form):
        return (
            "no control, which takes two images"
            if np.isnan(value)
            else f"{value:{form}} for the boxes of another image (control)"
        )

    if not grounded.empty:
        per_image = grounded.pivot_table(
            index="image", columns="layer", values="auroc", aggfunc="mean"
        )
        mean, said, patches = (
            over_images(grounded, "auroc"),
            over_images(grounded, "said"),
            tables["layers"].query("segment == 'image'"),
        )
        best, most, several = (
            mean.idxmax(),
            said.idxmax(),
            grounded.drop_duplicates("category")["several_tokens"],
        )
        lines += [
            f"- **Where.** Over {grounded['image'].nunique()} images with {len(grounded) // len(run['layers'])} annotated categories, P(category word) tells the category's patches from the "
            f"others best at layer {_peak_range(run, per_image.to_numpy())}: mean AUROC {mean[best]:.2f}, and {control(over_images(grounded, 'shuffled')[best], '.2f')}; chance is 0.5.",
            f"- **Said.** The share of an object's patches whose top-1 token is its word is largest at layer {_layer_name(run, most)}: {said[most]:.0%}, and "
            f"{control(over_images(grounded, 'said_shuffled')[most], '.0%')}. Of all patches {patches[patches['layer'] == most]['no_word'].mean():.0%} decode to no word at all there.",
            f"- Of {len(several)} categories {several.sum()} are not one token; of these the first was watched, which may belong to other words too.",
        ]
    if confident["present"].nunique() == 2:
        own = own_answers(tables["answers"], confident)
        text = (
            f"- **Present or imagined.** The largest P(word) over layers and patches tells {confident['present'].sum()} present from {(~confident['present']).sum()} absent categories with an "
            f"AUROC of {_auroc_range(confident)}."
        )
        if own["present"].nunique() == 2:
            text += (
                f" Of the {len(own)} that the model was asked about, it does so with {_auroc_range(own.assign(confidence=own['patches']))}, and the model's answers with {_auroc_range(own)}; an "
                "answer is yes or no, one threshold only, which costs it some of the area."
            )
        lines.append(text)
    return (
        "\n".join(lines) or "Nothing to report: no annotated object lies in a part of the images."
    )


def report(run: dict, tables: dict, mean_probability: np.ndarray) -> str:
    """A written report as Markdown from `summarise` and `load_mean_probability`; every number in it is computed from the loaded results."""
    layers, answers = tables["layers"], tables["answers"]
    settling, readable = settling_table(answers), settling_table(answers, "readable_layer")
    first = per_prompt(answers)
    graded = first[first["right"].notna()].astype({"right": bool})
    lines = [
        f"**What was read.** {layers['image'].nunique()} images with {len(first)} prompts, {_as_code(run['model'])} in {run['dtype']}, "
        f"{len(run['layers']) - 1} layers. On the first image the lens at the last layer was {run['last_layer_jsd']:.1g} bits from the model's own "
        "distribution." + (f" {DEMO_NOTE}" if run["model"] == "demo/model" else ""),
        "",
        "**When answers become readable.** *Settles*: the layer from which on the first answer token stays the lens's top-1; among few possible "
        "answers an early layer can be right by luck. *Readable*: the layer from which on it keeps 90 % of its last probability. Medians over images, in "
        "brackets 95 % intervals: bootstrap over images, for shares Wilson's.",
        "",
        "| kind of prompt | images | right, where the truth is known | settles at layer | readable from layer |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, row in settling.iterrows():
        of_kind = graded[graded["kind"] == kind]
        # To say yes always is right on half of the presence questions: the two halves stand apart.
        groups = (
            of_kind.groupby("truth")
            if kind == "presence"
            else [("", of_kind)]
            if len(of_kind)
            else []
        )
        right = (
            ", ".join(
                f"{truth + ': ' if truth else ''}{_share(group['right'])}"
                for truth, group in groups
            )
            or "not known"
        )
        layer = f"{_median_range(run, row)} | {_median_range(run, readable.loc[kind])}"
        lines.append(f"| {kind} | {row['images']:.0f} | {right} | {layer} |")
    if len({"colour", "object", "relation"} & set(first["kind"])) > 1:
        lines += [
            "",
            "**In which order** (called one if p < 0.017: 0.05 over three comparisons)**.**",
            "",
        ]
        lines += [f"- {sentence}" for sentence in order_of_kinds(first)]
    lines += ["", "**Where predictions change.**", ""]
    for segment in SEGMENTS:
        of_segment = layers[layers["segment"] == segment]
        if of_segment.empty:
            continue
        change = of_segment.pivot_table(
            index="image", columns="layer", values="jsd_prev", dropna=False
        )
        far = of_segment.groupby(["image", "layer"])["jsd_final"].mean().groupby("layer").mean()
        far = far.index[far > 0.1]
        name = {"answer": "Positions of the answer's own tokens (about what follows them)"}.get(
            segment, f"{segment.capitalize()} positions"
        )
        lines.append(
            f"- {name} change most at layer {_peak_range(run, change.to_numpy())}, by {change.mean().max():.2f} bits, "
            + (
                f"and are last more than 0.1 bits from the output at layer {_layer_name(run, far.max())}."
                if len(far)
                else "and are nowhere more than 0.1 bits from the output."
            )
        )
    lines += [
        "",
        "**What image patches decode to** (largest mean probability over all patches and images)**.**",
        "",
    ]
    for layer in (len(run["layers"]) // 2, len(run["layers"]) - 1):
        mean = mean_probability[0, layer]
        tokens = ", ".join(
            f"{_as_code(printable(run['tokens'][i], in_figure=False))} {mean[i]:.2f}"
            for i in np.argsort(-mean)[:6]
        )
        lines.append(f"- At layer {_layer_name(run, layer)}: {tokens}.")
    lines += [
        "",
        "**Seen or guessed** (mean probability of the answer's first token at the last layer; in brackets with a grey image instead: what the language tower would say anyway)**.**",
        "",
    ]
    ends = first_tokens_at_end(answers)
    for kind, row in ends.iterrows():
        brings, half = (
            row["probability"] - row["grey_probability"],
            _layer_name(run, row["half_layer"]),
        )
        lines.append(
            f"- {kind}: {row['probability']:.2f} ({row['grey_probability']:.2f})."
            + (f" Half of the difference is there at layer {half}." if brings > 0.1 else "")
        )
    wrong = graded[~graded["right"]]
    if len(graded):
        end = "." if wrong.empty else ":" if len(wrong) <= 5 else ", the first of them:"
        lines += [
            "",
            f"**What was wrong.** {len(wrong)} of {len(graded)} answers with a known truth{end}",
            "",
        ]
    for row in wrong.head(5).itertuples():
        question, answer, truth = (
            _as_code(text) for text in (row.question.split("\n")[0], row.answer, row.truth)
        )
        lines.append(f"- {_as_code(row.image)}: {question} Answer {answer}, truth {truth}.")
    return "\n".join(lines)


def first_tokens_at_end(answers: pd.DataFrame) -> pd.DataFrame:
    """Per kind of prompt the mean over images of the first answer token's `probability` and `grey_probability` at the last layer, and `half_layer`, the first layer
    from which on at least half of that difference, which the image brings, is there."""
    rows = answers[answers["token"] == 0].assign(
        brings=lambda table: table["probability"] - table["grey_probability"]
    )
    means = (
        rows.groupby(["kind", "layer", "image"])[["probability", "grey_probability", "brings"]]
        .mean()
        .groupby(["kind", "layer"])
        .mean()
    )
    ends = means.groupby("kind").last()
    half = means["brings"].unstack("kind")
    ends["half_layer"] = [
        settling_layer(np.where(half[kind] >= half[kind].iloc[-1] / 2, 1, 0)) for kind in ends.index
    ]
    return ends.reindex([kind for kind in KINDS if kind in ends.index])


def order_of_kinds(first: pd.DataFrame) -> list[str]:
    """Sentences on which of colour, object and relation becomes readable first, from a row per prompt with its `readable_layer`.

    Paired: images that have both kinds, Wilcoxon's signed-rank test, called a difference below 0.05 / 3 (Bonferroni, three pairs).
    """
    from scipy.stats import rankdata, wilcoxon

    names = {"colour": "colours", "object": "objects", "relation": "the arrangement of objects"}
    per_image = (
        first.groupby(["image", "kind"])["readable_layer"]
        .mean()
        .unstack("kind")
        .reindex(columns=list(names))
    )
    sentences = []
    for a, b in itertools.combinations(names, 2):
        both = per_image[[a, b]].dropna()
        later = both[b] - both[a]
        if (
            len(both) < 7 or not later.any()
        ):  # of six images not even a unanimous result is below 0.05 / 3
            sentences.append(
                f"{names[a].capitalize()} and {names[b]}: {len(both)} images have both"
                + (
                    ", too few for a test."
                    if len(both) < 7
                    else ", and on each the two become readable at the same layer."
                )
            )
            continue
        p = wilcoxon(later, zero_method="zsplit").pvalue
        if (
            np.sign(later) * rankdata(later.abs())
        ).sum() < 0:  # the direction is that of the test, which ranks
            a, b, later = b, a, -later
        claim = (
            f"Answers about {names[a]} become readable before answers about {names[b]}"
            if p < 0.05 / 3
            else f"Between answers about {names[a]} and about {names[b]} these results show no sure order"
        )
        sentences.append(
            f"{claim}: {names[a]} earlier on {(later > 0).sum()} and later on {(later < 0).sum()} of the {len(both)} images that have both, "
            f"by {later.median():g} layers in the median (Wilcoxon p = {p:.2g})."
        )
    return sentences
