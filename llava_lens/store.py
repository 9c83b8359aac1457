"""One folder of results: records, parts, resuming."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from llava_lens.checks import check_part, check_record, check_run, n_rows
from llava_lens.files import explained, files_under, inside
from llava_lens.pickles import load, save
from llava_lens.schema import MOST_ROWS, SEGMENTS
from llava_lens.text import count_of, require


class Results:
    """One folder of results: `run.pkl`, a record per image, and a part per process.

    Run and parts are read when first needed, and kept. Another process may write to the same folder
    meanwhile: make a new `Results` to see that. What can't be read or written raises OSError, what
    is damaged ValueError; both name it and say what to do.
    """

    def __init__(self, folder):
        self.folder, self._named = Path(folder), repr(str(folder))
        self._lock = FileLock(self.folder / "lock")

    @classmethod
    def find(cls, folder) -> "Results":
        """The one folder at or under `folder` that holds a `run.pkl`. Raises FileNotFoundError for
        none, ValueError for several."""
        found = sorted(path.parent for path in files_under(folder) if path.name == "run.pkl")
        several = f"Several results under {str(folder)!r}: set `results` to one of "
        require(len(found) < 2, f"{several}{', '.join(map(str, found))}.")
        if not found:
            none = f"No results (run.pkl) under {str(folder)!r}: run Make_Analyse.ipynb first"
            raise FileNotFoundError(f"{none}, or attach its output as a data set.")
        return cls(found[0])

    def record_path(self, name: str) -> Path:
        """Where the record of the image `name` is."""
        return inside(self.folder, "images") / f"{name}.pkl"

    def part_path(self, process: int | str) -> Path:
        """Where the process of that number keeps what it has read (PART)."""
        return inside(self.folder, "parts") / f"{process}.pkl"

    def _pickles(self, name: str) -> list[Path]:
        files = files_under(inside(self.folder, name))
        return sorted(path for path in files if path.suffix == ".pkl")

    @property
    def started(self) -> bool:
        """Whether there is a `run.pkl`."""
        return (self.folder / "run.pkl").exists()

    @cached_property
    def run(self) -> dict:
        """`run.pkl` (RUN). Raises ValueError if it is missing, damaged or of another format."""
        half = "perhaps half of a copy: get it again, set go_on_from as before, or choose another."
        try:
            return load(self.folder / "run.pkl", check_run)
        except FileNotFoundError as error:
            raise ValueError(f"{self._named} is a folder without run.pkl, {half}") from error

    @cached_property
    def whole(self) -> dict:
        """The parts of all processes as one (PART), added up while they are read. Raises ValueError
        for a part by another name, and for an image that is counted twice or has no record."""
        whole = {"images": [], "skipped": {}, "n_images": 0, "sums": 0}
        counted, there = set(), set(self._pickles("images"))
        for path in self._pickles("parts"):
            is_part = re.fullmatch("[1-9]?[0-9]", path.stem) and path == self.part_path(path.stem)
            odd = f"{str(path)!r} is no part: those are parts/0.pkl to parts/99.pkl"
            require(is_part, f"{odd}. Rename it, or delete it if it is a second copy.")
            part = load(path, partial(check_part, run=self.run))
            for name in part["images"]:
                record, counts = self.record_path(name), f"{str(path)!r} counts {name!r}"
                twice = f"{counts}, as another part does: delete one of the two"
                gone = f"{counts}, but {str(record)!r} is gone: put it back, or delete the part too"
                require(name not in counted, f"{twice}, and its images are read again.")
                require(record in there, f"{gone}, and its images are read again.")
            counted.update(part["images"])
            whole["skipped"] |= part["skipped"]
            whole |= {name: whole[name] + part[name] for name in ("n_images", "sums")}
        return {**whole, "images": sorted(counted)}

    @property
    def names(self) -> list[str]:
        """The names of the images that were read, sorted."""
        return self.whole["images"]

    @property
    def skipped(self) -> dict[str, str]:
        """The reason by name, for each image that could not be read and was not read since."""
        reasons = self.whole["skipped"]
        return {name: reasons[name] for name in sorted(reasons.keys() - {*self.names})}

    def _some_names(self) -> list[str]:
        if not self.names:
            none = f"No image was read into {self._named} yet"
            raise FileNotFoundError(f"{none}: run Make_Analyse.ipynb to its end.")
        return self.names

    def record(self, name: str | None = None) -> dict:
        """The record (RECORD) of one image; None: of the first. Raises ValueError, which names some
        that were read, for one that was not, FileNotFoundError if none was."""
        names = self._some_names()
        name = names[0] if name is None else name
        near = difflib.get_close_matches(str(name), names, 5) if name not in names else []
        there = f"its {count_of(len(names), 'image')}, for instance {', '.join(near or names[:10])}"
        none = f"No image {name!r} in {self._named}: set `image` to one of {there}."
        require(name in names, none)
        return load(self.record_path(name), partial(check_record, run=self.run, name=name))

    def records(self) -> Iterator[dict]:
        """All records by name, one after the other. Raises FileNotFoundError if there is none,
        ValueError once they have more than MOST_ROWS."""
        total = 0
        for name in self._some_names():
            total += n_rows(record := self.record(name), self.run)
            many = f"The records in {self._named} have more answers than can be shown"
            require(total <= MOST_ROWS, f"{many}: read fewer images, or with fewer prompts.")
            yield record

    def mean_probability(self) -> np.ndarray:
        """The mean probability of every token `[segment, layer, d_vocab]`: over the positions of a
        segment, then over images. Raises FileNotFoundError if nothing was read."""
        self._some_names()
        return self.whole["sums"] / np.maximum(self.whole["n_images"], 1)[:, None, None]

    def unread(self, image_paths: dict[str, Path], digests: dict | tuple = ()) -> dict:
        """Those of `image_paths` (by name) that were not read yet. Raises ValueError, which names
        them, for images whose `digests` (`data.images.digests_of`, by name) are not those of their
        records: they or their annotations changed since."""
        done, changed = set(self.names if self.started else ()), []
        for name in sorted(done.intersection(digests)):
            record = self.record(name)
            what = [key for key, digest in digests[name].items() if record[key] != digest]
            if what:
                changed.append(f"{name} ({', '.join(key.split('_')[0] for key in what)})")
        these = f"{count_of(len(changed), 'image')} changed after reading into {self._named}"
        remedy = "Choose another folder for the results."
        require(not changed, f"{these}: {', '.join(changed[:5])}. {remedy}")
        return {name: path for name, path in image_paths.items() if name not in done}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for one run, whose forked processes write to it too.

        A lock ends with the process that holds it, so none is left behind. Raises ValueError if
        another run holds it.
        """
        try:
            with explained(self.folder, "change its permissions, or choose another folder"):
                self.folder.mkdir(parents=True, exist_ok=True)
                inside(self.folder, "lock")
                hold = self._lock.acquire(timeout=0)
        except Timeout as error:
            other = f"Another run is writing to {self._named}"
            raise ValueError(f"{other}: wait for its end, or choose another folder.") from error
        with hold:
            yield

    def refuse_another(self, run: dict) -> None:
        """Raise ValueError if the folder holds results of another run than `run`: it names the
        setting that differs, or a field of `run` that could not be saved."""
        check_run(run)
        if not self._pickles("images") + self._pickles("parts"):
            return
        remedy = "choose another folder, or delete what is in this one."
        self._forget("run")  # another process may have written since
        before = self.run
        for key in sorted(run.keys() - {"packages", "last_layer_jsd"}):
            there, now = str(before[key]), str(run[key])
            another = f"results of another run ({key}: {there[:100]} there, {now[:100]} now)"
            require(there == now, f"{self._named} holds {another}: {remedy}")

    def begin(self, run: dict, process: int = 0) -> None:
        """Start `run`, or go on with it, as the process of that number. Raises ValueError as
        `refuse_another`."""
        self.refuse_another(run)
        if not self._pickles("parts"):
            save(self.folder / "run.pkl", run, check_run)
        self._forget("run", "whole")  # another process may have written since
        self.process, path = process, self.part_path(process)
        sums = np.zeros((len(SEGMENTS), len(run["layers"]), len(run["tokens"])))
        empty = {"images": [], "skipped": {}, "n_images": np.zeros(len(SEGMENTS), int)}
        old = load(path, partial(check_part, run=run)) if path.exists() else {}
        self.part = {**empty, "sums": sums, **old}

    def _forget(self, *cached: str) -> None:
        for name in cached:
            self.__dict__.pop(name, None)

    def add(self, record: dict, mean_probability: np.ndarray) -> None:
        """Save the record of an image and count the image.

        `mean_probability` `[segment, layer, d_vocab]` is NaN for a segment without positions.
        Raises ValueError if it is counted already, FileNotFoundError if the folder was deleted.
        """
        name, part = record["name"], self.part
        if not self.started:
            gone = f"{self._named} was deleted while images were read into it"
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
        self._forget("whole")

    def continue_from(self, earlier=None) -> None:
        """Clear what a killed run left half-written, and copy the run in or under `earlier` into a
        new folder; a run that was started here is kept in its place. Raises FileNotFoundError or
        ValueError if `earlier` holds no run or a damaged one, ValueError as `held`."""
        with self.held():
            for folder in (self.folder, self.part_path(0).parent, self.record_path("a").parent):
                for temporary in folder.glob("*.pkl.*.tmp"):
                    temporary.unlink()
            if earlier and self.started:
                here = f"{self._named} holds a run already and goes on from that"
                print(f"{here}, not from {str(earlier)!r}.")
            elif earlier:
                source = Results.find(earlier)
                for name in source.names:
                    save(self.record_path(name), source.record(name))
                for path in source._pickles("parts"):
                    save(self.part_path(path.stem), load(path))
                save(self.folder / "run.pkl", source.run)  # last: until then the copy is not whole
                self._forget("run", "whole")
