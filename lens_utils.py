"""A logit lens for LLaVA-1.5: from image + prompt to figures.

Read from top to bottom in the order in which data flows:
finding data -> prompts -> loading the model -> reading -> saving and loading results -> tables -> figures.

The first half (up to reading) needs torch and transformers and imports them where they are used, so that the second half
works on a machine that has neither.
"""
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# --------------------------------------------------------------------------------------------------------------------
# Finding data
# --------------------------------------------------------------------------------------------------------------------

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def find_images(folder) -> dict[str, Path]:
    """All images under `folder`, by name: the path below `folder` with `/` written as `__`, so that a name is a file name.

    Raises FileNotFoundError if the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {str(folder)!r}: set `images` to the folder that holds the images.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise FileNotFoundError(
            f"No image under {str(folder)!r}: looked for {', '.join(sorted(IMAGE_SUFFIXES))} in it and its subfolders."
        )
    return {"__".join(path.relative_to(folder).parts): path for path in paths}


def read_annotations(folder) -> tuple[dict[str, list[dict]], list[str]]:
    """Objects per image and all category names, from the COCO instances files (`*.json`) under `folder`.

    Returns `({file name: [{"category", "box": (x, y, width, height) in pixels, "crowd", "color"}]}, [category, ...])`;
    both are empty where there are no annotations. `color` is None unless an annotation carries that extra attribute.
    """
    paths = sorted(Path(folder).rglob("*.json"))
    # COCO ships keypoints and captions beside the instances; they name the same objects again, or none.
    paths = [path for path in paths if path.name.startswith("instances")] or paths
    objects, categories = {}, set()
    for path in paths:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(data, dict) and {"images", "annotations", "categories"} <= data.keys()):
            continue
        names = {category["id"]: category["name"] for category in data["categories"]}
        files = {image["id"]: Path(image["file_name"]).name for image in data["images"]}
        categories.update(names.values())
        for file in files.values():
            objects.setdefault(file, [])
        for annotation in data["annotations"]:
            objects[files[annotation["image_id"]]].append({
                "category": names[annotation["category_id"]],
                "box": tuple(annotation["bbox"]),
                "crowd": bool(annotation.get("iscrowd", 0)),
                "color": annotation.get("color"),
            })
    return objects, sorted(categories)


def open_image(path) -> Image.Image:
    """The image in RGB and upright, whatever its mode (greyscale, palette, alpha, CMYK).

    Raises ValueError, which names the file, if it can't be decoded to its end.
    """
    try:
        with Image.open(path) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            if "transparency" in image.info or image.mode in ("LA", "PA", "RGBa"):
                image = image.convert("RGBA")
            if image.mode == "RGBA":  # on white, as a viewer shows it: what lies under full transparency is arbitrary
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"Image {str(path)!r} can't be read ({error}): replace or remove it.") from error


def to_crop(box, image_size: tuple[int, int], image_processor) -> tuple[tuple[float, float, float, float], float]:
    """A box `(x, y, width, height)` of the image in pixels of the model's crop, clipped to it, and its visible share (0 ... 1).

    CLIP's processor resizes the shortest edge and crops the centre: what lies outside the crop was never seen.
    """
    width, height = image_size
    short = image_processor.size["shortest_edge"]
    crop_width, crop_height = image_processor.crop_size["width"], image_processor.crop_size["height"]
    # int() as in transformers.image_transforms.get_resize_output_image_size
    new_width, new_height = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    left, top = (new_width - crop_width) // 2, (new_height - crop_height) // 2
    x, y, w, h = box
    x, w = x * new_width / width - left, w * new_width / width
    y, h = y * new_height / height - top, h * new_height / height
    x0, x1 = np.clip([x, x + w], 0, crop_width)
    y0, y1 = np.clip([y, y + h], 0, crop_height)
    visible = (x1 - x0) * (y1 - y0) / (w * h) if w > 0 and h > 0 else 0.0
    return (float(x0), float(y0), float(x1 - x0), float(y1 - y0)), float(visible)


# --------------------------------------------------------------------------------------------------------------------
# Prompts
# --------------------------------------------------------------------------------------------------------------------

CHAT = "USER: <image>\n{question} ASSISTANT:"  # LLaVA-1.5's conversation format: the image stands before the question
SHORT_ANSWER = "Answer the question using a single word or phrase."  # LLaVA-1.5's own line for short answers
KINDS = ["object", "presence", "colour", "relation", "description", "own"]


def object_question() -> str:
    return f"What is the main object in the image?\n{SHORT_ANSWER}"


def presence_question(category: str) -> str:
    return f"Is there {'an' if category[0] in 'aeiou' else 'a'} {category} in the image?\n{SHORT_ANSWER}"


def colour_question(category: str) -> str:
    return f"What color is the {category}?\n{SHORT_ANSWER}"


def relation_question(a: str, b: str) -> str:
    return f"Where is the {a} relative to the {b}: left, right, above or below?\n{SHORT_ANSWER}"


DESCRIPTION_QUESTION = "Describe the image."


def relation_of(box_a, box_b) -> str | None:
    """Where `a` is relative to `b` (`left`, `right`, `above`, `below`), or None unless the boxes are clearly apart.

    Clearly: no overlap along the main direction, and the centres 1.5 times as far apart along it as along the other.
    """
    (ax, ay, aw, ah), (bx, by, bw, bh) = box_a, box_b
    dx, dy = (ax + aw / 2) - (bx + bw / 2), (ay + ah / 2) - (by + bh / 2)
    if abs(dx) >= 1.5 * abs(dy) and abs(dx) >= (aw + bw) / 2:
        return "left" if dx < 0 else "right"
    if abs(dy) >= 1.5 * abs(dx) and abs(dy) >= (ah + bh) / 2:
        return "above" if dy < 0 else "below"
    return None


def make_prompts(objects: list[dict], categories: list[str], crop_area: float, seed: int | str = 0, per_kind: int = 1) -> list[dict]:
    """Prompts of the five kinds for one image: `[{"kind", "question", "truth"}]`, truth None where it is not known.

    `objects` have boxes in the crop (`to_crop`) and their `visible` share; `categories` are all that the data set knows. Asked
    about are objects at least half of which is in the crop and which fill at least 1 % of it. Among the candidates of
    a kind `per_kind` are drawn with `seed` (presence: so many present and as many absent categories). Without annotations
    (`objects` empty): object and description alone.
    """
    rng = random.Random(seed)
    area = lambda o: o["box"][2] * o["box"][3]
    clear = [o for o in objects if not o["crowd"] and o["visible"] >= 0.5 and area(o) >= 0.01 * crop_area]
    count = {c: sum(o["category"] == c for o in objects) for c in categories}  # crowds and hidden ones make "the dog" ambiguous too
    single = [o for o in clear if count[o["category"]] == 1 and not any(c["crowd"] and c["category"] == o["category"] for c in objects)]
    prompts = []

    def add(kind, candidates):
        for question, truth in rng.sample(candidates, min(per_kind, len(candidates))):
            prompts.append({"kind": kind, "question": question, "truth": truth})

    if not objects:
        add("object", [(object_question(), None)])
    elif clear:
        largest = max(clear, key=area)
        others = [area(o) for o in objects if o["category"] != largest["category"]]
        if area(largest) >= 1.5 * max(others, default=0):
            add("object", [(object_question(), largest["category"])])
    add("presence", [(presence_question(c), "yes") for c in sorted({o["category"] for o in clear})])
    if objects:
        add("presence", [(presence_question(c), "no") for c in categories if count[c] == 0])
    add("colour", [(colour_question(o["category"]), o["color"]) for o in single])
    add("relation", [
        (relation_question(a["category"], b["category"]), relation_of(a["box"], b["box"]))
        for a in single for b in single if a is not b and relation_of(a["box"], b["box"])
    ])
    add("description", [(DESCRIPTION_QUESTION, None)])
    return prompts
