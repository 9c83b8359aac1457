"""What the model is shown and asked: images, annotations, the crop, prompts and words to watch.

Holds the way from a folder of images, with or without COCO annotations, to the prompts of one image
and the category words whose probability is read in its patches. It knows of the model only its
processor: how it resizes and crops an image, and how it splits a text into tokens. It knows nothing
of weights, of the lens, of results, tables or figures.
"""

import hashlib
import itertools
import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lens_kaggle import check_file, data_sets, files_under
from lens_utils import KINDS, LEAST_SIDE, MOST_LABEL, MOST_NAME_BYTES, is_text, require

__all__ = [
    "IMAGE_FORMATS", "IMAGE_SUFFIXES", "find_images", "find_data_set",
    "read_annotations", "match_annotations", "unique_by_id", "digests_of",
    "open_image", "box_in_crop", "objects_in_crop",
    "CHAT", "SHORT_ANSWER", "QUESTIONS", "DESCRIPTION_QUESTION",
    "object_question", "presence_question", "colour_question", "relation_question", "relation_of",
    "make_prompts", "as_prompts",
    "plural_of", "words_to_watch",
]  # fmt: skip

# ---- Finding images ----------------------------------------------------------------------------

# Pillow is told these because it also knows formats that start programs.
IMAGE_FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MOST_IMAGE_BYTES, MOST_JSON_BYTES = 2**29, 2**30  # COCO's largest annotations have 0.45 GB


