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
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from lens_kaggle import data_sets
from lens_utils import (
    COLOURS,
    KINDS,
    WAYS,
    WORDS,
    is_text,
    names_of,
    patch_coverage,
    require,
)

__all__ = [
    "IMAGE_FORMATS", "IMAGE_SUFFIXES", "find_images", "find_data_set",
    "read_annotations", "unique_by_id",
    "open_image", "box_in_crop", "objects_in_crop",
    "colour_terms", "pixels_within", "colour_of", "colour_cast", "with_colours",
    "CHAT", "SHORT_ANSWER", "QUESTIONS", "DESCRIPTION_QUESTION",
    "object_question", "presence_question", "colour_question", "relation_question", "relation_of",
    "count_together", "draw_absent", "make_prompts", "as_prompts", "patches_to_cut",
    "words_to_watch", "word_ids",
]  # fmt: skip

# ---- Finding images ----------------------------------------------------------------------------

# Pillow is told these because it also knows formats that start programs.
IMAGE_FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MOST_NAME_BYTES = 200  # of a name: file systems allow 255, and a record adds a suffix


def find_images(folder) -> dict[str, Path]:
    """The paths of all images under `folder`, by name.

    A name is the relative path with `/` as `__`; if it is too long, not UTF-8 or taken, it is
    shortened and given a digest. So every name can be the name of a file. Raises FileNotFoundError
    if the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is no folder"
        raise FileNotFoundError(f"{str(folder)!r} {what}: set `images` to the images' folder.")
    paths = sorted(
        path
        for path in folder.rglob("*")
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


def find_data_set() -> Path:
    """The first attached Kaggle data set that holds images with COCO annotations, else the first
    that holds images.

    Raises FileNotFoundError, which says how to attach one, if no data set holds an image.
    """
    with_images = [
        folder
        for folder in data_sets()
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))
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
# What exports other than COCO's call an image, its list of objects, a category and a box.
IMAGE_KEYS = ("file_name", "filename", "image_name", "image_path", "image", "file")
OBJECTS_KEYS = ("annotations", "objects", "detections", "labels", "boxes")
CATEGORY_KEYS = ("category", "category_name", "label", "class", "class_name", "name", "categories")
BOX_KEYS = ("bbox", "box", "bounding_box")
EXPECTED = (
    "expected is COCO's instances format (images, annotations, categories), or JSON or JSON lines "
    "with an image's name and objects with a category's name and a box [x, y, width, height] in "
    "pixels"
)


def read_annotations(folder) -> tuple[dict[str, list[dict]], list[str], list[str]]:
    """Read the annotations under `folder`: COCO's instances files, or other JSON or JSON lines that
    have image names, categories and boxes (`_as_coco`).

    Returns `(objects, categories, problems)`:

    - `objects`: by file name of an image a list of dicts with `category`, `box` `[x, y, width,
      height]` in pixels, `crowd`, `color` (None unless the annotation carries that extra
      attribute), `polygons` (`[x, y, x, y, ...]` each) and `image_size` `(width, height)`, None
      where it is not given
    - `categories`: the sorted names of all categories
    - `problems`: a sentence for each thing that can't be used and is left out

    The first two are empty where there are no annotations.
    """
    suffixes = (".json", ".jsonl", ".ndjson")
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    paths = [path for path in files if path.suffix.lower() in suffixes]
    # COCO ships keypoints and captions beside the instances; they name the same objects again, or
    # none.
    paths = [path for path in paths if path.name.startswith("instances")] or paths
    images = {path.stem: path.name for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    objects, categories, problems, digests, unknown = {}, set(), [], set(), []
    for path in paths:
        try:
            content = path.read_bytes()
            digest = hashlib.sha256(content).digest()
            if digest in digests:  # a copy of a file
                continue
            data = _parse(content, images.get(path.stem))
            objects_of_file, categories_of_file, problems_of_file = _read_file(path.name, data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            unknown.append(f"{path.name} ({type(error).__name__}: {str(error)[:80]})")
            continue
        digests.add(digest)
        for file, items in objects_of_file.items():
            objects[file] = None if file in objects else items
        categories |= categories_of_file
        problems += problems_of_file
    if not objects:
        unknown += [path.name for path in files if _looks_annotated(path, images)]
    if unknown:
        more = f" and {len(unknown) - 1} more files" * (len(unknown) > 1)
        problems.append(f"{unknown[0]}{more}: not understood as annotations; {EXPECTED}")
    problems += [
        f"{file}: several annotated images have this name, so its objects are left out"
        for file in sorted(objects)
        if objects[file] is None
    ]
    known = {file: items for file, items in objects.items() if items is not None}
    return known, sorted(categories), problems


def _looks_annotated(path: Path, images: dict[str, str]) -> bool:
    """Whether a file may hold annotations in another format: VOC, YOLO or a table."""
    named = path.stem in images or re.search("annot|label", path.name.lower())
    return bool(named) and path.suffix.lower() in (".xml", ".txt", ".csv", ".tsv", ".parquet")


def _parse(content: bytes, image: str | None) -> dict:
    """The content of a file in COCO's instances format; `image` is the file name of the image that
    is called as the file is. Raises ValueError, TypeError or AttributeError if there is none."""
    try:
        data = json.loads(content)
    except ValueError:
        data = [json.loads(line) for line in content.splitlines() if line.strip()]
    if isinstance(data, dict) and {"images", "annotations", "categories"} <= data.keys():
        return data
    return _as_coco(data if isinstance(data, list) else [data], image)


def _first(entry: dict, keys: tuple[str, ...]):
    """The first of `keys` that `entry` has, None if none."""
    return next((entry[key] for key in keys if key in entry), None)


def _as_coco(entries: list[dict], image: str | None) -> dict:
    """Entries about an image, or about a box in one, in COCO's instances format.

    An entry has the image's name (else it is that of `image`), perhaps `width` and `height`, and a
    list of objects, or lists of their categories and boxes, or is the object itself. Raises
    ValueError if an entry lacks a name, a category or a box, or boxes are not of COCO's kind.
    """
    images, annotations, categories = {}, [], {}
    for entry in entries:
        about = entry["image"] if isinstance(entry.get("image"), dict) else entry
        file, found = _first(about, IMAGE_KEYS) or image, _first(entry, OBJECTS_KEYS)
        require(is_text(file), f"no image's name among {', '.join(map(repr, entry))}")
        size = {side: about.get(side) for side in ("width", "height")}
        images.setdefault(file, {"id": file, "file_name": file, **size})
        if isinstance(found, dict):
            pairs = zip(_first(found, CATEGORY_KEYS), _first(found, BOX_KEYS), strict=True)
            found = [{"category": category, "bbox": box} for category, box in pairs]
        for item in [entry] if found is None else found:
            category, box = _first(item, CATEGORY_KEYS), _first(item, BOX_KEYS)
            require(is_text(category), f"no category's name in {str(item)[:60]}")
            require(box is not None, f"no box in {str(item)[:60]}")
            categories.setdefault(category, {"id": category, "name": category})
            place = {"image_id": file, "category_id": category, "bbox": box}
            annotations.append({**item, **place, "id": len(annotations)})
    require(images, "no images")
    _check_boxes([item["bbox"] for item in annotations])
    lists = {"images": list(images.values()), "categories": list(categories.values())}
    return {**lists, "annotations": annotations}


def _check_boxes(boxes: list) -> None:
    """Raise ValueError if the boxes of a file, which does not say of which kind they are, are
    shares of the image or, from five on, all have a second corner in place of a size."""
    known = [box for box in boxes if isinstance(box, list) and len(box) == 4]
    require(not known or max(map(max, known)) > 1, "boxes are not in pixels")
    corners = all(box[2] > box[0] and box[3] > box[1] for box in known)
    require(len(known) < 5 or not corners, "boxes seem to be two corners")


def _read_file(name: str, data: dict) -> tuple[dict[str, list[dict] | None], set, list[str]]:
    """`(objects, categories, problems)` as of `read_annotations` in `data`, from the file `name`.

    The objects of a file name that several images have are None. Raises ValueError, KeyError,
    TypeError, AttributeError or RecursionError if `data` is not in COCO's instances format.
    """
    categories, twice = unique_by_id(data["categories"], lambda category: category["name"])
    images, images_twice = unique_by_id(data["images"], _file_and_size)
    annotations = list(data["annotations"])
    problems = [f"{name}: {problem}" for problem in twice + images_twice]
    for category_id, category in list(categories.items()):
        if not is_text(category) or "<image>" in category:
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
    times = Counter(entry["id"] for entry in entries)
    problems = [
        f"{count} entries have the id {entry_id!r:.20}, none is used"
        for entry_id, count in times.items()
        if count > 1
    ]
    values = {entry["id"]: value_of(entry) for entry in entries if times[entry["id"]] == 1}
    return values, problems


def _file_and_size(image: dict) -> tuple[str, tuple[int, int] | None]:
    """The file name of an annotated image and its `(width, height)`, None where not given."""
    size = image.get("width"), image.get("height")
    is_size = all(isinstance(side, int) for side in size) and min(size) > 0
    return Path(image["file_name"]).name, size if is_size else None


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
    color = annotation.get("color")
    return file, {
        "category": category,
        "box": [float(side) for side in box],
        "crowd": bool(annotation.get("iscrowd", 0)),
        "color": color if is_text(color) else None,
        "polygons": _polygons(annotation.get("segmentation")),
        "image_size": image_size,
    }


def _polygons(segmentation) -> list[list[float]]:
    """The polygons of an annotation, none where it has a mask instead or something odd."""
    polygons = segmentation if isinstance(segmentation, list) else []
    whole = all(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(isinstance(side, (int, float)) and abs(side) <= MOST_BOX for side in polygon)
        for polygon in polygons
    )
    return polygons if whole else []


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
    """The image in RGB, on white where it is transparent. Raises ValueError for float pixels."""
    require(image.mode != "F", "its pixels are floating-point numbers of an unknown range")
    if image.mode.startswith("I"):  # 16 bits per pixel, which convert() would clip, not scale
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        # On white, as a viewer shows it: the colour of fully transparent pixels is arbitrary.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def box_in_crop(box, image_size: tuple[int, int], image_processor) -> tuple[list[float], float]:
    """A box `[x, y, width, height]` of the image in pixels of the model's crop, clipped to the
    crop, and the share (0 ... 1) of the box that the crop holds.

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
    visible = min(1.0, (x1 - x0) * (y1 - y0) / (w * h)) if w > 0 and h > 0 else 0.0
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)], float(visible)


