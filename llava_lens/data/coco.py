"""COCO's instances format: images, categories and objects."""

import re
from collections import Counter
from collections.abc import Callable

from llava_lens.schema import MOST_LABEL
from llava_lens.text import is_text, require
from llava_lens.words import SPECIAL_TOKENS

MOST_BOX = 1e6  # pixels of a box's place or size: beyond that it is a mistake


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
