"""Files with annotations, by their format: each parser gives COCO's instances format."""

import json

from llava_lens.text import is_text, require

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


def parse_json(content: bytes, image: str | None) -> dict:
    """The content of a file in COCO's instances format.

    `image` is the file name of the image that is called as the file is, if there is one. Raises
    ValueError, TypeError or AttributeError if the content is of no kind that is known.
    """
    try:
        data = json.loads(content)
    except ValueError:
        data = [json.loads(line) for line in content.splitlines() if line.strip()]
    if isinstance(data, dict) and {"images", "annotations", "categories"} <= data.keys():
        is_panoptic = '"segments_info"' in json.dumps(list(data["annotations"])[:1])
        require(not is_panoptic, "segments of a panoptic set have no boxes of single objects")
        return data
    return _as_coco(data if isinstance(data, list) else [data], image)


# To read a format more, write a function as `parse_json` and name it here by the files' suffix. It
# returns a dict with `images`, `annotations` and, if the format lists them, `categories`. Without
# such a list each `category_id` is a name.
PARSERS = {".json": parse_json, ".jsonl": parse_json, ".ndjson": parse_json}


def _first(entry: dict, keys: tuple[str, ...]):
    return next((entry[key] for key in keys if key in entry), None)


def _as_coco(entries: list[dict], image: str | None) -> dict:
    """Entries about an image, or about a box in one, in COCO's instances format."""
    images, annotations = {}, []
    for entry in entries:
        about = entry["image"] if isinstance(entry.get("image"), dict) else entry
        file, found = _first(about, IMAGE_KEYS) or image, _first(entry, OBJECTS_KEYS)
        require(is_text(file), f"no image's name among {', '.join(map(repr, entry))}")
        size = {side: about.get(side) for side in ("width", "height")}
        images.setdefault(file, {"id": file, "file_name": file, **size})
        if isinstance(found, dict):  # lists of categories and boxes, side by side
            pairs = zip(_first(found, CATEGORY_KEYS), _first(found, BOX_KEYS), strict=True)
            found = [{"category": category, "bbox": box} for category, box in pairs]
        for item in [entry] if found is None else found:
            category, box = _first(item, CATEGORY_KEYS), _first(item, BOX_KEYS)
            require(is_text(category), f"no category's name in {str(item)[:60]}")
            require(box is not None, f"no box in {str(item)[:60]}")
            annotations.append({**item, "image_id": file, "category_id": category, "bbox": box})
    require(images, "no images")
    boxes = [(item["bbox"], images[item["image_id"]]) for item in annotations]
    boxes = [(box, image) for box, image in boxes if isinstance(box, list) and len(box) == 4]
    # They may be two corners each. One that leaves its image tells.
    leaves = any(
        isinstance(image[side], int) and box[at] + box[at + 2] > 1.1 * image[side]
        for box, image in boxes
        for at, side in enumerate(("width", "height"))
    )
    are_corners = leaves and all(box[2] > box[0] and box[3] > box[1] for box, _ in boxes)
    require(not are_corners, "boxes seem to be two corners: some leave their image")
    return {"images": list(images.values()), "annotations": annotations}