def objects_in_crop(
    objects: list[dict], image_size: tuple[int, int], image_processor
) -> list[dict]:
    """Objects of `read_annotations` as the model sees them.

    Instead of `image_size` and `polygons` each has `visible`, the share of the object that the crop
    holds, and `share`, the share of the crop that the object takes (both 0 ... 1); `box` is in
    pixels of the crop. Boxes for another resolution of the image (the object's `image_size`) are
    scaled.
    """
    crop_area = image_processor.crop_size["width"] * image_processor.crop_size["height"]
    seen = []
    for item in objects:
        size = item.get("image_size") or image_size
        box, visible = box_in_crop(item["box"], size, image_processor)
        left_out = ("image_size", "polygons")
        kept = {name: value for name, value in item.items() if name not in left_out}
        seen.append({**kept, "box": box, "visible": visible, "share": box[2] * box[3] / crop_area})
    return seen


# ---- Colours of objects ------------------------------------------------------------------------

TO_XYZ = np.array([  # of linear sRGB, relative to the white point D65 (IEC 61966-2-1)
    [0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047],
    [0.212671, 0.715160, 0.072169],
    [0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883],
])  # fmt: skip
MARGIN = 0.03  # of the square root of an object's area: annotated outlines are rough
CLEAR_SHARE = 0.7  # of an object's pixels that must have one colour term
MOST_CAST = 20  # chroma of an image's mean colour: in light of a colour, white looks yellow


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB `[..., 3]` of sRGB pixels `[..., 3]` from 0 to 255."""
    values = rgb / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def colour_terms(rgb: np.ndarray) -> np.ndarray:
    """The basic colour term of each pixel `[n]`, as an index into COLOURS, from sRGB `[n, 3]`.

    Rules over lightness, chroma and hue in CIELAB, of which the first that holds decides. Hues were
    set on the names that people gave to colours in the XKCD survey, white and black on half of the
    photographed objects in `tests/judged_colours.csv`.
    """
    light, a, b = _lab(rgb).T
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    rules = [
        ("black", (light < 20) & (chroma < 12)),
        ("white", (light > 62) & (chroma < 16)),
        ("gray", chroma < 11),
        ("pink", (hue >= 340) & (light > 45) | (hue < 30) & (light > 57)),
        ("red", (hue >= 350) | (hue < 48) & (chroma > 38)),
        ("brown", (hue < 92) & (light < 57) & (chroma < 60)),
        ("orange", hue < 75),
        ("brown", (hue < 90) & (light < 70) & (chroma < 35)),
        ("yellow", hue < 108),
        ("green", hue < 195),
        ("blue", hue < 310),
        ("purple", hue < 350),
    ]
    return np.select([holds for _, holds in rules], [COLOURS.index(term) for term, _ in rules])


def pixels_within(polygons: list[list[float]], image: Image.Image) -> np.ndarray:
    """The pixels `[n, 3]` of an image (RGB) within an object's polygons, but for a margin of 3 % of
    the square root of its area."""
    xs, ys = ([side for polygon in polygons for side in polygon[axis::2]] for axis in (0, 1))
    left, top = max(0, int(min(xs))), max(0, int(min(ys)))
    right, bottom = min(image.width, int(max(xs)) + 2), min(image.height, int(max(ys)) + 2)
    if right <= left or bottom <= top:
        return np.zeros((0, 3), np.uint8)
    mask = Image.new("1", (right - left, bottom - top))
    draw = ImageDraw.Draw(mask)
    outlines = [
        [(x - left, y - top) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
        for polygon in polygons
    ]
    for points in outlines:
        draw.polygon(points, fill=1)
    margin = MARGIN * np.sqrt(np.asarray(mask).sum())
    for points in outlines:
        draw.line([*points, *points[:2]], fill=0, width=max(1, round(2 * margin)), joint="curve")
    return np.asarray(image.crop((left, top, right, bottom)))[np.asarray(mask)]


def colour_of(pixels: np.ndarray) -> str | None:
    """The basic colour term of at least CLEAR_SHARE of an object's pixels `[n, 3]`; None if there
    is none, and for gray, which shadow makes of white and of black."""
    counts = np.bincount(colour_terms(pixels), minlength=len(COLOURS))
    term = COLOURS[counts.argmax()]
    return term if counts.max() >= CLEAR_SHARE * max(1, len(pixels)) and term != "gray" else None


def colour_cast(image: Image.Image) -> float:
    """The chroma of an image's mean colour in CIELAB."""
    return float(np.hypot(*_lab(np.asarray(image)[::4, ::4]).mean(axis=(0, 1))[1:]))


