"""COCO's instances format: images, categories and objects."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from llava_lens.schema import MOST, MOST_LABEL
from llava_lens.text import is_text, require
from llava_lens.words import SPECIAL_TOKENS, names_of

MOST_BOX = 1e6  # pixels of a box's place or size: beyond that it is a mistake
# Names that tools give to what is no object, or to one that nobody could tell.
NO_CATEGORIES = {"background", "ignore", "ignored", "other", "unknown", "unlabeled", "void"}


class Annotated(NamedTuple):
    """What a file tells of one image.

    - `objects`: those that can be used
    - `possible`: the categories that the image has or may have; None: it may have any
    - `looked_for`: the categories that the image was searched for; None: those of the data set
    """

    objects: list[dict]
    possible: set[str] | None
    looked_for: set[str] | None


def known_absent(categories: set[str], possible: set[str] | None) -> list[str]:
    """Those of `categories` that an image is known not to have, sorted: none that shares a name
    with one of the `possible` ones."""
    if possible is None:
        return []
    taken = frozenset().union(*map(_forms, possible))
    return sorted(name for name in categories if taken.isdisjoint(_forms(name)))


@lru_cache(maxsize=2**16)
def _forms(name: str) -> frozenset[str]:
    return frozenset(names_of(plain(name)))


def plain(name) -> str:
    """A category's name without what does not tell two apart: case, spaces, `_` and `-`."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold() if isinstance(name, str) else ""


def read_file(name: str, data: dict) -> tuple[list[tuple[str, Annotated]], set[str], list[str]]:
    """`(images, categories, problems)` in `data`, in COCO's instances format, of the file `name`.

    `images` are pairs of a path and what is told of it. Without `categories` in `data`, the
    annotations' `category_id` are names. Raises ValueError, KeyError, TypeError, AttributeError or
    RecursionError for another format.
    """
    annotations = _entries(data["annotations"])
    is_listed = "categories" in data
    for key in ("images", "categories") if is_listed else ("images",):
        ids = [entry for entry in _entries(data[key]) if isinstance(entry, dict) and "id" in entry]
        require(ids, f"it has no {key}")
    names = {} if is_listed else {same_id(item["category_id"]): item for item in annotations}
    listed = [{"id": item["category_id"], "name": item["category_id"]} for item in names.values()]
    entries, problems = unique_by_id(
        data.get("categories", listed), lambda entry: (entry["name"], entry)
    )
    categories, relatives, odd = _categories(entries, annotations)
    images, twice = unique_by_id(data["images"], _file_and_size)
    objects, possible, unused = _read_objects(annotations, images, categories)

    def named(ids) -> set[str]:
        ids = map(same_id, ids if isinstance(ids, list) else ())
        return {categories[category_id] for category_id in ids if category_id in categories}

    # LVIS: most categories were not looked for, and of some not all objects were annotated.
    is_federated = any("neg_category_ids" in entry for _, _, entry in images.values())
    everything, pairs = set(categories.values()) if is_listed else None, []
    for image_id, (file, _, entry) in images.items():
        may_be = possible[image_id]
        if may_be is not None:
            may_be |= named(entry.get("not_exhaustive_category_ids"))
            may_be = set().union(*(relatives[category] for category in may_be))
        looked_for = named(entry.get("neg_category_ids")) if is_federated else everything
        pairs.append((file, Annotated(objects[image_id], may_be, looked_for)))
    problems = [f"{name}{problem}" for problem in problems + twice + odd + unused]
    return pairs, set(categories.values()), problems


def _read_objects(annotations: list, images: dict, categories: dict) -> tuple[dict, dict, list]:
    """`(objects, possible, problems)`, the first two by image id, as of Annotated.

    The category of an annotation that can't be used is possible all the same. Where that can't be
    told, any category is; where the image can't be told, any is in every image. Exact copies of an
    annotation count once.
    """
    objects = {image_id: [] for image_id in images}
    possible = {image_id: set() for image_id in images}
    problems, seen, unsure, copies = [], set(), set(), 0
    for number, annotation in enumerate(annotations):
        entry = annotation if isinstance(annotation, dict) else {}
        image_id, category_id = same_id(entry.get("image_id")), same_id(entry.get("category_id"))
        if image_id not in images or category_id not in categories:
            unsure.add(image_id)
            key = "image_id" if image_id not in images else "category_id"
            problems.append(f", annotation {number}: there is no {entry.get(key, key)!r:.60}")
            continue
        category = categories[category_id]
        possible[image_id].add(category)
        try:
            few = len(objects[image_id]) < MOST["object"]
            require(few, f"its image has more than {MOST['object']} objects")
            item = _read_object(entry, category, images[image_id][1])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            problems.append(f", annotation {number}: {str(error)[:120]}")
            continue
        place = image_id, category, *item["box"]
        if place in seen and item in objects[image_id]:
            copies += 1
            continue
        seen.add(place)
        objects[image_id].append(item)
    if copies:
        problems.append(f": {copies} exact copies of annotations are left out")
    for image_id in images if None in unsure else unsure & images.keys():
        possible[image_id] = None
    return objects, possible, problems


