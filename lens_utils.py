"""The pipeline on one page: what both notebooks call, in the order of the data's way.

Make_Analyse: prepare, load_images, analyse, what_was_saved, look.
Visualise_Analyse: prepare, open_results, tabulate.
"""

import difflib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from llava_lens import kaggle, schema
from llava_lens.analysis.answers import answer_rows, answers_table, layer_rows, layers_table
from llava_lens.analysis.causal import knockout_rows, knockouts, route_rows, routes
from llava_lens.analysis.grounding import Grounding
from llava_lens.analysis.presence import category_confidence, watched_of
from llava_lens.data.annotations import Annotations, annotate, find_data_set
from llava_lens.data.images import digests_of, find_images
from llava_lens.data.prompts import as_prompts
from llava_lens.figures.explorer import Inline, index_entry, show
from llava_lens.store import Results
from llava_lens.text import check_number, count_of, require

# torch reads this when it is imported: spinning idle threads made reading up to 50 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
DEMO, HUB = "demo/model", "llava-hf/llava-1.5-7b-hf"
prepare = kaggle.prepare_kaggle


class Images(NamedTuple):
    """What there is to read: images by name, and what their annotations say."""

    folder: Path
    paths: dict[str, Path]  # by name
    annotations: Annotations  # by name


def load_images(folder=None, limit: int | None = None) -> Images:
    """Find the images under `folder`, read their annotations, and say what was found.

    Without a folder: Kaggle's attached data set, or the demo's scenes. `limit`: only the first so
    many. Raises ValueError for a bad `limit`, FileNotFoundError where there is no image.
    """
    check_number("limit", limit)
    folder = Path(folder or (find_data_set() if kaggle.on_kaggle() else "demo/scenes"))
    everything = find_images(folder)
    annotations = annotate(folder, everything)
    paths = dict(list(everything.items())[:limit])
    annotated, problems = len(annotations.objects.keys() & paths.keys()), annotations.problems
    known = f"{annotated} of them annotated with {len(annotations.categories)} categories"
    print(f"{count_of(len(paths), 'image')} under {folder}, {known}")
    if annotations.files:
        print(annotations.files)
    for problem in problems[:20] + [f"{len(problems) - 20} more"] * (len(problems) > 20):
        print(f"not used: {problem}")
    return Images(folder, paths, annotations)


def analyse(images, results="results", processes=None, hours=None, go_on_from=None, **settings):
    """Read every one of `images` (Images) that has no record in the folder `results` yet.

    All others are parameters of Make_Analyse; `settings` are those of `model.load.Settings`. Raises
    ValueError, which names it, for a setting or folder that can't be used, and as `read_images`.
    """
    require(isinstance(images, Images), "images must be what load_images returns.")
    settings["deadline"] = kaggle.deadline_after(8.0 if hours is None else hours)
    check_number("processes", processes)
    settings, gpus = _settings_and_gpus(settings, "results", "processes", "hours", "go_on_from")
    from accelerate import notebook_launcher

    from llava_lens.model.images import read_images
    from llava_lens.model.load import copies_that_fit

    to_read = _unread(images, results, go_on_from)
    print(f"To read into {results}: {len(to_read)} of {count_of(len(images.paths), 'image')}")
    if processes is None:
        processes = 1 if settings.device else copies_that_fit(settings, gpus)
    arguments = images.paths, images.annotations, results, settings, show
    with Results(results).held():
        if processes > 1:
            notebook_launcher(read_images, arguments, num_processes=processes)
        else:
            read_images(*arguments)


def look(image, question, other=None, folder=None, **settings) -> Inline:
    """Read one photograph with one question or several: the explorer's page, for a cell to show.

    `image` and `other` are paths (of a GIF: its first frame), PIL images or uint8 arrays `[height,
    width, rgb]`. The states of `other` (None: plain grey) are patched in for the route. `settings`
    are `analyse`'s. The model is kept. Only the page is saved, in `folder`. Raises as `read_one`.
    """
    require("prompts" not in settings, "look has no prompts: `question` is one text, or several.")
    questions = list(question) if isinstance(question, (list, tuple)) else [question]
    settings = {"knockout": False, **settings, "prompts": questions}
    settings, _ = _settings_and_gpus(settings, "other", "folder")
    from llava_lens.model.look import read_one

    page = Inline(*read_one(image, other, settings, folder))
    if folder:
        print(f"The page is saved: {page.save(folder)}")
    return page