def _may_have_colour(item: dict) -> bool:
    """Whether objects of its category often have one colour of their own."""
    return not item["crowd"] and item["category"].lower() not in WORDS["no_colour"]


def with_colours(objects: list[dict], image: Image.Image) -> list[dict]:
    """Objects of `read_annotations` with the `color` of their pixels (`colour_of`) where they have
    a polygon and the annotation gives no colour, and with `color_from`: `annotation`, `pixels` or
    empty.

    Not of categories that seldom have one colour of their own (`no_colour` in `WORDS`), nor where
    the image has a colour cast above MOST_CAST.
    """
    coloured, cast = [], colour_cast(image)
    for item in objects:
        color, color_from = item["color"], "annotation" if item["color"] else ""
        if not color and item["polygons"] and _may_have_colour(item) and cast <= MOST_CAST:
            width, height = item["image_size"] or image.size
            scale = [image.width / width, image.height / height]
            polygons = [
                [side * scale[at % 2] for at, side in enumerate(polygon)]
                for polygon in item["polygons"]
            ]
            color = colour_of(pixels_within(polygons, image))
            color_from = "pixels" if color else ""
        coloured.append({**item, "color": color, "color_from": color_from})
    return coloured


# ---- Prompts -----------------------------------------------------------------------------------

# LLaVA-1.5's conversation format (the image stands before the question), and the line that it was
# trained to answer in a word.
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


