"""One folder of results: records, parts, resuming."""

import difflib
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from llava_lens.checks import check_part, check_record, check_run
from llava_lens.files import files_under, locked
from llava_lens.pickles import load, save
from llava_lens.schema import SEGMENTS
from llava_lens.text import require


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

    unread = left  # the name that stays
