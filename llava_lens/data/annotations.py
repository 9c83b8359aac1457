"""Find and read annotations, and match them to images."""

import hashlib
import itertools
import json
import re
from collections import defaultdict
from pathlib import Path

from llava_lens.data.coco import _read_file
from llava_lens.data.images import IMAGE_SUFFIXES, MOST_JSON_BYTES, _is_output
from llava_lens.files import check_file, files_under
from llava_lens.kaggle import data_sets
from llava_lens.text import is_text, require


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