def count_together(annotations: dict[str, list[dict]]) -> dict[str, Counter]:
    """For each category, in how many images each other one is beside it, and under its own name in
    how many it is itself; from the objects of `read_annotations`."""
    together = {}
    for objects in annotations.values():
        names = {item["category"] for item in objects}
        for name in names:
            together.setdefault(name, Counter()).update(names)
    return together


def draw_absent(  # noqa: PLR0913 (all that POPE's ways depend on)
    absent: list[str],
    present: set[str],
    together: dict[str, Counter],
    n: int,
    rng: random.Random,
    after: str = "",
) -> list[tuple[str, str]]:
    """Up to `n` of the `absent` categories, each with the way it was drawn, one of WAYS in turn,
    beginning with the one that follows `after`, else with any.

    Popular is one of the three most frequent, adversarial one of the three that are most often
    beside the `present` ones (`count_together`), then the most frequent. Without such counts all
    are random. Source: POPE (Li et al., arXiv 2305.10355), which takes the three.
    """
    turn = WAYS.index(after) + 1 if after else rng.randrange(len(WAYS))
    left, drawn = sorted(absent), []
    frequent = {name: together.get(name, {}).get(name, 0) for name in left}
    beside = {name: sum(together.get(name, {}).get(p, 0) for p in present) for name in left}
    ranks = {
        "random": lambda name: 0,
        "popular": lambda name: -frequent[name],
        "adversarial": lambda name: (-beside[name], -frequent[name]),
    }
    while left and len(drawn) < n:
        way = WAYS[(turn + len(drawn)) % len(WAYS)] if together else "random"
        ranked = sorted(left, key=ranks[way])
        name = rng.choice(ranked if way == "random" else ranked[:3])
        left.remove(name)
        drawn.append((name, way))
    return drawn


