"""The logit lens and the embedding lens on patches: their curves, at which layers each finds
objects, and whether sinks matter for that."""

import itertools

import numpy as np
import pandas as pd

from llava_lens.analysis import stats
from llava_lens.analysis.curves import layer_curve
from llava_lens.analysis.grounding import CONTROLS, LENSES, MEASURES, difference
from llava_lens.analysis.stats import MEASURED, NOT_SHOWN, NOT_TESTED, SHOWN, finding
from llava_lens.schema import layer_label, layer_numbers
from llava_lens.text import count_of, one_decimal

NO_WORD = "all patches: no word at all"  # by the logit lens
FINDS, SINKS = "a lens finds objects", "sinks"
TIED = (
    " The input embedding is the unembedding here: the lenses differ by the final norm, the "
    "lengths of its rows and the softmax only."
)


def grounding_curves(table: pd.DataFrame, layers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """MEASURES as curves (`layer_curve`) by `size`: SIZES (of the logit lens), and LENSES, of all
    sizes, without and with the names of CONTROLS. `top1_hit_rate` has NO_WORD too, the share of
    patches that decode to no word, from `layers_table`."""
    groups = [table]
    for (lens, column), (control, name) in itertools.product(
        LENSES.items(), [("", ""), *CONTROLS.items()]
    ):
        if f"auroc{column}" in table:
            of_lens = {each: table[f"{each}{column}{control}"] for each in MEASURES}
            groups.append(table.assign(size=lens + name, **of_lens).dropna(subset="auroc"))
    patches = layers[layers["segment"] == "image"]
    no_word = patches.assign(size=NO_WORD, top1_hit_rate=patches["no_word"])
    rows = pd.concat(groups)
    return {
        "auroc": layer_curve(rows, "auroc", "size"),
        "top1_hit_rate": layer_curve(pd.concat([rows, no_word]), "top1_hit_rate", "size"),
    }


def longest_run(holds: np.ndarray) -> tuple[int, int] | None:
    """The first and last position of the longest run of True in `holds` `[layer]`, the later one of
    two that are as long; None without any."""
    ends = np.flatnonzero(np.diff([False, *holds, False]))
    runs = ends.reshape(-1, 2)  # [run, first and one past the last]
    if not len(runs):
        return None
    first, end = max(runs.tolist(), key=lambda run: (run[1] - run[0], run[0]))
    return first, end - 1


def lenses(run: dict, grounded: pd.DataFrame) -> list[dict]:
    """For each lens the layers at which it finds objects, then the sinks where they are known, with
    the same layers without them.

    Of the longest run of layers at which a lens finds objects (docs/method.md) `value` is the first
    and `high` the last. A lens that was not read is not tested, without a sentence.
    """
    known = set(grounded.columns[grounded.notna().any()])
    read = [lens for lens, column in LENSES.items() if f"auroc{column}" in known]
    not_read = [finding(FINDS, lens, NOT_TESTED, n=0) for lens in LENSES if lens not in read]
    found = [_found(run, grounded, lens, len(read)) for lens in read]
    if run.get("tied") and len(read) == 2:
        found[-1]["sentence"] += TIED
    if "sinks" not in known:
        return found + not_read
    without = [_found(run, grounded, lens, len(read), "_no_sinks") for lens in read]
    return [*found, *not_read, _sinks(grounded, found, without)]


def _found(run: dict, grounded: pd.DataFrame, lens: str, n_lenses: int, end="") -> dict:
    column = LENSES[lens]
    own, places = f"auroc{column}{end}", f"auroc_places{column}"
    pairs = [(own, "chance"), (own, f"auroc{column}_absent{end}"), (places, f"{places}_swapped")]
    rows = grounded.assign(chance=0.5).dropna(subset=[name for pair in pairs for name in pair])
    above = [difference(rows, *pair).to_numpy() for pair in pairs]
    n, n_layers = above[0].shape
    if n < stats.MIN_IMAGES:
        sentence = f"Not tested: the {lens} ({count_of(n, 'image')} with a control)."
        return finding(FINDS, lens, NOT_TESTED, sentence, n=n)
    lows = [stats.interval(each, n_chosen_from=n_lenses * n_layers)[0] for each in above]
    shown = longest_run(np.min(lows, axis=0) > 0)
    if shown is None:
        sentence = f"Not shown: that the {lens} finds objects at any layer ({n} images)."
        return finding(FINDS, lens, NOT_SHOWN, sentence, n=n)
    first, last = layer_numbers(run)[[*shown]]
    begin, end = (f"layer {layer_label(run, n)}" if n else "the embedding" for n in (first, last))
    where = f"from {begin} to {end}" if first < last else f"at {begin}"
    where = f"from {begin} on" if shown[1] == n_layers - 1 else where
    sentence = f"The {lens} finds objects {where} ({n} images)."
    return finding(FINDS, lens, SHOWN, sentence, value=first, high=last, n=n)


def _sinks(grounded: pd.DataFrame, found: list[dict], without: list[dict]) -> dict:
    """How many patches are sinks, and what the lenses say without them, if they find anything."""
    counts = grounded.groupby("image")["sinks"].first().dropna()
    mean, n = one_decimal(counts.mean()), count_of(len(counts), "image")
    sentence = f"Sinks, patches with far longer states: {mean} per image on average, on {n}."
    changed = [
        after["sentence"]
        for before, after in zip(found, without, strict=True)
        if any(before[name] != after[name] for name in ("outcome", "value", "high"))
    ]
    same = " Without them the lenses find objects at the same layers."
    if SHOWN in {each["outcome"] for each in found + without}:
        sentence += f" Without them: {' '.join(changed)}" if changed else same
    return finding(SINKS, "patches", MEASURED, sentence, value=counts.mean(), n=len(counts))
