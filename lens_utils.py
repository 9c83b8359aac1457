"""What both notebooks share: the results that pass between them.

Holds saving and loading, `Results`, one folder of results, and what categories are called. The
format is in `lens_format`. It knows nothing of models, annotations, tables or figures.
"""

import difflib
import gzip
import io
import json
import os
import pickle
import pickletools
import re
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image

from lens_format import OTHER_RELEASE, SEGMENTS, check_part, check_record, check_run, require
from lens_kaggle import check_file, files_under, locked

__all__ = [
    "save", "load", "Results", "WORDS", "plural_of", "names_of", "patch_coverage", "open_crop",
    "printable",
]  # fmt: skip

# ---- Files -------------------------------------------------------------------------------------

# Bounds for a file, of which only the first is ever near: at LLaVA-1.5-7B's size a record has
# 2 MB, a part 25.
MOST_BYTES, MOST_OPCODES = 2**26, 2**21
# Of the pickle language what `_Pickler` writes: no memo, so nothing stands in two places; no BUILD,
# so nothing gets a state; a tuple of three only as the arguments of a call (`_read_only`).
PLAIN_OPCODES = set(
    "PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "  # noqa: SIM905 (a list of these is 30 lines)
    "SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES EMPTY_LIST APPEND APPENDS "
    "EMPTY_DICT SETITEM SETITEMS TUPLE3 STACK_GLOBAL REDUCE".split()
)
NUMBERS = {"|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"}


class _Pickler(pickle.Pickler):
    """Writes an array as the call `numpy.ndarray(shape, dtype, bytes)`, which plain pickle reads
    too."""

    def reducer_override(self, value):
        if value is np.ndarray:
            return NotImplemented  # by its name
        if type(value) is np.ndarray and value.dtype.str in NUMBERS:
            return np.ndarray, (list(value.shape), value.dtype.str, value.tobytes())
        raise ValueError(
            f"{type(value).__name__} {str(value)[:60]!r} can't be saved: results are numpy arrays "
            "of numbers, plain numbers, texts, lists and dicts"
        )


class _Unpickler(pickle.Unpickler):
    """Knows one name, numpy.ndarray, and gives a checking function for it."""

    def find_class(self, module, name):
        is_array = (module, name) == ("numpy", "ndarray")
        require(is_array, f"it refers to {module[:50]}.{name[:50]}, which results never do")
        return _plain_array


def _plain_array(shape, dtype, data) -> np.ndarray:
    is_plain = type(dtype) is str and dtype in NUMBERS and type(data) is bytes
    require(is_plain and type(shape) is list, "it has an array of something else than numbers")
    # A negative length would be taken for "as many as there are".
    require(all(type(n) is int and n >= 0 for n in shape), "it has an array of an odd shape")
    return np.frombuffer(data, dtype).reshape(shape)