def make_prompts(
    objects: list[dict],
    categories: list[str],
    seed: int | str = 0,
    per_kind: int = 1,
    together: dict[str, Counter] | None = None,
) -> list[dict]:
    """Prompts about one image, from its objects (`objects_in_crop`) and all that the data set knows
    (`categories`).

    Asked about are objects of which at least half is in the crop and which fill at least 1 % of
    it. Among the candidates of a kind `per_kind` are drawn with `seed` (presence: `per_kind`
    present and `per_kind` absent categories, these by `draw_absent` with the counts `together`).
    Where `objects` is empty there are two prompts, object and description. Each prompt is a dict:

    - `kind`: object, presence, colour, relation or description
    - `question`: a text
    - `truth`: the right answer, None where it is not known
    - `truth_from`: how it came about, `annotation`, `pixels` (`with_colours`) or empty
    - `categories`: the names of the categories that the question is about
    - `way`: how an absent category was drawn, one of WAYS; empty elsewhere
    """
    rng, prompts = random.Random(seed), []

    def add(kind, question, truth, about, way="", truth_from="annotation"):
        about = {"truth_from": truth_from if truth else "", "categories": about, "way": way}
        prompts.append({"kind": kind, "question": question, "truth": truth, **about})

    def draw(kind, candidates):
        for candidate in rng.sample(candidates, min(per_kind, len(candidates))):
            add(kind, *candidate)

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
        for name, way in draw_absent(absent, {*count}, together or {}, per_kind, rng):
            add("presence", presence_question(name), "no", [name], way)
    # First those whose colour is known; of the others only what may have one.
    colours = [item for item in single if item["color"] or _may_have_colour(item)]
    colours = sorted(rng.sample(colours, len(colours)), key=lambda item: item["color"] is None)
    for item in colours[:per_kind]:
        about = colour_question(item["category"]), item["color"], [item["category"]]
        add("colour", *about, truth_from=item.get("color_from", "annotation"))
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
    """The user's own prompts in the form of `make_prompts`, with empty `categories` and `way`; a
    truth is from the `user`.

    Each is a question, or a dict with `question` and optionally `kind` (else `own`) and `truth`.
    Raises ValueError for an empty question, one that brings its own `<image>`, an unknown kind, a
    truth that is no text and any other key.
    """
    require(
        isinstance(prompts, (list, tuple)),
        f"prompts is {prompts!r}: it must be a list of questions, [] for those made from "
        "annotations.",
    )
    return [_as_prompt(prompt, f"Prompt {number}") for number, prompt in enumerate(prompts)]


def _as_prompt(prompt, where: str) -> dict:
    """One prompt of `as_prompts`, called `where` in error messages."""
    given = prompt if isinstance(prompt, dict) else {"question": prompt}
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
    require(
        "<image>" not in question,
        f"{where} ({question!r}) has its own <image>: leave it out, the image is put before the "
        f"question ({CHAT!r}).",
    )
    about = {"truth_from": "user" if truth else "", "categories": [], "way": ""}
    return {"kind": kind, "question": question, "truth": truth, **about}


