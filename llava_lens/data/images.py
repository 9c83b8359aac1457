"""Find and open images."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from llava_lens.files import check_file, files_under
from llava_lens.schema import MOST_NAME_BYTES
from llava_lens.text import is_text, require

# Pillow is told these because it also knows formats that start programs.
IMAGE_FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
}
OTHER_IMAGE_SUFFIXES = {".avif", ".cr2", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".arw"}
# Folders of masks (COCO's panoptic_val2017, VOC's SegmentationClass), beside those of photographs.
MASK_FOLDER = re.compile(r"(panoptic|masks?|seg|semantic|stuff|labels?|annotations|gt)", re.I)
MOST_IMAGE_BYTES, MOST_JSON_BYTES = 2**29, 2**30  # COCO's largest annotations have 0.45 GB
MOST_PIXELS, MOST_SCANS = 2**26, 64  # cameras have up to 61 million; a progressive JPEG has ten


def find_images(folder) -> dict[str, Path]:
    """The paths of all images under `folder`, by name.

    A name is the relative path with `/` as `__`; if it is too long, not UTF-8 or taken, it is
    shortened and given a digest. So every name can be the name of a file. Masks of other images
    are left out, and what `data_files` leaves out. Raises FileNotFoundError if the folder is
    missing or holds no image, ValueError as `files_under`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is no folder"
        raise FileNotFoundError(f"{str(folder)!r} {what}: set `images` to the images' folder.")
    paths, _ = images_and_masks(folder, data_files(folder))
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


def data_files(folder) -> list[Path]:
    """The files under `folder`, sorted. Hidden ones, results, reports, and what Macs and network
    drives put beside files (`._photo.jpg`, `__MACOSX`, `@eaDir`) are left out."""

    def is_left_out(path: Path) -> bool:
        is_report = (path / "explorer").is_dir() and (path / "figures").is_dir()
        return is_hidden(path) or (path / "run.pkl").exists() or is_report

    def is_hidden(path: Path) -> bool:
        return path.name.startswith((".", "__MACOSX", "@eaDir"))

    return sorted(path for path in files_under(folder, is_left_out) if not is_hidden(path))


def images_and_masks(folder, files: list[Path]) -> tuple[list[Path], list[Path]]:
    """The images among `files`, and the masks of other images.

    A mask lies in a folder of masks (MASK_FOLDER) and is called as an image elsewhere is, or lies
    as PNG beside a JPEG of its name. All that a folder `panoptic...` holds are masks.
    """
    paths = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    is_apart = {
        path: [part for part in path.relative_to(folder).parts[:-1] if MASK_FOLDER.match(part)]
        for path in paths
    }
    photos = {path.stem for path in paths if not is_apart[path]}
    jpegs = {path.with_suffix("") for path in paths if path.suffix.lower().startswith(".j")}
    masks = [
        path
        for path in paths
        if any(part.lower().startswith("panoptic") for part in is_apart[path])
        or (is_apart[path] and path.stem in photos)
        or (path.suffix.lower() == ".png" and path.with_suffix("") in jpegs)
    ]
    return [path for path in paths if path not in {*masks}], masks


def digests_of(path, objects: list[dict], absent: Sequence[str] = ()) -> dict[str, str]:
    """Digests (SHA-256) of an image's file and of its annotations (`objects` and `absent` of
    Annotations), as RECORD's `image_digest` and `annotations_digest`. Raises OSError if the file
    can't be read."""
    with open(path, "rb") as file:
        image = hashlib.file_digest(file, "sha256").hexdigest()
    known = json.dumps([objects, list(absent)], sort_keys=True)
    annotations = hashlib.sha256(known.encode()).hexdigest()
    return {"image_digest": image, "annotations_digest": annotations}


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
            _check_cost(path, stored)
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


def _check_cost(path, stored: Image.Image) -> None:
    """Raise ValueError, before it is decoded, for an image that takes much longer or much more
    memory than a photograph: some kB can have any number of pixels, or of a JPEG's scans."""
    n_pixels, n_scans = stored.width * stored.height, 1
    if stored.format in ("JPEG", "MPO"):
        n_scans = Path(path).read_bytes().count(b"\xff\xda")
    require(n_pixels <= MOST_PIXELS, f"it has {n_pixels:,} pixels, more than {MOST_PIXELS:,}")
    require(n_scans <= MOST_SCANS, f"it has {n_scans} scans, more than {MOST_SCANS}")


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
    if image.has_transparency_data:
        # On white, as a viewer shows it: the colour of fully transparent pixels is arbitrary.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
