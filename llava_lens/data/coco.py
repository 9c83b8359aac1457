"""COCO's instances format: images, categories and objects."""

import re
from collections import Counter, defaultdict
from typing import NamedTuple
from unicodedata import normalize

from llava_lens.schema import MOST, MOST_LABEL
from llava_lens.text import is_text, require
from llava_lens.words import SPECIAL_TOKENS, is_called, plain

MOST_BOX = 1e6  # pixels of a box's place or size: beyond that it is a mistake
# Names that tools give to what is no object, or to one that nobody could tell.
NO_CATEGORIES = {"background", "ignore", "ignored", "ignored regions", "none"}
UNKNOWN = "unknown"  # stands for a category that can't be told: no category is called so
NO_CATEGORIES |= {"other", "others", UNKNOWN, "unlabeled", "void"}


class Annotated(NamedTuple):
    """What a file tells of one image."""

    file: str  # the image's path, NFC
    objects: list[dict]  # those that can be used
    dropped: list[dict]  # what stands for the others (`_stand_in`)
    possible: set[str]  # categories that the image has or may have, and any if one is UNKNOWN
    looked_for: set[str] | None  # categories that it was searched for; None: the data set's


def read_file(name: str, data: dict) -> tuple[list[Annotated], set[str], list[str]]:
    """`(images, categories, problems)` of the file `name`, from its `data` in COCO's instances
    format. Without `categories` in `data`, the annotations' `category_id` are names.

    Raises ValueError, KeyError, TypeError or AttributeError for another format.
    """
    annotations = [one if isinstance(one, dict) else {} for one in _entries(data["annotations"])]
    images, problems = _by_id(data, "images", "file_name")
    if "categories" in data:
        listed, odd = _by_id(data, "categories", "name")
    else:
        named, odd = [item["category_id"] for item in annotations], []
        listed = {same_id(category): {"name": category} for category in named}
    used = {same_id(item.get("category_id")) for item in annotations}
    categories, relatives, nameless = _categories(listed, used)
    objects, dropped, unused = _read_objects(annotations, images, categories)

    def names(ids) -> set[str]:
        ids = map(same_id, ids if isinstance(ids, list) else ())
        return {categories[category_id] for category_id in ids if category_id in categories}

    # LVIS: most categories were not looked for, and of some not all objects were annotated.
    is_federated = any("neg_category_ids" in entry for entry in images.values())
    everything, told = set(categories.values()) if "categories" in data else None, []
    for image_id, entry in images.items():
        found, unread = objects[image_id], {item["category"] for item in dropped[image_id]}
        partly = unread - {UNKNOWN} | names(entry.get("not_exhaustive_category_ids"))
        for item in found:  # where more of them may be, none is known to be the only one
            item["crowd"] |= is_called(item["category"], partly)
        has = partly.union(item["category"] for item in found)
        possible = set().union(*(relatives[category] for category in has))
        looked_for = names(entry.get("neg_category_ids")) if is_federated else everything
        file = normalize("NFC", entry["file_name"])  # Macs write accents as two characters
        file = "/".join(part for part in re.split(r"[/\\]", file) if part not in ("", ".", ".."))
        told.append(Annotated(file, found, dropped[image_id], possible, looked_for))
    problems = [f"{name}{problem}" for problem in problems + odd + nameless + unused]
    return told, set(categories.values()), problems


def _read_objects(annotations: list, images: dict, categories: dict) -> tuple[dict, dict, list]:
    """By image id the objects, and what stands for annotations that can't be used (`_stand_in`).
    And a sentence for each of these."""
    objects, dropped, problems = defaultdict(list), defaultdict(list), []
    for number, entry in enumerate(annotations):
        image_id, category_id = same_id(entry.get("image_id")), same_id(entry.get("category_id"))
        category, size = categories.get(category_id, UNKNOWN), _size(images.get(image_id, {}))
        key = "image_id" if image_id not in images else "category_id"
        is_known = image_id in images and category_id in categories
        try:
            require(is_known, f"there is no {entry.get(key, key)!r:.60}")
            few = len(objects[image_id]) < MOST["object"]
            require(few, f"its image has more than {MOST['object']} objects")
            item = _read_object(entry, category, size)
        except (ValueError, OverflowError) as error:
            problems.append(f", annotation {number}: {str(error)[:120]}")
            dropped[image_id] += [_stand_in(entry, category, size)] * (image_id in images)
            continue
        objects[image_id] += [item] * (item not in objects[image_id])
    # Without an image it could lie in each. But an unlisted id that is of the type of the others is
    # that of an image left out of a subset.
    if {*map(type, dropped)} - {*map(type, images)}:
        for image_id in images:
            dropped[image_id].append(_stand_in({}, UNKNOWN, None))
    return objects, dropped, problems