# ---- Patches to cut attention to ---------------------------------------------------------------


def patches_to_cut(
    prompt: dict, objects: list[dict], grid: int, image_size: int, seed: int | str = 0
) -> dict[str, list[int]]:
    """The numbers of the patches, row by row, that hold the objects that a prompt is about.

    - `object`: the patches that a box of one of the prompt's categories covers by a tenth or more;
      for a box too small for that the one it overlaps most
    - `background`: as many that lie outside all these boxes, drawn with `seed`: the control

    Empty where a category has no box in the crop, or too few patches lie outside.
    `objects` are those of `objects_in_crop`.
    """
    about = set(prompt["categories"])
    boxes = [
        (item["category"], patch_coverage(item["box"], grid, image_size))
        for item in objects
        if item["category"] in about and min(item["box"][2:]) > 0
    ]
    if not about or {category for category, _ in boxes} != about:
        return {}
    # The small number is for rounding: an exact tenth counts.
    inside = np.any([cover >= min(0.1, cover.max()) - 1e-9 for _, cover in boxes], axis=0)
    outside = np.flatnonzero(np.sum([cover for _, cover in boxes], axis=0) == 0).tolist()
    if len(outside) < inside.sum():
        return {}
    background = random.Random(f"{seed} {prompt['question']}").sample(outside, int(inside.sum()))
    return {"object": np.flatnonzero(inside).tolist(), "background": sorted(background)}


# ---- Words to watch ----------------------------------------------------------------------------


def words_to_watch(
    tokenizer,
    objects: list[dict],
    categories: list[str],
    prompts: list[dict] = (),
    seed: int | str = 0,
    together: dict[str, Counter] | None = None,
) -> list[dict]:
    """The categories whose words are watched in the patches of one image: those of which an object
    is in the crop by at least a tenth, and as many that the image does not have.

    A category without a word (`word_ids`) is not watched, nor is one that is called like a colour
    where `prompts` ask for one. The absent ones are first those that `prompts` are about, then
    others by `draw_absent` with `seed` and the counts `together`, none with a token of a present
    one. `objects` are those of `objects_in_crop`. Each word is a dict:

    - `category`, `present` (whether the image has it)
    - `way`: how an absent one was drawn, one of WAYS; empty for a present one
    - `token_ids`: those of `word_ids`
    """
    vocabulary, has = tokenizer.get_vocab(), {item["category"] for item in objects}
    not_now = COLOURS if "colour" in {prompt["kind"] for prompt in prompts} else ()
    ids = {name: word_ids(vocabulary, name) for name in sorted({*categories, *has} - {*not_now})}
    words = {name: {"category": name, "token_ids": ids[name]} for name in ids if ids[name]}
    seen = {item["category"] for item in objects if item["visible"] >= 0.1}
    watched = [{**word, "present": True, "way": ""} for name, word in words.items() if name in seen]
    taken = {token_id for word in watched for token_id in word["token_ids"]}
    absent = [name for name in words if name not in has and not taken & {*ids[name]}]
    asked = {name: prompt["way"] for prompt in prompts for name in prompt["categories"]}
    drawn = [(name, asked[name]) for name in absent if name in asked][: len(watched)]
    others, n = [name for name in absent if name not in asked], len(watched) - len(drawn)
    after = drawn[-1][1] if drawn else ""
    drawn += draw_absent(others, has, together or {}, n, random.Random(seed), after)
    return watched + [{**words[name], "present": False, "way": way} for name, way in drawn]


def word_ids(vocabulary: dict[str, int], category: str) -> list[int]:
    """The ids of the tokens that are a word for a category, whole, from the tokenizer's vocabulary.

    Singular and plural of its name and synonyms (`names_of`) with a leading space, also capitalised
    unless that names something else, and without the space where `WORDS` says that such a token is
    the word. Never a piece of a word; empty where all its words are several tokens.
    """
    spellings = []
    for name in names_of(category):
        cases = [name] if name in WORDS["names"] else [name, name.capitalize()]
        spellings += [space + case for case in cases for space in ("▁", "")]
    bare = {case for word in WORDS["bare"] for case in (word, word.capitalize())}
    kept = [text for text in spellings if text in bare or text.startswith("▁")]
    return sorted({vocabulary[text] for text in kept if text in vocabulary})
