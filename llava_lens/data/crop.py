"""The crop that the model sees: boxes and patches in it."""

import random
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from llava_lens.schema import LEAST_SIDE
from llava_lens.text import require

# With less of an object in the crop, it is not known whether the model can see it: it is neither
# present nor absent.
LEAST_VISIBLE = 0.25
EDGE = 0.005  # of an image's side: what comes nearer to the edge may go on outside
MEASURED_SHORT = 192  # pixels of the shorter side of the image on which a processor is measured
REFUSED = (
    "Boxes can't be placed in what the image processor makes of an image: it does more than "
    "resize, crop and pad. Take a checkpoint with the processor of CLIP or SigLIP."
)


class Placement(NamedTuple):
    """A processor puts the point (x, y) of an image at `scale * point + offset`, in pixels. The
    model sees `size` (width, height)."""

    scale: tuple[float, float]
    offset: tuple[float, float]
    size: tuple[int, int]


@lru_cache(maxsize=1024)
def place_image(image_size: tuple[int, int], image_processor) -> Placement:
    """Where a processor puts an image of `image_size` (width, height).

    It is asked, not assumed: in two ramps, the grey of a pixel of the output tells where it came
    from. If that fits a usual placement, the placement is exact, else right to a pixel. Raises
    ValueError if no scale and offset per axis describe the output.
    """
    width, height = (round(side * MEASURED_SHORT / min(image_size)) for side in image_size)
    rows, columns = np.ogrid[:height, :width]
    # Noise across a ramp: means over it are finer than a step of 256.
    x_ramp = (columns + 0.5) * 255 / width + rows * 0.618034 % 1
    y_ramp = (rows + 0.5) * 255 / height + columns * 0.618034 % 1
    seen = []
    for grey in (0, 255, x_ramp, y_ramp):
        image = Image.fromarray(np.broadcast_to(grey, (height, width)).astype(np.uint8))
        seen.append(image_processor(image.convert("RGB"), return_tensors="np")["pixel_values"][0])
    require(np.ndim(seen[0]) == 3, REFUSED)  # [channel, row, column]; else it cuts tiles
    black, white, *ramps = np.mean(seen, axis=1)
    contrast, size = white - black, black.shape[::-1]
    holds = contrast > 0.5 * contrast.max()  # none in padding
    places = np.indices(holds.shape)[::-1, holds] + 0.5  # x and y `[2, pixel]`
    shares = [(ramp - black)[holds] / contrast[holds] for ramp in ramps]
    slopes, starts = np.transpose([_line(*pair) for pair in zip(places, shares, strict=True)])
    corners = np.array([places.min(axis=1), places.max(axis=1)])  # of the image in the output
    on_image = (corners * slopes + starts) * image_size
    usual = _usual_placements(image_size, size)
    errors = [np.abs(on_image * one.scale + one.offset - corners).max() for one in usual]
    if min(errors) < 1.5:  # pixels; of a nearly square image several come near
        return usual[np.argmin(errors)]
    scale, offset = 1 / slopes / image_size, -starts / slopes
    return Placement(tuple(scale.tolist()), tuple(offset.tolist()), size)


