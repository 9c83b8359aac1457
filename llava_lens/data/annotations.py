"""Find and read annotations, and match them to images."""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from llava_lens.data.coco import UNKNOWN, Annotated, read_file
from llava_lens.data.images import MOST_JSON_BYTES, data_files, find_images, images_and_masks
from llava_lens.data.parsers import EXPECTED, PARSERS
from llava_lens.files import check_file
from llava_lens.kaggle import data_sets
from llava_lens.text import count_of
from llava_lens.words import not_called

# Files of other kinds (YOLO, VOC, tables, archives) are annotations if they are called so, or as an
# image is.
OTHER_KINDS = {".txt", ".xml", ".csv", ".gz", ".zip", ".bz2", ".xz", ".tar"}
CALLED = re.compile("annot|instance|label|box", re.I)


class Annotations(NamedTuple):
    """What is known about the images of a folder. `objects`, `absent` and `dropped` are by image.

    Each object is a dict with `category`, `box` `[x, y, width, height]` in pixels, `crowd`,
    `color`, `polygons` (`[x, y, x, y, ...]` each) and `image_size` `(width, height)`. Colour and
    size are None where the file does not give them.
    """

    objects: dict[str, list[dict]]
    absent: dict[str, list[str]]  # what the image is known not to have: see docs/method.md
    categories: list[str]
    problems: list[str]  # a sentence for each thing that can't be used and is left out
    files: str = ""  # says which files were read and which were not opened
    dropped: dict[str, list[dict]] = {}  # crowds that stand for annotations that can't be used

    def of(self, name: str) -> tuple[list[dict], list[str], list[dict]]:
        """The objects, absent categories and dropped annotations of one image."""
        return tuple(known.get(name, []) for known in (self.objects, self.absent, self.dropped))


class _Told(NamedTuple):
    """What files tell, the names of those that were read, and of those not understood."""

    images: list[Annotated]
    categories: set[str]
    problems: list[str]
    files: list[str]
    unknown: list[str]


def find_data_set() -> Path:
    """The first attached Kaggle data set that holds images with annotations, else the first that
    holds images. Raises FileNotFoundError, which says how to attach one, if none does."""
    # The data set with this project's code may hold the demo's scenes, which aren't meant.
    others = [folder for folder in data_sets() if not any(folder.rglob("lens_utils.py"))]
    with_images = [folder for folder in others if images_and_masks(folder, data_files(folder))[0]]
    if not with_images:
        raise FileNotFoundError(
            "No attached data set holds an image: choose Add Input, search for COCO-data-100, add "
            "it, and run this cell again."
        )
    annotated = (one for one in with_images if annotate(one, find_images(one)).objects)
    return next(annotated, with_images[0])


def annotate(folder, image_paths: dict[str, Path]) -> Annotations:
    """The annotations under `folder` by the names of its images (all of `find_images`).

    Files that are called `instances...` come first. COCO ships keypoints and captions beside them,
    of the same objects. So other files are opened only if the first don't name every image. An
    image without a usable object has no annotations.
    """
    files, told, by_stem = data_files(folder), _Told([], set(), [], [], []), defaultdict(set)
    for path in image_paths.values():
        by_stem[path.stem].add(path.name)
    paths = [path for path in files if path.suffix.lower() in PARSERS]
    first = {path for path in paths if path.name.lower().startswith("instances")}
    later = [path for path in paths if path not in first]
    for path in sorted(first):
        _read(path, folder, by_stem, told)
    n_first, named = len(told.images), Counter(os.path.basename(one.file) for one in told.images)
    if Counter(normalize("NFC", path.name) for path in image_paths.values()) - named:
        for path in later:
            _read(path, folder, by_stem, told)
        later = []
    if not told.files:
        others = [path for path in files if path.suffix.lower() in OTHER_KINDS - PARSERS.keys()]
        meant = [path for path in others if path.stem in by_stem or CALLED.search(path.name)]
        told.unknown.extend(path.name for path in meant)
    masks = [path.name for path in images_and_masks(folder, files)[1]]
    if told.unknown:
        told.problems.append(
            f"{_and_more(told.unknown)}: not understood as annotations; {EXPECTED}"
        )
    if masks:
        told.problems.append(f"{_and_more(masks)}: left out, as masks of other images")
    objects, absent, dropped = _choose(told, _claims(told, n_first, image_paths))
    said = f"Annotations were read from {_and_more(told.files)}" if told.files else ""
    if later:
        unopened = _and_more([path.name for path in later])
        said += f"; not opened, as these name every image: {unopened}"
    return Annotations(objects, absent, sorted(told.categories), told.problems, said, dropped)