def find_images(folder) -> dict[str, Path]:
    """The paths of all images under `folder`, by name.

    A name is the relative path with `/` as `__`; if it is too long, not UTF-8 or taken, it is
    shortened and given a digest. So every name can be the name of a file. What lies in hidden
    folders, results and reports is no image. Raises FileNotFoundError if the folder is missing or
    holds no image, ValueError as `files_under`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No folder {str(folder)!r}: set `images` to the folder that holds the images."
        )
    paths = sorted(
        path
        for path in files_under(folder, _is_output)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not paths:
        raise FileNotFoundError(
            f"No image under {str(folder)!r}: looked for {', '.join(sorted(IMAGE_SUFFIXES))} in it "
            "and its subfolders."
        )
    by_name = {}
    for path in paths:
        below = path.relative_to(folder)
        name = "__".join(below.parts)
        if name in by_name or len(os.fsencode(name)) > MOST_NAME_BYTES or not is_text(name):
            digest = hashlib.sha256(os.fsencode(below)).hexdigest()[:12]
            ascii_name = name.encode("ascii", "replace").decode().replace("?", "_")
            name = f"{ascii_name[:100]}~{digest}{path.suffix}"
        by_name[name] = path
    return by_name


def _is_output(folder: Path) -> bool:
    """Whether a folder is one of results or of a report, or hidden (checkpoints, for instance)."""
    is_report = (folder / "explorer").is_dir() and (folder / "figures").is_dir()
    return folder.name.startswith(".") or (folder / "run.pkl").exists() or is_report


def find_data_set() -> Path:
    """The first attached Kaggle data set that holds images with COCO annotations, else the first
    that holds images.

    Raises FileNotFoundError, which says how to attach one, if no data set holds an image.
    """
    with_images = [
        folder
        for folder in data_sets()
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in files_under(folder, _is_output))
    ]
    if not with_images:
        raise FileNotFoundError(
            "No attached data set holds an image: choose Add Input, search for COCO-data-100, add "
            "it, and run this cell again."
        )
    annotated = [folder for folder in with_images if read_annotations(folder)[0]]
    return (annotated or with_images)[0]


# ---- Annotations -------------------------------------------------------------------------------

MOST_BOX = 1e6  # pixels of a box's place or size: beyond that it is a mistake


def read_annotations(folder) -> tuple[dict[str, list[dict]], list[str], list[str]]:
    """Read the COCO instances files (`*.json`) under `folder`.

    Returns `(objects, categories, problems)`:

    - `objects`: by path of an image (as annotated, below that of the file that tells of it), to be
      given to `match_annotations`, a list of dicts with `category`, `box` `[x, y, width,
      height]` in pixels, `crowd`, `color` (None unless the annotation carries that extra
      attribute) and `image_size` `(width, height)`, None where it is not given
    - `categories`: the sorted names of all categories
    - `problems`: a sentence for each thing that can't be used and is left out

    The first two are empty where there are no annotations.
    """
    paths = sorted(path for path in files_under(folder) if path.suffix.lower() == ".json")
    objects, categories, problems, digests = {}, set(), _other_kinds(folder), set()
    # COCO ships keypoints and captions beside the instances; they name the same objects again, or
    # none.
    is_first = [path.name.lower().startswith("instances") for path in paths]
    for group in (is_first, [not first for first in is_first]):
        for path in itertools.compress(paths, [] if objects else group):
            try:
                check_file(path, MOST_JSON_BYTES)
                content = path.read_bytes()
                digest = hashlib.sha256(content).digest()
                if digest in digests:  # a copy of a file
                    continue
                objects_of_file, categories_of_file, problems_of_file = _read_file(
                    path.name, content
                )
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
                # Another kind of file, JSON lines for instance.
                problems.append(
                    f"{path.name} has no annotations in COCO's instances format "
                    f"({type(e).__name__}: {str(e)[:80]})"
                )
                continue
            digests.add(digest)
            below = path.relative_to(folder).parent.parts
            for file, items in objects_of_file.items():
                file = "/".join([*below, file])
                objects[file] = None if file in objects else items
            categories |= categories_of_file
            problems += problems_of_file
    problems += [
        f"{file}: several annotated images have this name, so its objects are left out"
        for file in sorted(objects)
        if objects[file] is None
    ]
    known = {file: items for file, items in objects.items() if items is not None}
    return known, sorted(categories), problems


OTHER_KINDS = {  # by suffix, how a file with annotations begins: YOLO, VOC, tables
    ".txt": r"\d+( [\d.]+){4,}\s",
    ".xml": r"[^\0]*<annotation",
    ".csv": r"[^\n]*(bbox|x_?min|x1)",
}


def _other_kinds(folder) -> list[str]:
    """A sentence that names the files under `folder` that look like annotations of another kind."""
    names = []
    for path in sorted(files_under(folder)):
        packed = re.search(
            r"(annot|instance|label|bbox|json).*\.(gz|zip|bz2|xz|tar)$", path.name, re.I
        )
        begins = OTHER_KINDS.get(path.suffix.lower())
        if begins and path.is_file():
            with open(path, encoding="utf-8", errors="replace") as file:
                packed = re.match(begins, file.read(500), re.I)
        names += [path.name] * bool(packed)
    some = f"{len(names)} files ({', '.join(names[:3])}) look like annotations and are not read"
    return [f"{some}: unpack or convert them to COCO's instances format"] if names else []


def match_annotations(
    objects: dict[str, list[dict]], image_paths: dict[str, Path]
) -> tuple[dict[str, list[dict]], list[str]]:
    """`objects` of `read_annotations` by the names of `find_images`, and a sentence for each image
    that is left out because it could be several.

    An annotated path belongs to the image with which it shares the longest end, a whole path
    before all. An image without a usable object has none.
    """
    on_disk, claims, matched, problems = defaultdict(list), defaultdict(dict), {}, []
    for name, path in image_paths.items():
        on_disk[path.name].append(name)

    def best(scores: dict) -> list[str]:
        return [key for key, score in scores.items() if score == max(scores.values())]

    for file in objects:
        ends = file.split("/")[::-1]
        shared = {}
        for name in on_disk.get(ends[0], ()):
            pairs = zip(ends, image_paths[name].parts[::-1], strict=False)
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            shared[name] = (same, file.replace("/", "__") == name)
        if len(best(shared)) == 1:
            claims[best(shared)[0]][file] = max(shared.values())
        elif shared:
            problems.append(f"{file}: could be any of {', '.join(best(shared)[:3])}, left out")
    for name, files in claims.items():
        if len(best(files)) > 1:
            problems.append(f"{name}: could be any of {', '.join(best(files)[:3])}, left out")
        elif objects[best(files)[0]]:
            matched[name] = objects[best(files)[0]]
    return matched, problems


def _read_file(name: str, content: bytes) -> tuple[dict[str, list[dict] | None], set, list[str]]:
    """`(objects, categories, problems)` as of `read_annotations` in the file called `name`.

    The objects of a file name that several images have are None. Raises ValueError, KeyError,
    TypeError, AttributeError or RecursionError if `content` is not in COCO's instances format.
    """
    data = json.loads(content)
    for key in ("images", "categories"):
        has_ids = any("id" in entry for entry in data[key] if isinstance(entry, dict))
        require(has_ids, f"it has no {key}")
    categories, twice = unique_by_id(data["categories"], lambda category: category["name"])
    images, images_twice = unique_by_id(data["images"], _file_and_size)
    annotations = list(data["annotations"])
    problems = [f"{name}: {problem}" for problem in twice + images_twice]
    for category_id, category in list(categories.items()):
        short = is_text(category) and len(category) <= MOST_LABEL
        if not short or any(token in category for token in SPECIAL_TOKENS):
            problems.append(
                f"{name}, category {category_id}: {category!r:.50} can't be asked about"
            )
            del categories[category_id]
    objects, seen = {file: [] for file, _ in images.values()}, set()
    for number, annotation in enumerate(annotations):
        try:
            file, item = _read_object(annotation, images, categories)
            annotation_id = annotation.get("id", f"number {number}")
            require(annotation_id not in seen, f"the id {annotation_id} is there twice")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            problems.append(f"{name}, annotation {number}: {reason[:120]}")
            continue
        seen.add(annotation_id)
        objects[file].append(item)
    for file, times in Counter(file for file, _ in images.values()).items():
        if times > 1:
            objects[file] = None
    return objects, set(categories.values()), problems


def unique_by_id(entries, value_of: Callable) -> tuple[dict, list[str]]:
    """`value_of(entry)` by the entry's id, and a sentence for each id that several entries share.

    None of those entries is used: what refers to the id could mean any of them.
    """
    values, times, problems = {}, Counter(), []
    for number, entry in enumerate(entries):
        try:
            values[entry["id"]] = value_of(entry)
            times[entry["id"]] += 1
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"entry {number} ({entry!r:.60}) has no id or no name, it is not used")
    several = [entry_id for entry_id, count in times.items() if count > 1]
    problems += [
        f"{times[entry_id]} entries have the id {entry_id!r:.20}, none is used"
        for entry_id in several
    ]
    return {key: value for key, value in values.items() if key not in several}, problems


def _file_and_size(image: dict) -> tuple[str, tuple[int, int] | None]:
    """The path of an annotated image and its `(width, height)`, None where not given."""
    parts = [part for part in re.split(r"[/\\]", image["file_name"]) if part not in ("", ".", "..")]
    try:  # also as text or with decimals
        size = tuple(int(float(image[side])) for side in ("width", "height"))
    except (KeyError, TypeError, ValueError, OverflowError):
        size = 0, 0
    require(parts, "it has no file name")
    return "/".join(parts), size if min(size) > 0 else None


def _read_object(annotation: dict, images: dict, categories: dict) -> tuple[str, dict]:
    """The file name of an annotation's image, and the annotated object.

    Raises KeyError, ValueError, TypeError, AttributeError or OverflowError if it can't be used.
    """
    file, image_size = images[annotation["image_id"]]
    category, box = categories[annotation["category_id"]], annotation["bbox"]
    require(
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(side, (int, float)) and abs(side) <= MOST_BOX for side in box)
        and min(box[2:]) > 0,
        f"the box {box!r:.60} is not x, y and a width and height above 0",
    )
    _check_in_image(box, image_size)
    crowd = str(annotation.get("iscrowd", 0)).lower()
    require(crowd in ("0", "1", "false", "true"), f"iscrowd is {crowd!r:.20}")
    color = annotation.get("color")
    return file, {
        "category": category,
        "box": [float(side) for side in box],
        "crowd": crowd in ("1", "true"),
        "color": color if is_text(color) else None,
        "image_size": image_size,
    }


def _check_in_image(box: list, image_size: tuple[int, int] | None) -> None:
    """Raise ValueError for a box that is in fractions of the image, or not in it."""
    fractions = max(box) <= 1 and any(side != int(side) for side in box)
    require(not fractions, f"the box {box!r:.60} seems to be in fractions of the image")
    for start, length, side in zip(box[:2], box[2:], image_size or (), strict=False):
        end = start + length
        require(start < side and end > 0, f"the box {box!r:.60} is outside the image")
        # By a tenth it may be of an object that is cut off.
        within = -0.1 * side <= start and end <= 1.1 * side
        corners = "it should be x, y, width and height, not two corners"
        require(within, f"the box {box!r:.60} leaves the image: {corners}")


def digests_of(path, objects: list[dict]) -> dict[str, str]:
    """Digests (SHA-256) of an image's file and of its `objects` (`read_annotations`), as RECORD's
    `image_digest` and `annotations_digest`. Raises OSError if the file can't be read."""
    with open(path, "rb") as file:
        image = hashlib.file_digest(file, "sha256").hexdigest()
    annotations = hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()
    return {"image_digest": image, "annotations_digest": annotations}