def _categories(entries: dict, used: set) -> tuple[dict, dict[str, set[str]], list[str]]:
    """Names by id, the relatives of each name, and a sentence for each that can't be used."""
    parents = {plain(e["name"]): plain(str(e.get("supercategory", ""))) for e in entries.values()}
    headings = {parent for key, parent in parents.items() if parent != key}
    names, spelling, problems = {}, {}, []
    for category_id, entry in entries.items():
        name, key = entry["name"], plain(entry["name"])
        is_name = is_text(name) and len(name) <= MOST_LABEL and not name.startswith("_")
        if not is_name or key in NO_CATEGORIES or SPECIAL_TOKENS.search(name):
            problems.append(f", category {category_id}: {name!r:.50} can't be asked about")
        elif category_id in used or key not in headings:  # without annotations only a heading
            # Names that are alike are one category, as the first is spelled.
            names[category_id] = spelling.setdefault(key, " ".join(name.split()))
    # Itself, what it is a kind of, and what is a kind of it: where one is, the others may be.
    relatives = {name: {name} for name in spelling.values()}
    for key, name in spelling.items():
        above = [key]
        while (parent := parents.get(above[-1])) and parent not in above:
            above.append(parent)
        for other in (spelling[key] for key in above if key in spelling):
            relatives[name].add(other)
            relatives[other].add(name)
    return names, relatives, problems


def _entries(entries) -> list:
    """The entries of a list, or of a dict by id."""
    if not isinstance(entries, dict):
        return list(entries)
    values = [value if isinstance(value, dict) else {"name": value} for value in entries.values()]
    return [{"id": key, **value} for key, value in zip(entries, values, strict=True)]


def same_id(value) -> int | str | None:
    """An id as a number where it is one, as text or with a decimal point too. None for no id."""
    if not isinstance(value, (int, float, str)) or value != value:
        return None
    text = str(value).strip()
    return int(float(text)) if re.fullmatch(r"-?\d{1,15}(\.0*)?", text) else text or None


def _by_id(data: dict, key: str, name: str) -> tuple[dict, list[str]]:
    """The entries of `data[key]` with a `name`, by id, and a sentence for each that can't be used:
    also for those that share an id, as what refers to it could mean any of them."""
    entries, by_id, problems = _entries(data[key]), {}, []
    ids = [same_id(entry.get("id")) if isinstance(entry, dict) else None for entry in entries]
    times = Counter(ids)
    require(len(entries) > times[None], f"it has no {key}")
    for entry_id, entry in zip(ids, entries, strict=True):
        if entry_id is None or times[entry_id] > 1 or not isinstance(entry.get(name), str):
            problems.append(f": {key}: {entry!r:.60} has no id of its own or no {name}, not used")
        else:
            by_id[entry_id] = entry
    return by_id, problems


def _size(image: dict) -> tuple[int, int] | None:
    """The `(width, height)` of an annotated image, also as text or with decimals."""
    try:
        width, height = (int(float(image[side])) for side in ("width", "height"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (width, height) if min(width, height) > 0 else None


def _are_pixels(values) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and abs(value) <= MOST_BOX for value in values
    )


def _read_object(entry: dict, category: str, image_size: tuple[int, int] | None) -> dict:
    """The annotated object. Raises ValueError if its box can't be used."""
    box, color, polygons = (entry.get(key) for key in ("bbox", "color", "segmentation"))
    is_box = _are_pixels(box) and len(box) == 4 and min(box[2:]) > 0
    require(is_box, f"the box {box!r:.60} is not x, y and a width and height above 0")
    require(max(box) > 1, f"the box {box!r:.60} seems to be in fractions of the image")
    for start, length, side in zip(box[:2], box[2:], image_size or (), strict=False):
        # By a tenth it may be of an object that is cut off.
        within = -0.1 * side <= start < side and 0 < start + length <= 1.1 * side
        corners = "it should be x, y, width and height, not two corners"
        require(within, f"the box {box!r:.60} leaves the image: {corners}")
    is_short = not is_text(color) or len(color) <= MOST_LABEL
    require(is_short, f"the colour {color!r:.20}... is longer than {MOST_LABEL} characters")
    # In place of polygons a crowd has a mask.
    polygons = polygons if isinstance(polygons, list) else []
    whole = all(_are_pixels(p) and len(p) >= 6 and len(p) % 2 == 0 for p in polygons)
    return {
        "category": category,
        "box": [float(side) for side in box],
        # What can't be understood is no single object either.
        "crowd": str(entry.get("iscrowd") or 0).lower() not in ("0", "0.0", "false"),
        "color": color if is_text(color) else None,
        "polygons": polygons if whole else [],
        "image_size": image_size,
    }


def _stand_in(entry: dict, category: str, image_size: tuple[int, int] | None) -> dict:
    """A crowd in the place of an annotation that can't be used: in its box, or in all of the image
    where the box can't be used either."""
    try:
        return _read_object({"bbox": entry.get("bbox"), "iscrowd": 1}, category, image_size)
    except (ValueError, OverflowError):
        return _read_object({"bbox": [0, 0, 2, 2], "iscrowd": 1}, category, (2, 2))