def _and_more(names: list[str]) -> str:
    return names[0] + f" and {count_of(len(names) - 1, 'more file')}" * (len(names) > 1)


def _read(path: Path, folder, by_stem: dict[str, set[str]], told: _Told) -> None:
    """Add to `told` what a file tells, of paths below its folder."""
    # An image without a name of its own is the one that is called as the file is.
    alike = by_stem.get(path.stem, ())
    try:
        check_file(path, MOST_JSON_BYTES)
        image = min(alike) if len(alike) == 1 else None
        data = PARSERS[path.suffix.lower()](path.read_bytes(), image)
        images, categories, problems = read_file(path.name, data)
    except Exception as error:  # a file of another kind can raise nearly anything
        told.unknown.append(f"{path.name} ({type(error).__name__}: {str(error)[:80]})")
        return
    below = normalize("NFC", path.relative_to(folder).parent.as_posix()).removeprefix(".")
    told.images.extend(one._replace(file=f"{below}/{one.file}".lstrip("/")) for one in images)
    told.categories.update(categories)
    told.problems.extend(problems)
    told.files.append(path.name)


def _claims(told: _Told, n_first: int, image_paths: dict[str, Path]) -> dict[str, list[tuple]]:
    """By image, what may be told of it: pairs of a score, higher if surer, and of an Annotated.
    What could be of any of several images has an empty score."""
    ends, on_disk, claims, unmatched = {}, defaultdict(list), defaultdict(list), []
    for name, path in image_paths.items():
        ends[name] = normalize("NFC", path.as_posix()).split("/")[::-1]  # from the file's name up
        on_disk[ends[name][0]].append(name)
    for number, one in enumerate(told.images):
        parts, scores = one.file.split("/")[::-1], {}
        for name in on_disk.get(parts[0], ()):
            same = len(os.path.commonprefix([parts, ends[name]]))
            is_whole = one.file.replace("/", "__") == normalize("NFC", name)
            # The first files come before others, then who shares the longest end of a path.
            scores[name] = number < n_first, same, is_whole
        best = [name for name, score in scores.items() if score == max(scores.values())]
        if len(best) > 1:
            told.problems.append(f"{one.file}: could be any of {', '.join(best[:3])}, left out")
        for name in best:
            claims[name].append((scores[name] if len(best) == 1 else (), one))
        unmatched += [one.file] * (not best)
    alone = [name for name in image_paths if name not in claims]
    if unmatched and alone:
        told.problems.append(
            f"{count_of(len({*unmatched}), 'annotated name')} without an image, as {unmatched[0]}; "
            f"{count_of(len(alone), 'image')} without annotations, as {alone[0]}"
        )
    return claims


def _choose(told: _Told, claims: dict[str, list[tuple]]) -> tuple[dict, dict, dict]:
    """`(objects, absent, dropped)` by image: those of the surest claim. But what any of its claims
    has is not absent, and what any drops is dropped."""
    # A format without a list of categories: those of all such files were looked for.
    without_list = [one for one in told.images if one.looked_for is None]
    unlisted = {item["category"] for one in without_list for item in one.objects}
    objects, absent, dropped = {}, {}, {}
    for name, claimed in claims.items():
        top = max(score for score, _ in claimed)
        first, *others = [one for score, one in claimed if score == top]
        if any(one.objects != first.objects for one in others):
            files = ", ".join(dict.fromkeys(one.file for one in (first, *others)))
            told.problems.append(
                f"{name}: annotated more than once, not alike ({files:.200}), left out"
            )
        elif top and first.objects:
            looked_for = unlisted if first.looked_for is None else first.looked_for
            objects[name] = first.objects
            dropped[name] = [item for _, one in claimed for item in one.dropped]
            possible = set().union(*(one.possible for _, one in claimed))
            is_open = any(item["category"] == UNKNOWN for item in dropped[name])
            absent[name] = [] if is_open else not_called(looked_for, possible)
    return objects, absent, dropped
