"""One folder of results: records, parts, resuming."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from llava_lens.checks import check_part, check_record, check_run
from llava_lens.files import files_under
from llava_lens.pickles import load, save
from llava_lens.schema import SEGMENTS
from llava_lens.text import count_of, require


class Results:
    """One folder of results: `run.pkl`, a record per image, and a part per process.

    Run and parts are read when first needed, and kept. Another process may write to the same folder
    meanwhile: make a new `Results` to see that.
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
        """What is called `name` in the folder. Raises ValueError for a link: it leads elsewhere."""
        path = self.folder / name
        require(not path.is_symlink(), f"{str(path)!r} is a link, which results never hold.")
        return path

    def record_path(self, name: str) -> Path:
        """Where the record of the image `name` is."""
        return self._inner("images") / f"{name}.pkl"

    def part_path(self, process: int) -> Path:
        """Where the process of that number keeps what it has read (PART)."""
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
        """The parts by process.

        Raises ValueError if one is damaged, counts an image that another part counts too, or counts
        an image whose record is gone.
        """
        parts, counted = {}, set()
        for path in sorted(self._inner("parts").glob("*.pkl")):
            part = load(path, partial(check_part, run=self.run))
            for name in part["images"]:
                record, counts = self.record_path(name), f"{str(path)!r} counts {name!r}"
                twice = f"{counts}, as another part does: delete one of the two"
                gone = f"{counts}, but {str(record)!r} is gone: put it back, or delete the part too"
                require(name not in counted, f"{twice}, and its images are read again.")
                require(record.is_file(), f"{gone}, and its images are read again.")
            counted.update(part["images"])
            parts[int(path.stem)] = part
        return parts

    @cached_property
    def names(self) -> list[str]:
        """The names of the images that were read, sorted."""
        return sorted(name for part in self.parts.values() for name in part["images"])

    @property
    def skipped(self) -> dict[str, str]:
        """The reason by name, for each image that could not be read and was not read since."""
        reasons = {k: v for part in self.parts.values() for k, v in part["skipped"].items()}
        return {name: reasons[name] for name in sorted(reasons.keys() - {*self.names})}

    def record(self, name: str | None = None) -> dict:
        """The record (RECORD) of one image; None: of the first.

        Raises ValueError for an image that was not read; it names some that were. Raises
        FileNotFoundError if none was.
        """
        names = self._some_names()
        name = names[0] if name is None else name
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 5) or names[:10]
            raise ValueError(
                f"No image {name!r} in {str(self.folder)!r}: set `image` to one of its "
                f"{len(names)} images, for instance {', '.join(near)}."
            )
        return load(self.record_path(name), partial(check_record, run=self.run, name=name))

    def records(self) -> Iterator[dict]:
        """All records by name, one after the other. Raises FileNotFoundError if there is none."""
        return map(self.record, self._some_names())

    def mean_probability(self) -> np.ndarray:
        """The mean probability of every token `[segment, layer, d_vocab]`.

        It is the mean over the positions of a segment, then over images. Raises FileNotFoundError
        if nothing was read.
        """
        self._some_names()
        n_images = sum(part["n_images"] for part in self.parts.values())
        sums = sum(part["sums"] for part in self.parts.values())
        return sums / np.maximum(n_images, 1)[:, None, None]

    def _some_names(self) -> list[str]:
        if not self.names:
            none = f"No image was read into {str(self.folder)!r} yet"
            raise FileNotFoundError(f"{none}: run Make_Analyse.ipynb to its end.")
        return self.names

    def unread(
        self, image_paths: dict[str, Path], digests: dict[str, dict] | None = None
    ) -> dict[str, Path]:
        """Those of `image_paths` (by name) that were not read yet.

        `digests` by name (`data.images.digests_of`) are compared with those in the records. Raises
        ValueError, which names the images, if an image or its annotations changed since.
        """
        done, changed = set(self.names if self.started else ()), []
        for name in sorted(done.intersection(digests or ())):
            record = self.record(name)
            what = [key for key, digest in digests[name].items() if record[key] != digest]
            if what:
                changed.append(f"{name} ({', '.join(key.split('_')[0] for key in what)})")
        require(
            not changed,
            f"{count_of(len(changed), 'image')} changed after reading into {str(self.folder)!r}: "
            f"{', '.join(changed[:5])}. Choose another folder for the results.",
        )
        return {name: path for name, path in image_paths.items() if name not in done}

    @cached_property
    def _lock(self) -> FileLock:
        return FileLock(self._inner("lock"))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for one run, whose forked processes write to it too.

        A lock ends with the process that holds it, so none is left behind. The same `Results` may
        hold the folder again within. Raises ValueError if another run holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            hold = self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"Another run is writing to {str(self.folder)!r}: wait for its end, or choose "
                "another folder."
            ) from error
        with hold:
            yield

    def begin(self, run: dict, process: int = 0) -> None:
        """Start `run`, or go on with it, as the process of that number.

        Raises ValueError as `refuse_another` does.
        """
        self.refuse_another(run)
        if not any(self._inner("parts").glob("*.pkl")):
            save(self.folder / "run.pkl", run, check_run)
        self._forget()  # another process may have written since
        shape = len(SEGMENTS), len(run["layers"]), len(run["tokens"])
        counts, sums = np.zeros(shape[0], dtype=int), np.zeros(shape)
        empty = {"images": [], "skipped": {}, "n_images": counts, "sums": sums}
        self.process, self.part = process, self.parts.get(process, empty)

    def _forget(self) -> None:
        for name in ("run", "parts", "names"):
            self.__dict__.pop(name, None)

    def refuse_another(self, run: dict) -> None:
        """Raise ValueError if the folder holds results of another run than `run`.

        It names the setting that differs, or a field of `run` that could not be saved.
        """
        check_run(run)
        if not any(any(self._inner(name).glob("*.pkl")) for name in ("images", "parts")):
            return
        remedy = "choose another folder, or delete what is in this one."
        half = "records but no run.pkl, perhaps half of a copy: set go_on_from as before"
        require(self.started, f"{str(self.folder)!r} holds {half}, {remedy}")
        before = load(self.folder / "run.pkl", check_run)
        for key in sorted(run.keys() - {"packages", "last_layer_jsd"}):
            there, now = str(before[key]), str(run[key])
            another = f"results of another run ({key}: {there[:100]} there, {now[:100]} now)"
            require(there == now, f"{str(self.folder)!r} holds {another}: {remedy}")

    def add(self, record: dict, mean_probability: np.ndarray) -> None:
        """Save the record of an image and count the image.

        `mean_probability` `[segment, layer, d_vocab]` is NaN for a segment without positions.
        Raises ValueError if the image is counted already, FileNotFoundError if the folder was
        deleted.
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
        self.__dict__.pop("names", None)

    def continue_from(self, earlier=None) -> None:
        """Clear what a killed run left half-written, and copy an earlier run into a new folder.

        The copy is of the run in or under the folder `earlier`; a run that was started here already
        is kept in its place. Raises FileNotFoundError or ValueError if `earlier` holds no run or a
        damaged one, ValueError if another run is writing here.
        """
        with self.held():
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
                self._forget()
