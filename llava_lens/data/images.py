"""Find and open images."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from llava_lens.files import check_file, files_under
from llava_lens.schema import MOST_NAME_BYTES
from llava_lens.text import is_text, require

# Pillow is told these because it also knows formats that start programs.
IMAGE_FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"}
IMAGE_SUFFIXES |= {".tif", ".tiff"}
HIDDEN = ".", "__MACOSX", "@eaDir"  # how the names begin of what a user does not see
# Folders of masks (COCO's panoptic_val2017, VOC's SegmentationClass), beside those of photographs.
MASK_FOLDER = re.compile(r"/(panoptic|masks?|seg|semantic|stuff|labels?|annotations|gt)")
MOST_IMAGE_BYTES, MOST_JSON_BYTES = 2**29, 2**30  # COCO's largest annotations have 0.45 GB
MOST_PIXELS, MOST_SCANS = 2**26, 64  # cameras have up to 61 million; a progressive JPEG has ten


def find_images(folder) -> dict[str, Path]:
    """The paths of all images under `folder`, by name, without masks of other images.

    A name is the relative path with `/` as `__`. If it is too long, not UTF-8 or taken, it is
    shortened and given a digest, so every name can be that of a file. Raises FileNotFoundError if
    the folder is missing or holds no image, ValueError as `files_under`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is no folder"
        raise FileNotFoundError(f"{str(folder)!r} {what}: set `images` to the images' folder.")
    by_name = {}
    for path in images_and_masks(folder, data_files(folder))[0]:
        below = path.relative_to(folder)
        name = "__".join(below.parts)
        if name in by_name or len(os.fsencode(name)) > MOST_NAME_BYTES or not is_text(name):
            digest = hashlib.sha256(os.fsencode(below)).hexdigest()[:12]
            ascii_name = name.encode("ascii", "replace").decode().replace("?", "_")
            name = f"{ascii_name[:100]}~{digest}{path.suffix}"
        by_name[name] = path
    if not by_name:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise FileNotFoundError(f"No image under {str(folder)!r}: none of {suffixes} at any depth.")
    return by_name


def data_files(folder) -> list[Path]:
    """The files under `folder`, sorted, without hidden ones, results, reports, and what Macs and
    network drives put beside files."""

    def is_left_out(path: Path) -> bool:
        is_report = (path / "explorer").is_dir() and (path / "figures").is_dir()
        return path.name.startswith(HIDDEN) or is_report or (path / "run.pkl").exists()

    found = files_under(folder, is_left_out)
    return sorted(path for path in found if not path.name.startswith(HIDDEN))


def images_and_masks(folder, files: list[Path]) -> tuple[list[Path], list[Path]]:
    """The images among `files`, and the masks of other images.

    A mask lies in a folder of masks (MASK_FOLDER) and is called as an image elsewhere is. Or it is
    a PNG beside a JPEG of its name. All that a folder `panoptic...` holds are masks.
    """
    found = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    where = {path: f"/{path.relative_to(folder).parent.as_posix()}/".lower() for path in found}
    photos = {path.stem for path in found if not MASK_FOLDER.search(where[path])}
    jpegs = {path.with_suffix("") for path in found if path.suffix.lower().startswith(".j")}
    images, masks = [], []
    for path in found:
        is_apart = MASK_FOLDER.search(where[path]) and path.stem in photos
        is_beside = path.suffix.lower() == ".png" and path.with_suffix("") in jpegs
        is_mask = is_apart or is_beside or "/panoptic" in where[path]
        (masks if is_mask else images).append(path)
    return images, masks


def digests_of(path, objects: list[dict], absent=(), dropped=()) -> dict[str, str]:
    """RECORD's `image_digest` and `annotations_digest`: SHA-256 of an image's file and of what
    Annotations knows `of` it. Raises OSError if the file can't be read."""
    with open(path, "rb") as file:
        image = hashlib.file_digest(file, "sha256").hexdigest()
    known = json.dumps([objects, list(absent), *dropped], sort_keys=True)
    annotations = hashlib.sha256(known.encode()).hexdigest()
    return {"image_digest": image, "annotations_digest": annotations}


def open_image(path, size: tuple[int, int] | None = None) -> Image.Image:
    """The first frame of an image, upright and in RGB.

    `size` (width, height) is that of its annotations. If `size` matches the stored image but not
    the EXIF-rotated one, the boxes refer to the stored image, so it is not rotated. Raises
    OSError, which names the file, if the image can't be decoded to its end, is more than 100 times
    as long as wide, or has another shape than `size`.
    """
    try:
        check_file(path, MOST_IMAGE_BYTES)
        with Image.open(path, formats=IMAGE_FORMATS) as stored:
            # Checked before it is decoded: some kB can have any number of pixels or of JPEG scans.
            n_pixels, n_scans = stored.width * stored.height, 1
            if stored.format in ("JPEG", "MPO"):
                n_scans = Path(path).read_bytes().count(b"\xff\xda")
            many = f"it has {n_pixels:,} pixels, more than {MOST_PIXELS:,}"
            require(n_pixels <= MOST_PIXELS, many)
            require(n_scans <= MOST_SCANS, f"it has {n_scans} scans, more than {MOST_SCANS}")
            stored.load()
            image = ImageOps.exif_transpose(stored)
            if size == stored.size != image.size:
                image = stored
            (width, height), (its_width, its_height) = image.size, size or image.size
            what = f"it is {width} x {height}, and"
            is_long = max(image.size) > 100 * min(image.size)
            require(not is_long, f"{what} the model would see next to nothing of it")
            # Another resolution fits; rounded to whole pixels, either side may be off by one.
            off = abs(its_width * height - its_height * width)
            fits = off <= max(its_width, its_height, width, height)
            require(fits, f"{what} its annotations are for {its_width} x {its_height}")
            return to_rgb(image)
    except Exception as error:  # a damaged image can raise nearly anything
        raise OSError(
            f"Image {str(path)!r} can't be read ({error}): replace or remove it. Known formats: "
            f"{', '.join(IMAGE_FORMATS)}."
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB. Raises ValueError for pixels of an unknown range."""
    require(image.mode != "F", "its pixels are floating-point numbers of an unknown range")
    if image.mode.startswith("I"):  # whole numbers, which convert() would clip, not scale
        pixels = np.asarray(image)
        known = pixels.min() >= 0 and pixels.max() < 2**16
        require(known, "its pixels are whole numbers of an unknown range")
        # A camera's 12 bits come in 16.
        most = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if pixels.max() < 2**bits)
        image = Image.fromarray(np.rint(pixels * (255 / most)).astype(np.uint8))
    if image.has_transparency_data:
        # On white, as a viewer shows it: the colour of fully transparent pixels is arbitrary.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