def _line(at: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """Slope and start of a line through the `share` of an image's side that is seen `at` a pixel.
    Raises ValueError if none fits."""
    inner = (share > 0.04) & (share < 0.96)  # interpolation bends a ramp at its ends
    require(len(np.unique(at[inner])) > 1, REFUSED)
    slope, start = np.polyfit(at[inner], share[inner], 1)
    require(slope > 0 and np.abs(slope * at + start - share).max() < 0.05, REFUSED)
    return slope, start


def _usual_placements(image_size: tuple[int, int], size: tuple[int, int]) -> list[Placement]:
    """A centre crop (CLIP), padding to a square (the original LLaVA), and plain resizing."""
    width, height = image_size
    short, long = min(image_size), max(image_size)
    # int() as in transformers.image_transforms.get_resize_output_image_size
    resized = [int(min(size) * side / short) for side in image_size]
    cropped = tuple(-((new - side) // 2) for new, side in zip(resized, size, strict=True))
    padded = tuple((long - side) // 2 * size[0] / long for side in image_size)
    return [
        Placement((resized[0] / width, resized[1] / height), cropped, size),
        Placement((size[0] / long, size[1] / long), padded, size),
        Placement((size[0] / width, size[1] / height), (0, 0), size),
    ]


def patch_coverage(box, run: dict) -> np.ndarray:
    """The share (0 to 1) of each patch `[patch]`, row by row, that a box covers.

    `box` is x, y, width and height in pixels of the crop. Of `run` count `grid` and `image_size`.
    """
    shares = []
    for axis, n_patches in enumerate(run["grid"]):
        edges, start = np.linspace(0, run["image_size"], n_patches + 1), box[1 - axis]
        inside = np.minimum(edges[1:], start + box[3 - axis]) - np.maximum(edges[:-1], start)
        shares.append(np.clip(inside, 0, None) / edges[1])
    return np.outer(*shares).ravel()


def open_crop(record: dict) -> Image.Image:
    """The image as the model saw it."""
    return Image.fromarray(record["crop"].astype(np.uint8))


def objects_in_crop(
    objects: list[dict], image_size: tuple[int, int], image_processor, side: int | None = None
) -> list[dict]:
    """Objects of `annotate` as the model sees them: `box` is in pixels of the crop, clipped to it.
    The crop has `side` pixels along a side, or all that the processor gives.

    Instead of `image_size` and `polygons` each has OBJECT's `visible` (0 for a box no larger than
    rounding), `share` and `cut_off`. Boxes for another resolution (`image_size`) are scaled.
    """
    seen = []
    for item in objects:
        scale, offset, size = place_image(tuple(image_size), image_processor)
        size = (side, side) if side else size
        x, y, w, h = item["box"]
        width, height = annotated_size = item.get("image_size") or image_size
        box = np.multiply(item["box"], np.tile(np.divide(image_size, annotated_size), 2))
        corners = np.array([box[:2], np.add(box[:2], box[2:])])  # [corner, x and y]
        (x0, y0), (x1, y1) = np.clip(corners * scale + offset, 0, size).tolist()
        whole, area = box[2] * scale[0] * box[3] * scale[1], (x1 - x0) * (y1 - y0)
        is_seen = min(x1 - x0, y1 - y0) >= LEAST_SIDE
        visible = min(1.0, float(area / whole)) if is_seen else 0.0
        to_edge = min(x / width, y / height, 1 - (x + w) / width, 1 - (y + h) / height)
        kept = {key: value for key, value in item.items() if key not in ("image_size", "polygons")}
        kept |= {"box": [x0, y0, x1 - x0, y1 - y0], "visible": visible}
        kept |= {"share": float(area / np.prod(size))}
        seen.append({**kept, "cut_off": bool(visible < 0.999 or to_edge < EDGE)})
    return seen


def patches_to_cut(
    prompt: dict, objects: list[dict], run: dict, seed: int | str = 0
) -> dict[str, list[int]]:
    """The numbers of the patches, row by row, that hold the objects that a prompt is about.

    `object`: those that a box of one of the prompt's categories covers by a tenth or more; for a
    smaller box the one it overlaps most. `background`, the control: as many that lie outside all
    these boxes, drawn with `seed`. Empty where a category has no box in the crop, where it has a
    crowd region (which of its patches hold it is not known), and where too few lie outside.
    """
    about = set(prompt["categories"])
    asked = [item for item in objects if item["category"] in about and min(item["box"][2:]) > 0]
    is_crowd = any(item["crowd"] for item in asked)
    if is_crowd or not about or {item["category"] for item in asked} != about:
        return {}
    covers = [patch_coverage(item["box"], run) for item in asked]
    # The small number is for rounding: an exact tenth counts.
    inside = np.any([cover >= min(0.1, cover.max()) - 1e-9 for cover in covers], axis=0)
    outside = np.flatnonzero(np.sum(covers, axis=0) == 0).tolist()
    if len(outside) < inside.sum():
        return {}
    background = random.Random(f"{seed} {prompt['question']}").sample(outside, int(inside.sum()))
    return {"object": np.flatnonzero(inside).tolist(), "background": sorted(background)}