# ---- Images, and the crop that the model sees --------------------------------------------------


def open_image(path, size: tuple[int, int] | None = None) -> Image.Image:
    """The first frame of an image, upright and in RGB, whatever its mode (greyscale, palette,
    alpha, CMYK, 16 bits).

    `size` (width, height) is that of its annotations. If `size` matches the stored image but not
    the EXIF-rotated one, the boxes refer to the stored image, so it is not rotated. Raises
    OSError, which names the file, if the image can't be decoded to its end, is more than 100 times
    as long as wide, or has another shape than `size`.
    """
    try:
        check_file(path, MOST_IMAGE_BYTES)
        with Image.open(path, formats=IMAGE_FORMATS) as stored:
            stored.load()
            image = ImageOps.exif_transpose(stored)
            if size == stored.size != image.size:
                image = stored
            _check_shape(image.size, size)
            return _to_rgb(image)
    except Exception as error:  # a damaged image can raise nearly anything
        raise OSError(
            f"Image {str(path)!r} can't be read ({error}): replace or remove it."
        ) from error


def _check_shape(image_size: tuple[int, int], size: tuple[int, int] | None) -> None:
    """Raise ValueError for a very long image, or one of another shape than its annotations'."""
    width, height = image_size
    require(
        max(image_size) <= 100 * min(image_size),
        f"it is {width} x {height}, and the model would see next to nothing of it",
    )
    # Annotations of the same image in another resolution fit; rounded to whole pixels, either side
    # may be off by one.
    if size and abs(size[0] * height - size[1] * width) > max(*size, *image_size):
        raise ValueError(
            f"it is {width} x {height}, and its annotations are for {size[0]} x {size[1]}"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, on white where it is transparent. Raises ValueError for pixels of an
    unknown range."""
    require(image.mode != "F", "its pixels are floating-point numbers of an unknown range")
    if image.mode.startswith("I"):  # whole numbers, which convert() would clip, not scale
        pixels = np.asarray(image)
        known = pixels.min() >= 0 and pixels.max() < 2**16
        require(known, "its pixels are whole numbers of an unknown range")
        # A camera's 12 bits come in 16.
        bits = next(bits for bits in (8, 10, 12, 14, 16) if pixels.max() < 2**bits)
        image = Image.fromarray(np.rint(pixels * (255 / (2**bits - 1))).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        # On white, as a viewer shows it: the colour of fully transparent pixels is arbitrary.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def box_in_crop(box, image_size: tuple[int, int], image_processor) -> tuple[list[float], float]:
    """A box `[x, y, width, height]` of the image in pixels of the model's crop, clipped to the
    crop, and the share (0 ... 1) of the box that the crop holds (0 for a box that is no larger than
    rounding).

    CLIP's processor resizes the shortest edge and crops the centre: the model never saw what lies
    outside the crop.
    """
    width, height = image_size
    short, crop = image_processor.size["shortest_edge"], image_processor.crop_size
    # int() as in transformers.image_transforms.get_resize_output_image_size
    new_width, new_height = (
        (short, int(short * height / width))
        if width <= height
        else (int(short * width / height), short)
    )
    left, top = (new_width - crop["width"]) // 2, (new_height - crop["height"]) // 2
    x, y, w, h = box
    x, w = x * new_width / width - left, w * new_width / width
    y, h = y * new_height / height - top, h * new_height / height
    x0, x1 = np.clip([x, x + w], 0, crop["width"])
    y0, y1 = np.clip([y, y + h], 0, crop["height"])
    is_seen = min(x1 - x0, y1 - y0) >= LEAST_SIDE
    visible = min(1.0, (x1 - x0) * (y1 - y0) / (w * h)) if is_seen else 0.0
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)], float(visible)


def objects_in_crop(
    objects: list[dict], image_size: tuple[int, int], image_processor
) -> list[dict]:
    """Objects of `read_annotations` as the model sees them.

    Instead of `image_size` each has `visible`, the share of the object that the crop holds, and
    `share`, the share of the crop that the object takes (both 0 ... 1); `box` is in pixels of the
    crop. Boxes for another resolution of the image (the object's `image_size`) are scaled.
    """
    crop_area = image_processor.crop_size["width"] * image_processor.crop_size["height"]
    seen = []
    for item in objects:
        size = item.get("image_size") or image_size
        box, visible = box_in_crop(item["box"], size, image_processor)
        kept = {name: value for name, value in item.items() if name != "image_size"}
        seen.append({**kept, "box": box, "visible": visible, "share": box[2] * box[3] / crop_area})
    return seen


# ---- Prompts -----------------------------------------------------------------------------------

# LLaVA-1.5's conversation format (the image stands before the question), and the line that it was
# trained to answer in a word.
SPECIAL_TOKENS = ["<image>", "<s>", "</s>", "<unk>", "<pad>"]  # not text to LLaVA-1.5
CHAT = "USER: <image>\n{question} ASSISTANT:"
SHORT_ANSWER = "Answer the question using a single word or phrase."
QUESTIONS = {  # template by kind of prompt
    "object": "What is the main object in the image?\n" + SHORT_ANSWER,
    "presence": "Is there {article} {category} in the image?\n" + SHORT_ANSWER,
    "colour": "What color is the {category}?\n" + SHORT_ANSWER,
    "relation": "Where is the {a} relative to the {b}: left, right, above or below?\n"
    + SHORT_ANSWER,
    "description": "Describe the image.",
}
DESCRIPTION_QUESTION = QUESTIONS["description"]


def object_question() -> str:
    """Asks for the main object."""
    return QUESTIONS["object"]


def presence_question(category: str) -> str:
    """Asks whether the image has a category."""
    article = "an" if category[0] in "aeiou" else "a"
    return QUESTIONS["presence"].format(article=article, category=category)


def colour_question(category: str) -> str:
    """Asks for the colour of a category's one object."""
    return QUESTIONS["colour"].format(category=category)


def relation_question(a: str, b: str) -> str:
    """Asks where `a` is, as seen from `b`."""
    return QUESTIONS["relation"].format(a=a, b=b)


def relation_of(box_a, box_b) -> str | None:
    """Where `a` is relative to `b` (`left`, `right`, `above`, `below`), or None unless the boxes
    are clearly apart.

    Clearly: they do not overlap along the main direction, and their centres are 1.5 times as far
    apart along it as along the other.
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
    """Prompts about one image, from its objects (`objects_in_crop`) and all that the data set knows
    (`categories`).

    Asked about are objects of which at least half is in the crop and which fill at least 1 % of
    it. Among the candidates of a kind `per_kind` are drawn with `seed` (presence: `per_kind`
    present and `per_kind` absent categories). Where `objects` is empty there are two prompts,
    object and description. Each prompt is a dict:

    - `kind`: object, presence, colour, relation or description
    - `question`: a text
    - `truth`: the right answer, None where it is not known
    - `categories`: the names of the categories that the question is about
    """
    rng, prompts = random.Random(seed), []

    def draw(kind, candidates):
        for question, truth, about in rng.sample(candidates, min(per_kind, len(candidates))):
            prompts.append(
                {"kind": kind, "question": question, "truth": truth, "categories": about}
            )

    clear = [
        item
        for item in objects
        if not item["crowd"] and item["visible"] >= 0.5 and item["share"] >= 0.01
    ]
    # A second dog makes "the dog" ambiguous even where it is small, cut off or part of a crowd.
    count = Counter(item["category"] for item in objects)
    single = [item for item in clear if count[item["category"]] == 1]
    main = _main_category(clear, objects)
    if main or not objects:
        draw("object", [(object_question(), main, [main] if main else [])])
    if objects:
        present = sorted({item["category"] for item in clear})
        absent = [name for name in categories if name not in count]
        draw("presence", [(presence_question(name), "yes", [name]) for name in present])
        draw("presence", [(presence_question(name), "no", [name]) for name in absent])
    colours = [(item["category"], item["color"]) for item in single]
    draw("colour", [(colour_question(name), colour, [name]) for name, colour in colours])
    relations = [
        (a["category"], b["category"], relation_of(a["box"], b["box"]))
        for a, b in itertools.permutations(single, 2)
    ]
    draw("relation", [(relation_question(a, b), r, [a, b]) for a, b, r in relations if r])
    draw("description", [(DESCRIPTION_QUESTION, None, [])])
    return prompts


def _main_category(clear: list[dict], objects: list[dict]) -> str | None:
    """The category of the largest of the `clear` objects, or None unless that takes 1.5 times as
    much of the crop as any object of another category."""
    if not clear:
        return None
    largest = max(clear, key=lambda item: item["share"])
    rest = [item["share"] for item in objects if item["category"] != largest["category"]]
    return largest["category"] if largest["share"] >= 1.5 * max(rest, default=0) else None


def as_prompts(prompts: list) -> list[dict]:
    """The user's own prompts in the form of `make_prompts`, with empty `categories`.

    Each is a question, or a dict with `question` and optionally `kind` (else `own`) and `truth`.
    Raises ValueError for an empty question, one that brings its own `<image>`, an unknown kind, a
    truth that is no text and any other key.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the text {prompts!r}: put it into a list, [{prompts!r}].")
    return [_as_prompt(prompt, f"Prompt {number}") for number, prompt in enumerate(prompts)]


def _as_prompt(prompt, where: str) -> dict:
    """One prompt of `as_prompts`, called `where` in error messages."""
    given = prompt if isinstance(prompt, dict) else {"question": prompt}
    # A text of numpy's is one too, but could not be saved.
    given = {str(k): str(v) if isinstance(v, str) else v for k, v in given.items()}
    question, kind, truth = given.get("question"), given.get("kind", "own"), given.get("truth")
    require(
        is_text(question),
        f"{where} is empty or no text: give a question, or an empty list for the prompts made from "
        "annotations.",
    )
    unknown = ", ".join(map(repr, given.keys() - {"kind", "question", "truth"}))
    require(not unknown, f"{where} has {unknown}: only question, kind and truth have a meaning.")
    require(
        truth is None or is_text(truth),
        f"{where} has the truth {truth!r}: it must be a text or None.",
    )
    require(
        kind in KINDS,
        f"{where} is of the kind {kind!r}: it must be one of {', '.join(KINDS)}.",
    )
    own = ", ".join(token for token in SPECIAL_TOKENS if token in question)
    require(
        not own,
        f"{where} ({question!r:.200}) has its own {own}: leave it out, the image is put before the "
        f"question, and nothing but the model ends it ({CHAT!r}).",
    )
    return {"kind": kind, "question": question, "truth": truth, "categories": []}


# ---- Words to watch ----------------------------------------------------------------------------

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


def words_to_watch(
    tokenizer,
    objects: list[dict],
    categories: list[str],
    prompts: list[dict] = (),
    seed: int | str = 0,
) -> list[dict]:
    """The categories whose words are watched in the patches of one image: those of which an object
    is in the crop by at least a tenth, and as many that the image does not have.

    The absent ones are first those that `prompts` are about, then others drawn with `seed`, none
    with a token of a present one. `objects` are those of `objects_in_crop`. Each word is a dict:

    - `category`, `plural`: texts
    - `present`: whether the image has the category
    - `token_ids`: the ids of the first token of singular and plural, each with a leading space
    - `several_tokens`: whether one of these is a fragment, which may belong to another word
    """
    watched = [
        _word(tokenizer, category, present=True)
        for category in sorted({item["category"] for item in objects if item["visible"] >= 0.1})
    ]
    taken = {token_id for word in watched for token_id in word["token_ids"]}
    absent = [
        _word(tokenizer, category, present=False)
        for category in sorted(set(categories) - {item["category"] for item in objects})
    ]
    absent = [word for word in absent if not taken & set(word["token_ids"])]
    asked_about = {category for prompt in prompts for category in prompt["categories"]}
    asked = [word for word in absent if word["category"] in asked_about][: len(watched)]
    others = [word for word in absent if word not in asked]
    missing = min(len(watched) - len(asked), len(others))
    return watched + asked + random.Random(seed).sample(others, missing)


def _word(tokenizer, category: str, present: bool) -> dict:
    """A word as of `words_to_watch`."""
    # As it stands within a sentence: alone, a word gets no leading space from some tokenizers.
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
