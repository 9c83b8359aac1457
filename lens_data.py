"""What the model is shown: images, annotations, the crop, and the colours of objects.

Holds the way from a folder of images, with or without annotations, to the objects in the crop that
the model sees. It knows of the model only its image processor: how it resizes and crops. It knows
nothing of prompts, of weights, of the lens, of results, tables or figures.
"""

import hashlib
import itertools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from lens_format import COLOURS, LEAST_SIDE, MOST_LABEL, MOST_NAME_BYTES, is_text, require
from lens_kaggle import check_file, data_sets, files_under
from lens_utils import WORDS

__all__ = [
    "IMAGE_FORMATS", "IMAGE_SUFFIXES", "find_images", "find_data_set", "read_annotations",
    "match_annotations", "unique_by_id", "digests_of", "open_image", "box_in_crop",
    "objects_in_crop", "colour_terms", "pixels_within", "colour_of", "colour_cast",
    "with_colours",
]  # fmt: skip

SPECIAL_TOKENS = ["<image>", "<s>", "</s>", "<unk>", "<pad>"]  # not text to LLaVA-1.5

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
        what = "is a file, not a folder" if folder.exists() else "is no folder"
        raise FileNotFoundError(f"{str(folder)!r} {what}: set `images` to the images' folder.")
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

    - `objects`: by path of an image (as annotated, below that of the file that tells of it), to be
      given to `match_annotations`, a list of dicts with `category`, `box` `[x, y, width,
      height]` in pixels, `crowd`, `color` (None unless the annotation carries that extra
      attribute), `polygons` (`[x, y, x, y, ...]` each) and `image_size` `(width, height)`, None
      where it is not given
    - `categories`: the sorted names of all categories
    - `problems`: a sentence for each thing that can't be used and is left out

    The first two are empty where there are no annotations.
    """
    files = sorted(files_under(folder))
    paths = [path for path in files if path.suffix.lower() in (".json", ".jsonl", ".ndjson")]
    images = {path.stem: path.name for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    objects, categories, problems, digests, unknown = {}, set(), [], set(), []
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
                data = _parse(content, images.get(path.stem))
                objects_of_file, categories_of_file, problems_of_file = _read_file(path.name, data)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
                unknown.append(f"{path.name} ({type(e).__name__}: {str(e)[:80]})")
                continue
            digests.add(digest)
            below = path.relative_to(folder).parent.parts
            for file, items in objects_of_file.items():
                file = "/".join([*below, file])
                objects[file] = None if file in objects else items
            categories |= categories_of_file
            problems += problems_of_file
    unknown += _other_kinds(files)
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


OTHER_KINDS = {  # by suffix, how a file with annotations begins: YOLO, VOC, tables
    ".txt": r"\d+( [\d.]+){4,}(\s|$)",
    ".xml": r"[^\0]*<annotation",
    ".csv": r"[^\n]*(bbox|x_?min|x1|class|label)",
}


def _other_kinds(files: list[Path]) -> list[str]:
    """The names of those of `files` that look like annotations of another kind."""
    names = []
    for path in files:
        found = re.search(
            r"(annot|instance|label|bbox|json).*\.(gz|zip|bz2|xz|tar)$", path.name, re.I
        )
        begins = OTHER_KINDS.get(path.suffix.lower())
        if begins and path.is_file():
            with open(path, encoding="utf-8", errors="replace") as file:
                found = re.match(begins, file.read(500), re.I)
        names += [path.name] * bool(found)
    return names


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


def _read_file(name: str, data: dict) -> tuple[dict[str, list[dict] | None], set, list[str]]:
    """`(objects, categories, problems)` as of `read_annotations` in `data`, from the file `name`.

    The objects of a file name that several images have are None. Raises ValueError, KeyError,
    TypeError, AttributeError or RecursionError if `data` is not in COCO's instances format.
    """
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


def may_have_colour(item: dict) -> bool:
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
        if not color and item["polygons"] and may_have_colour(item) and cast <= MOST_CAST:
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
