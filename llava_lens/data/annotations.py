"""Find and read annotations, and match them to images."""

import hashlib
import itertools
import operator
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from llava_lens.data.coco import Annotated, known_absent, read_file
from llava_lens.data.images import (
    MOST_JSON_BYTES,
    OTHER_IMAGE_SUFFIXES,
    data_files,
    images_and_masks,
)
from llava_lens.data.parsers import EXPECTED, PARSERS, other_kinds
from llava_lens.files import check_file
from llava_lens.kaggle import data_sets


class Annotations(NamedTuple):
    """What is known about the images of a folder. `objects` and `absent` are by image.

    - `objects`: a list of dicts with `category`, `box` `[x, y, width, height]` in pixels, `crowd`,
      `color` (None unless the annotation carries that extra attribute), `polygons` (`[x, y, x, y,
      ...]` each) and `image_size` `(width, height)`, None where it is not given
    - `absent`: the sorted names of the categories that the image is known not to have
      (`docs/method.md` says what counts)
    - `categories`: the sorted names of all categories
    - `problems`: a sentence for each thing that can't be used and is left out
    - `files`: a sentence that says which files were read and which were not opened
    """

    objects: dict[str, list[dict]]
    absent: dict[str, list[str]]
    categories: list[str]
    problems: list[str]
    files: str = ""


def annotate(folder, image_paths: dict[str, Path]) -> Annotations:
    """The annotations under `folder` by the names of all its images (`find_images`)."""
    return match_annotations(read_annotations(folder), image_paths)


def find_data_set() -> Path:
    """The first attached Kaggle data set that holds images with COCO annotations, else the first
    that holds images.

    Raises FileNotFoundError, which says how to attach one, if no data set holds an image.
    """
    # The data set with this project's code may hold the demo's scenes, which aren't meant.
    others = [folder for folder in data_sets() if not any(folder.rglob("lens_utils.py"))]
    with_images = [folder for folder in others if images_and_masks(folder, data_files(folder))[0]]
    if not with_images:
        raise FileNotFoundError(
            "No attached data set holds an image: choose Add Input, search for COCO-data-100, add "
            "it, and run this cell again."
        )
    return next((one for one in with_images if read_annotations(one).objects), with_images[0])


def read_annotations(folder) -> Annotations:
    """Read the annotations under `folder` with PARSERS, by path of an image: as annotated, below
    the folder of the file that tells of it.

    Files that are called `instances...`, as COCO's, come first. COCO ships keypoints and captions
    beside them, of the same objects or none. So other files are opened only if there is an image
    that the first do not name, and tell of such images alone.
    """
    files = data_files(folder)
    images, masks = images_and_masks(folder, files)
    paths = [path for path in files if path.suffix.lower() in PARSERS]
    first = [path for path in paths if path.name.lower().startswith("instances")]
    told = _read_files(folder, first, images)
    named = Counter(_last(file) for file, _ in told.images)
    unnamed = Counter(normalize("NFC", path.name) for path in images) - named
    unopened = [path for path in paths if path not in first]
    if unnamed or not named:
        more, unopened = _read_files(folder, unopened, images), []
        new = [pair for pair in more.images if not named or _last(pair[0]) in unnamed]
        told = _Told(*map(operator.add, told, more._replace(images=new)))
    times = Counter(file for file, _ in told.images)
    known = {file: annotated for file, annotated in told.images if times[file] == 1}
    problems = told.problems + [
        f"{file}: several annotated images have this name, so its objects are left out"
        for file in sorted(times.keys() - known.keys())
    ]
    others = [path.name for path in files if path.suffix.lower() in OTHER_IMAGE_SUFFIXES]
    for names, what in (
        (told.unknown + other_kinds(files), f"not understood as annotations; {EXPECTED}"),
        ([path.name for path in masks], "left out, as masks of other images"),
        (others, "images of a kind that is not read: convert them to JPEG"),
    ):
        problems += [f"{_and_more(names)}: {what}" for _ in names[:1]]
    # A format without a list of categories: those of all such files were looked for.
    unlisted = {
        item["category"]
        for _, annotated in told.images
        if annotated.looked_for is None
        for item in annotated.objects
    }
    absent = {
        file: known_absent(unlisted if looked_for is None else looked_for, possible)
        for file, (_, possible, looked_for) in known.items()
    }
    said = f"Annotations were read from {_and_more(told.files)}" if told.files else ""
    if unopened:
        unopened_names = _and_more([path.name for path in unopened])
        said += f"; not opened, as these name every image: {unopened_names}"
    objects = {file: annotated.objects for file, annotated in known.items()}
    return Annotations(objects, absent, sorted({*told.categories}), problems, said)


