"""The crop that the model sees: boxes and patches in it."""

import io
import random

import numpy as np
from PIL import Image

from llava_lens.schema import LEAST_SIDE

LEAST_VISIBLE = 0.25  # of an object: with less in the crop it is neither present nor absent
EDGE = 0.005  # of an image's side: what comes nearer may go on outside


def patch_coverage(box, grid: int, image_size: int) -> np.ndarray:
    """The share (0 to 1) of each patch `[grid * grid]`, row by row, that a box covers.

    `box` is x, y, width and height in pixels of the crop, which has `image_size` along a side.
    """
    edges = np.linspace(0, image_size, grid + 1)
    x, y, width, height = box
    columns = np.clip(np.minimum(edges[1:], x + width) - np.maximum(edges[:-1], x), 0, None)
    rows = np.clip(np.minimum(edges[1:], y + height) - np.maximum(edges[:-1], y), 0, None)
    return np.outer(rows, columns).ravel() * (grid / image_size) ** 2


def open_crop(record: dict) -> Image.Image:
    """The image as the model saw it."""
    return Image.open(io.BytesIO(record["crop"].tobytes()))


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
    holds, `share`, the share of the crop that the object takes (both 0 ... 1), and `cut_off`,
    whether it reaches the edge of the image or of the crop. `box` is in pixels of the crop. Boxes
    for another resolution of the image (the object's `image_size`) are scaled.
    """
    crop_area = image_processor.crop_size["width"] * image_processor.crop_size["height"]
    seen = []
    for item in objects:
        size = item.get("image_size") or image_size
        box, visible = box_in_crop(item["box"], size, image_processor)
        left_out = ("image_size", "polygons")
        x, y, w, h = item["box"]
        gaps = x / size[0], y / size[1], 1 - (x + w) / size[0], 1 - (y + h) / size[1]
        cut_off = visible < 0.999 or min(gaps) < EDGE
        kept = {name: value for name, value in item.items() if name not in left_out}
        share = box[2] * box[3] / crop_area
        seen.append({**kept, "box": box, "visible": visible, "share": share, "cut_off": cut_off})
    return seen


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