def _categories(entries: dict, annotations: list) -> tuple[dict, dict[str, set[str]], list[str]]:
    """Names by id, each name's relatives, and a sentence for each category that can't be used.

    Relatives are the category itself, those that it is a kind of, and those that are a kind of it
    (by `supercategory`): where one is, the others may be. Names that are alike are one category. A
    supercategory without an annotation is only a heading.
    """
    used = {same_id(item.get("category_id")) for item in annotations if isinstance(item, dict)}
    parents = {plain(name): plain(entry.get("supercategory")) for name, entry in entries.values()}
    headings = {parent for name, parent in parents.items() if parent != name}
    names, spelling, problems = {}, {}, []
    for category_id, (name, _) in entries.items():
        is_name = is_text(name) and len(name) <= MOST_LABEL and not name.startswith("_")
        has_token = is_name and any(token in name for token in SPECIAL_TOKENS)
        if not is_name or has_token or plain(name) in NO_CATEGORIES:
            problems.append(f", category {category_id}: {name!r:.50} can't be asked about")
        elif category_id in used or plain(name) not in headings:
            names[category_id] = spelling.setdefault(plain(name), " ".join(name.split()))
    relatives = {name: {name} for name in names.values()}
    for key, name in spelling.items():
        above = {key}
        while (key := parents.get(key)) and key not in above:
            above.add(key)
            if key in spelling:
                relatives[name].add(spelling[key])
                relatives[spelling[key]].add(name)
    return names, relatives, problems


def _entries(entries) -> list:
    """The entries of a list, or of a dict by id."""
    if not isinstance(entries, dict):
        return list(entries)
    values = [value if isinstance(value, dict) else {"name": value} for value in entries.values()]
    return [{"id": key, **value} for key, value in zip(entries, values, strict=True)]


def same_id(value) -> int | str | None:
    """An id as a number where it is one, as text or with a decimal point too. None for no id."""
    if not isinstance(value, (int, float, str)):
        return None
    text = str(value).strip()
    return int(float(text)) if re.fullmatch(r"-?\d{1,15}(\.0*)?", text) else text or None


def unique_by_id(entries, value_of: Callable) -> tuple[dict, list[str]]:
    """`value_of(entry)` by the entry's id, and a sentence for each id that several entries share.

    None of those entries is used: what refers to the id could mean any of them.
    """
    values, times, problems = {}, Counter(), []
    for number, entry in enumerate(_entries(entries)):
        try:
            entry_id = same_id(entry["id"])
            require(entry_id is not None, "no id")
            values[entry_id] = value_of(entry)
            times[entry_id] += 1
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(
                f": entry {number} ({entry!r:.60}) has no id or no name, it is not used"
            )
    several = [entry_id for entry_id, count in times.items() if count > 1]
    problems += [
        f": {times[entry_id]} entries have the id {entry_id!r:.20}, none is used"
        for entry_id in several
    ]
    return {key: value for key, value in values.items() if key not in several}, problems


def _file_and_size(image: dict) -> tuple[str, tuple[int, int] | None, dict]:
    """The path of an annotated image, its `(width, height)` (None where not given), and `image`."""
    name = unicodedata.normalize("NFC", image["file_name"])  # Macs write accents as two characters
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]
    try:  # also as text or with decimals
        size = tuple(int(float(image[side])) for side in ("width", "height"))
    except (KeyError, TypeError, ValueError, OverflowError):
        size = 0, 0
    require(parts, "it has no file name")
    return "/".join(parts), size if min(size) > 0 else None, image


def _read_object(annotation: dict, category: str, image_size: tuple[int, int] | None) -> dict:
    """The annotated object. Raises KeyError, ValueError, TypeError, AttributeError or OverflowError
    if it can't be used."""
    box = annotation.get("bbox")
    require(
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(side, (int, float)) and abs(side) <= MOST_BOX for side in box)
        and min(box[2:]) > 0,
        f"the box {box!r:.60} is not x, y and a width and height above 0",
    )
    _check_in_image(box, image_size)
    crowd = str(annotation.get("iscrowd") or 0).lower()
    require(crowd in ("0", "0.0", "1", "1.0", "false", "true"), f"iscrowd is {crowd!r:.20}")
    color = annotation.get("color")
    is_short = not is_text(color) or len(color) <= MOST_LABEL
    require(is_short, f"the colour {color!r:.20}... is longer than {MOST_LABEL} characters")
    return {
        "category": category,
        "box": [float(side) for side in box],
        "crowd": crowd in ("1", "1.0", "true"),
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
