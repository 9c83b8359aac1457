"""Read one photograph, without a folder of results."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import numpy as np
from PIL import Image, ImageOps

from llava_lens.data.annotations import Annotations
from llava_lens.data.images import open_image, to_rgb
from llava_lens.files import explained
from llava_lens.model.images import Reader, describe_run
from llava_lens.model.load import Settings, grey_image, load_once
from llava_lens.text import require

GREY = "a plain grey image"  # the counterfactual where no other image is given


def read_one(image, other, settings: Settings, pages=None) -> tuple[dict, dict]:
    """`(RUN, RECORD)` of one image with the prompts of `settings`; prints which have no route.

    `image` and `other` are as `lens_utils.look` takes them. Raises ValueError for anything else,
    and OSError if nothing can be written into the folder `pages`, before the model is loaded; and
    what `open_image`, `load_llava` and `check_last_layer` raise.
    """
    require(settings.prompts, "question is an empty list: give a text, or several.")
    if pages:
        with explained(pages, "change its permissions, or choose another folder"):
            Path(pages).mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=pages).close()
    called, other = (GREY, grey_image(64)) if other is None else ("other", other)
    with TemporaryDirectory() as folder:
        name, path = _as_file(image, Path(folder, "image.tiff"))
        other_name, other_path = _as_file(other, Path(folder, f"{called}.tiff"))
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
    """`(name, path)` of an image's file; what has none is saved as `spare`, without any loss."""
    what, allowed = spare.stem, "a path, a PIL image, or an array [height, width, 3] of uint8"
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        require(path.is_file(), f"{what} is {str(path)!r}, which is no file: it must be {allowed}.")
        return os.fsencode(path.name).decode(errors="replace"), path
    if isinstance(image, Image.Image):
        try:
            to_rgb(ImageOps.exif_transpose(image)).save(spare)
        except Exception as error:  # a damaged or closed file can raise nearly anything
            raise ValueError(f"{what} can't be read ({error!r}): open or make it anew.") from error
    else:
        array = np.asarray(image)
        is_rgb = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size
        its = f"{type(image).__name__} of shape {list(array.shape)} and {array.dtype}"
        require(is_rgb, f"{what} is {its}: it must be {allowed} (0 to 255).")
        Image.fromarray(array).save(spare)
    return what, spare
