"""Read one photograph, without a folder of results."""

import hashlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageOps

from llava_lens.data.annotations import Annotations
from llava_lens.data.images import open_image, to_rgb
from llava_lens.model.images import Reader, describe_run
from llava_lens.model.load import Settings, grey_image, load_once
from llava_lens.text import require

GREY = "a plain grey image"  # the counterfactual where no other image is given


def read_one(image, other, settings: Settings) -> tuple[dict, dict]:
    """`(RUN, RECORD)` of one image with the prompts of `settings`; prints which have no route.

    `image` and `other`, the counterfactual (None: a plain grey image), are paths, PIL images or
    arrays `[height, width, rgb]` of uint8. Raises ValueError, before the model is loaded, for
    anything else, and what `open_image`, `load_llava` and `check_last_layer` raise.
    """
    require(settings.prompts, "question is an empty list: give a text, or several.")
    with TemporaryDirectory() as folder:
        name, path = _as_file(image, Path(folder, "image.tiff"))
        if other is None:
            other_name, other_path = GREY, _as_file(grey_image(64), Path(folder, "grey.tiff"))[1]
        else:
            other_name, other_path = _as_file(other, Path(folder, "other.tiff"))
            other_name += " (other)" * (other_name == name)
        paths = {name: path, other_name: other_path}
        for one in paths.values():
            open_image(one)
        model = load_once(settings.model, settings.dtype, settings.device, settings.quantize)
        run = describe_run(*model, settings)
        reader = Reader(model, paths, Annotations({}, {}, [], []), run, settings)
        run = reader.check_lens(name)
        record, _ = reader.read(name)
    for prompt in record["prompts"] if settings.route else ():
        if not prompt["route"]:
            print(f"No route for {prompt['question']!r}: about {other_name} the model answers with")
            print("the same word, or the question is too long. Set `other` to another image.")
    return run, record


def _as_file(image, spare: Path) -> tuple[str, Path]:
    """`(name, path)` of an image's file; what has none is saved as `spare`, without any loss, and
    is named by its pixels. So the pages of two such images don't share a name."""
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        none = f"There is no image {str(image)!r}: give a path, a PIL image or an array."
        require(path.is_file(), none)
        return path.name, path
    if isinstance(image, Image.Image):
        image = to_rgb(ImageOps.exif_transpose(image))
    else:
        array = np.asarray(image)
        is_rgb = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size
        require(
            is_rgb,
            f"image is {type(image).__name__} of shape {list(array.shape)} and {array.dtype}: it "
            "must be a path, a PIL image, or an array [height, width, 3] of uint8 (0 to 255).",
        )
        image = Image.fromarray(array)
    image.save(spare)
    digest = hashlib.sha256(str(image.size).encode() + image.tobytes())
    return f"image-{digest.hexdigest()[:8]}", spare