def _read_only(data: bytes) -> None:
    """Read the opcodes without doing what they say: then no length in them is taken at its word."""
    before, uncalled = "", 0
    for number, (opcode, _, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        require(number < MOST_OPCODES, "it has too many parts")
        # Format 2 had a memo.
        require(name != "MEMOIZE", f"its format version is an older one, {OTHER_RELEASE}")
        require(name in PLAIN_OPCODES, f"its pickle has {name}, which results never do")
        # Nested tuples as a key would take forever to hash.
        require((before == "TUPLE3") == (name == "REDUCE"), "it has a tuple")
        uncalled += (name == "STACK_GLOBAL") - (name == "REDUCE")
        before = name
    require(not uncalled, "it has a function")


def _from_bytes(data: bytes, check: Callable | None):
    require(len(data) <= MOST_BYTES, f"it has more than {MOST_BYTES >> 20} MiB")
    _read_only(data)
    value = _Unpickler(io.BytesIO(data)).load()
    if check:
        check(value)
    return value


def save(path, value, check: Callable | None = None, compresslevel: int = 1) -> None:
    """Pickle and gzip `value` to `path` under a temporary name, then rename it.

    So the file is whole or absent, and gzip's checksum shows damage. Raises ValueError if `load`
    with `check` would refuse it, OSError if it can't be written (a full disk, for instance).
    """
    path, pickled = Path(path), io.BytesIO()
    pickler = _Pickler(pickled, protocol=5)
    pickler.fast = True  # no memo
    pickler.dump(value)
    data = pickled.getvalue()
    try:
        _from_bytes(data, check)
    except Exception as error:  # as in `load`
        raise ValueError(
            f"{str(path)!r} would not be a good file ({_reason(error)}). Too large? Choose "
            "a smaller top_k or fewer prompts."
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:  # never through a link
            file.write(gzip.compress(data, compresslevel, mtime=0))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path, check: Callable | None = None):
    """What `save` wrote. Nothing in the file is run.

    Raises ValueError, which names the file, if it is no plain file, damaged, holds anything but
    plain results, or `check` of it raises; FileNotFoundError if there is none.
    """
    try:
        check_file(path, MOST_BYTES, follow_links=False)
        # Not gzip.open, which reads a header's texts byte by byte, and any number of members.
        inflater = zlib.decompressobj(wbits=31)
        data = inflater.decompress(Path(path).read_bytes(), MOST_BYTES + 1)
        whole = inflater.eof and not inflater.unused_data
        require(whole or len(data) > MOST_BYTES, "it is cut off, or goes on after its end")
        return _from_bytes(data, check)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(
            f"{str(path)!r} is damaged, of another release, or no result of this project "
            f"({_reason(error)}): get it again or delete it."
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


# ---- Results -----------------------------------------------------------------------------------


class Results:
    """One folder of results: `run.pkl`, a record per image, and a part per process.

    Each file is read when it is first needed; run and parts are then kept. Another process may
    write to the same folder meanwhile: make a new `Results` to see that.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    @classmethod
    def find(cls, folder) -> "Results":
        """The one folder at or under `folder` that holds a `run.pkl`.

        Raises FileNotFoundError for none, ValueError for several.
        """
        found = sorted(path.parent for path in files_under(folder) if path.name == "run.pkl")
        if not found:
            raise FileNotFoundError(
                f"No results (run.pkl) under {str(folder)!r}: run Make_Analyse.ipynb first, or "
                "attach its output as a data set."
            )
        several = f"Several results under {str(folder)!r}: set `results` to one of "
        require(len(found) == 1, f"{several}{', '.join(map(str, found))}.")
        return cls(found[0])

    def _inner(self, name: str) -> Path:
        """The folder `name` within. Raises ValueError for a link, which would lead out of here."""
        path = self.folder / name
        require(not path.is_symlink(), f"{str(path)!r} is a link, which results never hold.")
        return path

    def record_path(self, name: str) -> Path:
        """Where the record of the image `name` is. Raises ValueError if that is through a link."""
        return self._inner("images") / f"{name}.pkl"

    def part_path(self, process: int) -> Path:
        """Where the process of that number keeps what it has read (PART). Raises ValueError if
        that is through a link."""
        return self._inner("parts") / f"{process}.pkl"

    @property
    def started(self) -> bool:
        """Whether there is a `run.pkl`."""
        return (self.folder / "run.pkl").exists()

    @cached_property
    def run(self) -> dict:
        """`run.pkl` (RUN). Raises ValueError if it is damaged or of another format version."""
        return load(self.folder / "run.pkl", check_run)

    @cached_property
    def parts(self) -> dict[int, dict]:
        """The parts by process. Raises ValueError if one is damaged, or counts in an image that
        another one counts in too or whose record is gone."""
        parts, counted = {}, set()
        for path in sorted(self._inner("parts").glob("*.pkl")):
            part = load(path, partial(check_part, run=self.run))
            for name in part["images"]:
                record, again = self.record_path(name), "and its images are read again."
                twice = f"counts in {name!r}, as another part does: delete one of the two, {again}"
                gone = f"counts in {name!r}, but {str(record)!r} is gone: put it back, or delete "
                require(name not in counted, f"{str(path)!r} {twice}")
                require(record.is_file(), f"{str(path)!r} {gone}the part as well, {again}")
            counted.update(part["images"])
            parts[int(path.stem)] = part
        return parts

    @property
    def names(self) -> list[str]:
        """The names of the images that were read, sorted."""
        return sorted(name for part in self.parts.values() for name in part["images"])

    @property
    def skipped(self) -> dict[str, str]:
        """The reason by name for each image that could not be read, and was not read since."""
        reasons = {k: v for part in self.parts.values() for k, v in part["skipped"].items()}
        return {name: reason for name, reason in reasons.items() if name not in self.names}

    def record(self, name: str | None = None) -> dict:
        """The record (RECORD) of one image; None: of the first.

        Raises ValueError, which names some that there are, for an image that was not read.
        """
        names = self.names
        require(names, f"No image was read into {str(self.folder)!r} yet: run Make_Analyse.ipynb.")
        name = names[0] if name is None else name
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 5) or names[:10]
            raise ValueError(
                f"No image {name!r} in {str(self.folder)!r}: set `image` to one of its "
                f"{len(names)} images, for instance {', '.join(near)}."
            )
        return load(self.record_path(name), partial(check_record, run=self.run, name=name))

    def records(self) -> Iterator[dict]:
        """All records, one after the other, by name. Raises FileNotFoundError if there is none."""
        self._must_hold("records", self.names)
        return map(self.record, self.names)

    def mean_probability(self) -> np.ndarray:
        """The mean probability of every token `[segment, layer, d_vocab]`: over the positions of
        the segment, then over images. Raises FileNotFoundError if nothing was read."""
        self._must_hold("parts", self.parts)
        n_images = sum(part["n_images"] for part in self.parts.values())
        sums = sum(part["sums"] for part in self.parts.values())
        return sums / np.maximum(n_images, 1)[:, None, None]

    def _must_hold(self, what: str, there) -> None:
        if not there:
            where = f"No {what} in {str(self.folder)!r}"
            raise FileNotFoundError(f"{where}: run Make_Analyse.ipynb to its end.")

    def left(
        self, image_paths: dict[str, Path], digests: dict[str, dict] = (), read_again: bool = False
    ) -> dict[str, Path]:
        """Those of `image_paths` (by name) that were not read yet.

        `digests` (`lens_data.digests_of`) by name tell whether images and annotations are still
        those that were read. Raises ValueError, which names those that differ; with `read_again`
        these are forgotten, and with them all that the same process read, since nothing can be
        taken out of its sums.
        """
        done = set(self.names) if self.started else set()
        differ = {}
        for name in sorted(done.intersection(digests)):
            record = self.record(name)
            what = [key for key, digest in digests[name].items() if record[key] != digest]
            if what:
                differ[name] = f"{name} ({', '.join(key.split('_')[0] for key in what)})"
        some = ", ".join([*differ.values()][:5])
        require(
            read_again or not differ,
            f"{len(differ)} images differ from those that were read into {str(self.folder)!r}: "
            f"{some}. Choose another folder, or set read_again: these are then read again, with "
            "all that the same process read.",
        )
        for process, part in list(self.parts.items()) if differ else ():
            if differ.keys() & set(part["images"]):
                self.part_path(process).unlink()
                done -= set(self.parts.pop(process)["images"])
        return {name: path for name, path in image_paths.items() if name not in done}

    def begin(self, run: dict, process: int = 0) -> None:
        """Start, or go on with, `run` as the process of that number.

        Raises ValueError as `refuse_another` does.
        """
        self.refuse_another(run)
        if not any(self._inner("parts").glob("*.pkl")):
            save(self.folder / "run.pkl", run, check_run)
        self.__dict__.pop("run", None)
        self.__dict__.pop("parts", None)
        shape = len(SEGMENTS), len(run["layers"]), len(run["tokens"])
        counts, sums = np.zeros(shape[0], dtype=int), np.zeros(shape)
        empty = {"images": [], "skipped": {}, "n_images": counts, "sums": sums}
        self.process, self.part = process, self.parts.get(process, empty)

    def refuse_another(self, run: dict) -> None:
        """Raise ValueError if the folder holds results of another run than `run`: they must not
        be mixed. It names the setting that differs, or one of `run` that could not be saved."""
        check_run(run)
        if not any(any(self._inner(name).glob("*.pkl")) for name in ("images", "parts")):
            return
        remedy = "choose another folder, or delete what is in this one."
        half = "records but no run.pkl, perhaps half of a copy: set go_on_from as before"
        require(self.started, f"{str(self.folder)!r} holds {half}, {remedy}")
        before = load(self.folder / "run.pkl", check_run)
        for key in sorted({*before, *run} - {"packages", "last_layer_jsd"}):
            there, now = (str(settings.get(key)) for settings in (before, run))
            another = f"results of another run ({key}: {there[:100]} there, {now[:100]} now)"
            require(there == now, f"{str(self.folder)!r} holds {another}: {remedy}")

    def add(self, record: dict, mean_probability: np.ndarray) -> None:
        """Save the record of an image and count it in, with its mean probability
        `[segment, layer, d_vocab]` (NaN for a segment without positions).

        Raises ValueError if it is counted already, FileNotFoundError if the results are gone.
        """
        name, part = record["name"], self.part
        if not self.started:
            gone = f"{str(self.folder)!r} was deleted while images were read into it"
            raise FileNotFoundError(f"{gone}: run this again to begin anew.")
        require(name not in part["images"], f"{name!r} is counted already.")
        save(self.record_path(name), record, partial(check_record, run=self.run, name=name))
        part["images"].append(name)
        part["skipped"].pop(name, None)
        part["n_images"] = part["n_images"] + ~np.isnan(mean_probability[:, 0, 0])
        part["sums"] = part["sums"] + np.nan_to_num(mean_probability)
        self._save_part()  # only now does the image count: what is killed before is read again

    def skip(self, name: str, reason: str) -> None:
        """Note that an image can't be read, and why."""
        self.part["skipped"][name] = reason
        self._save_part()

    def _save_part(self) -> None:
        # After every image, so not compressed: at LLaVA-1.5-7B's size 0.04 s instead of 0.25.
        check = partial(check_part, run=self.run)
        save(self.part_path(self.process), self.part, check, compresslevel=0)
        self.parts[self.process] = self.part

    def continue_from(self, earlier=None) -> None:
        """Clear what a killed run left half-written; where no run was started here, copy the one
        in or under the folder `earlier`.

        Raises FileNotFoundError or ValueError if `earlier` holds no run or a damaged one, or if
        another run is writing here.
        """
        with locked(self.folder):
            for folder in (self.folder, self._inner("images"), self._inner("parts")):
                for temporary in folder.glob("*.pkl.*.tmp"):
                    temporary.unlink()
            if earlier and self.started:
                here = f"{str(self.folder)!r} holds a run already and goes on from that"
                print(f"{here}, not from {str(earlier)!r}.")
            elif earlier:
                source = Results.find(earlier)
                for name in source.names:
                    save(self.record_path(name), source.record(name))
                for process, part in source.parts.items():
                    save(self.part_path(process), part)
                save(self.folder / "run.pkl", source.run)  # last: until then the copy is not whole


# ---- What categories are called ----------------------------------------------------------------

WORDS = json.loads(Path(__file__).with_name("lens_words.json").read_text("utf-8"))


def plural_of(noun: str) -> str:
    """The plural of a noun: that of `WORDS`, else by rule."""
    if noun in WORDS["plurals"]:
        return WORDS["plurals"][noun]
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


def names_of(category: str) -> list[str]:
    """What a category is called, in lower case: its name and its synonyms in `WORDS` (COCO's have
    some), each with its plural."""
    nouns = [category.lower(), *WORDS["categories"].get(category.lower(), [])]
    return list(dict.fromkeys(form for noun in nouns for form in (noun, plural_of(noun))))


# ---- Patches -----------------------------------------------------------------------------------


def patch_coverage(box, grid: int, image_size: int) -> np.ndarray:
    """The share (0 to 1) of each patch `[grid * grid]`, row by row, that a box covers.

    `box` is x, y, width and height in pixels of the crop, which has `image_size` along a side.
    """
    edges = np.linspace(0, image_size, grid + 1)
    x, y, width, height = box
    columns = np.clip(np.minimum(edges[1:], x + width) - np.maximum(edges[:-1], x), 0, None)
    rows = np.clip(np.minimum(edges[1:], y + height) - np.maximum(edges[:-1], y), 0, None)
    return np.outer(rows, columns).ravel() * (grid / image_size) ** 2


# ---- What people see ---------------------------------------------------------------------------


def open_crop(record: dict) -> Image.Image:
    """The image as the model saw it."""
    return Image.open(io.BytesIO(record["crop"].tobytes()))


def printable(label: str, length: int | None = None, glyphs: frozenset[int] | None = None) -> str:
    """A token label in which every character can be seen, cut to `length`.

    What is blank, or not among the code points `glyphs` that can be drawn (None: all can), becomes
    `U+4E2D`.
    """

    def seen(char):
        has_glyph = glyphs is None or ord(char) in glyphs
        return char.isprintable() and not char.isspace() and has_glyph

    shown = "".join(char if seen(char) else f"U+{ord(char):04X}" for char in label)
    return shown if length is None or len(shown) <= length else shown[: length - 1] + "…"
