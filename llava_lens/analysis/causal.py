"""Tables of the attention knockout."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import first_tokens, layer_curve, per_layer
from llava_lens.analysis.stats import interval, signed_rank
from llava_lens.kinds import KINDS
from llava_lens.schema import OF_OBJECTS


def knockouts(records: Iterable[dict], run: dict) -> pd.DataFrame:
    """What cutting attention does to P(first answer token): a row per image, prompt, way (KNOCKOUT)
    and window.

    - `layer`: the centre of the window's blocks, block l making layer l; one past the last layer
      for the window of all blocks
    - `change`: P with the cut minus P without; not as a share of P, which nothing would bound
    """
    rows = []
    for record in records:
        for number, prompt in enumerate(record["prompts"]):
            about = {"image": record["name"], "prompt": number, "kind": prompt["kind"]}
            undisturbed = prompt["readings"]["target_prob"][-1, prompt["n_prompt"] - 1]
            for way, probs in prompt["knockout"].items():
                rows.append(({**about, "way": way}, {"change": probs - undisturbed}))
    if rows:
        return per_layer(rows, _centres(run))
    return pd.DataFrame(columns=["image", "prompt", "kind", "way", "layer", "change"])


def _centres(run: dict) -> np.ndarray:
    """`layer` of `knockouts` `[window]`."""
    centres = np.mean(run["knockout_windows"], axis=1)
    return np.append(centres[:-1], run["n_layers"] + 1)


def knockout_curves(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The mean change by way (`layer_curve` of `knockouts`), for each kind of prompt there is."""
    kinds = filter(set(table["kind"]).__contains__, KINDS)
    return {kind: layer_curve(table[table["kind"] == kind], "change", "way") for kind in kinds}


def changes_by_window(table: pd.DataFrame, run: dict, way: str, rows=("image",)) -> pd.DataFrame:
    """The mean change `[*rows, window]` of a way in the windows of some blocks; columns are
    `layer`."""
    moved = table[(table["way"] == way) & (table["layer"] <= run["n_layers"])]
    return moved.groupby([*rows, "layer"])["change"].mean().unstack("layer")


def readable_and_used(table: pd.DataFrame, answers: pd.DataFrame, run: dict) -> pd.DataFrame:
    """A row per answer that some window's cut to its object's patches lowers by more than any
    window's cut to the control's changes it, from `knockouts` and `answers` of `tabulate`.

    `used` is the centre of the window that lowers it most, `readable` its readable layer (first
    token), `lead` by how many layers it is used before it is readable.
    """
    own, control = (changes_by_window(table, run, way, ("image", "prompt")) for way in OF_OBJECTS)
    own = own[-own.min(axis=1) > control.abs().max(axis=1)]
    found = first_tokens(answers).set_index(["image", "prompt"]).loc[own.index]
    found = found[["kind", "question", "readable_layer"]].rename(
        columns={"readable_layer": "readable"}
    )
    found["used"] = own.idxmin(axis=1).astype(float) if len(own) else 0.0
    return found.assign(lead=found["readable"] - found["used"]).reset_index()


def median_lead(used: pd.DataFrame) -> tuple[float, np.ndarray, float]:
    """Of `readable_and_used` the median over images of the mean `lead`, its `interval` `[2]`, and p
    of Wilcoxon's signed-rank test, two-sided."""
    lead = used.groupby("image")["lead"].mean()
    if lead.empty:
        return np.nan, np.full(2, np.nan), 1.0
    return lead.median(), interval(lead.to_numpy(), "median"), signed_rank(lead)