def _settings_and_gpus(given: dict, *others: str) -> tuple:
    """The Settings of a run, and the GPUs here. None stands for a default, but prompts are a list.
    `others` are the other arguments that might be meant by an unknown name."""
    kaggle.prepare_quantize(given.get("quantize"))  # before torch is imported
    from llava_lens.model.load import Settings

    known = [*Settings.__annotations__, *others]
    for name in given:
        (near,) = difflib.get_close_matches(name, known, 1, cutoff=0)
        require(name in known, f"There is no setting {name!r}: the nearest is {near!r}.")
    given = {name: one for name, one in given.items() if one is not None or name == "prompts"}
    given = {"model": HUB if kaggle.on_kaggle() else DEMO, "prompts": []} | given
    given |= {"model": str(given["model"]), "prompts": as_prompts(given["prompts"])}
    gpus = kaggle.gpus_for(given.get("device"))
    settings = Settings(**{"dtype": "float16" if gpus else "float32", **given})
    if settings.model == DEMO:
        print(schema.DEMO_NOTE)
    return settings, gpus


def _unread(images: Images, results, go_on_from) -> dict[str, Path]:
    """The images without a record in `results`, by name; ValueError where one has changed since."""
    Results(results).continue_from(go_on_from)
    earlier = Results(results)
    digests = {
        name: digests_of(images.paths[name], *images.annotations.of(name))
        for name in images.paths.keys() & {*earlier.names}
    }
    return earlier.unread(images.paths, digests)


def what_was_saved(results, images: Images) -> None:
    """Say what the folder `results` holds, what of it is not of `images`, and what to do next."""
    out = Results(results)
    sizes = [out.record_path(name).stat().st_size / 1e6 for name in out.names]
    each = sum(sizes) / max(1, len(sizes))
    print(f"Results are in {out.folder.resolve()}")
    print(f"{count_of(len(sizes), 'image')} read, {sum(sizes):.1f} MB, {each:.2f} MB per image")
    for name, reason in out.skipped.items():
        print(f"skipped {name}: {reason}")
    if others := sorted(set(out.names) - images.paths.keys()):
        there = f"{count_of(len(others), 'image')} not under {images.folder} ({others[0]} ...)"
        print(f"All statistics count {there} too. To leave them out, change `results`.")
    print("Next: Visualise_Analyse.ipynb. On Kaggle, save this version and attach its output.")


def open_results(folder=None) -> Results:
    """Find the results in or under `folder` (None: Kaggle's attached data sets, or `results`), and
    say what they are. Raises as `Results.find`."""
    results = Results.find(folder or (kaggle.KAGGLE_INPUT if kaggle.on_kaggle() else "results"))
    skipped = f", {len(results.skipped)} skipped" * bool(results.skipped)
    model = f"{results.run['model']} ({schema.weights_label(results.run)}){skipped}"
    print(f"{count_of(len(results.names), 'image')} read with {model}, in {results.folder}")
    return results


class Tables(NamedTuple):
    """All that the second notebook shows of all images; each table's function says its columns."""

    layers: pd.DataFrame  # layers_table
    answers: pd.DataFrame  # answers_table
    grounded: pd.DataFrame  # Grounding.table
    confident: pd.DataFrame  # category_confidence
    routed: pd.DataFrame  # routes
    knocked: pd.DataFrame  # knockouts
    mean_probability: np.ndarray  # [segment, layer, d_vocab]
    pages: list[dict]  # per image, for the explorer's index


def tabulate(results: Results) -> Tables:
    """All tables from one pass over the records; one record at a time is in memory."""
    require(hasattr(results, "records"), "results must be what open_results returns.")
    run, grounding = results.run, Grounding(results.run)
    layers, answers, watched, routed, knocked, pages = [], [], [], [], [], []
    for record in results.records():
        layers += layer_rows(record, run)
        answers += answer_rows(record, run)
        grounding.add(record)
        watched.append(watched_of(record))
        routed += route_rows(record, run)
        knocked += knockout_rows(record, run)
        pages.append(index_entry(record, run))
    return Tables(
        layers_table(layers, run),
        answers_table(answers, run),
        grounding.table(),
        category_confidence(watched),
        routes(routed, run),
        knockouts(knocked),
        results.mean_probability(),
        pages,
    )