class _Told(NamedTuple):
    """What a list of files tells, and the names of those that were read and not understood."""

    images: list[tuple[str, Annotated]]
    categories: list[str]
    problems: list[str]
    files: list[str]
    unknown: list[str]


def _read_files(folder, paths: list[Path], images: list[Path]) -> _Told:
    """Read each of `paths`. An image without a name of its own is the one called as the file is."""
    told, digests, by_stem = _Told([], [], [], [], []), set(), defaultdict(set)
    for path in images:
        by_stem[path.stem].add(path.name)
    for path in paths:
        try:
            check_file(path, MOST_JSON_BYTES)
            content = path.read_bytes()
            named_alike = by_stem[path.stem]
            image = min(named_alike) if len(named_alike) == 1 else None
            digest = hashlib.sha256(content).digest(), image
            if digest in digests:  # a copy of a file
                continue
            data = PARSERS[path.suffix.lower()](content, image)
            found, categories, problems = read_file(path.name, data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            told.unknown.append(f"{path.name} ({type(error).__name__}: {str(error)[:80]})")
            continue
        digests.add(digest)
        below = normalize("NFC", path.relative_to(folder).parent.as_posix()).removeprefix(".")
        told.images.extend((f"{below}/{file}".lstrip("/"), annotated) for file, annotated in found)
        told.categories.extend(categories)
        told.problems.extend(problems)
        told.files.append(path.name)
    return told


def _last(file: str) -> str:
    return file.rsplit("/", 1)[-1]


def _and_more(names: list[str]) -> str:
    return names[0] + f" and {len(names) - 1} more files" * (len(names) > 1)


def match_annotations(annotations: Annotations, image_paths: dict[str, Path]) -> Annotations:
    """`annotations` of `read_annotations` by the names of `find_images`.

    An annotated path belongs to the image with which it shares the longest end, a whole path
    before all. An image without a usable object has none. `problems` get a sentence for each image
    that could be several, and one if annotated names and images are left over.
    """
    ends = {  # from the file's name up
        name: normalize("NFC", path.as_posix()).split("/")[::-1]
        for name, path in image_paths.items()
    }
    on_disk, claims, problems, unmatched = defaultdict(list), defaultdict(dict), [], []
    for name in image_paths:
        on_disk[ends[name][0]].append(name)
    for file in annotations.objects:
        shared = {}
        for name in on_disk.get(_last(file), ()):
            pairs = zip(file.split("/")[::-1], ends[name], strict=False)
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            shared[name] = (same, file.replace("/", "__") == normalize("NFC", name))
        if len(_best(shared)) == 1:
            claims[_best(shared)[0]][file] = max(shared.values())
        elif shared:
            problems.append(f"{file}: could be any of {', '.join(_best(shared)[:3])}, left out")
        else:
            unmatched.append(file)
    files = {name: _best(shared) for name, shared in claims.items()}
    problems += [
        f"{name}: could be any of {', '.join(several[:3])}, left out"
        for name, several in files.items()
        if len(several) > 1
    ]
    alone = [name for name in image_paths if name not in claims]
    if unmatched and alone:
        problems.append(
            f"{len(unmatched)} annotated names match no image, for instance {unmatched[0]}; "
            f"{len(alone)} images have no annotations, for instance {alone[0]}"
        )
    found = {
        name: several[0]
        for name, several in files.items()
        if len(several) == 1 and annotations.objects[several[0]]
    }
    objects, absent = (
        {name: by_file[file] for name, file in found.items()} for by_file in annotations[:2]
    )
    return annotations._replace(
        objects=objects, absent=absent, problems=annotations.problems + problems
    )


def _best(scores: dict) -> list[str]:
    return [key for key, score in scores.items() if score == max(scores.values())]
