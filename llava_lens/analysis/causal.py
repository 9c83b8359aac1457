"""Tables of the attention knockout."""

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import first_tokens, layer_curve
from llava_lens.analysis.stats import interval, signed_rank
from llava_lens.kinds import KINDS
from llava_lens.schema import OF_OBJECTS


def knockout_rows(record: dict, run: dict) -> list[dict]:
    """The rows of one record for `knockouts`."""
    rows, centres = [], window_centres(run)
    for number, prompt in enumerate(record["prompts"]):
        about = {"image": record["name"], "prompt": number, "kind": prompt["kind"]}
        undisturbed = float(prompt["readings"]["target_prob"][-1, prompt["n_prompt"] - 1])
        for cut, probs in prompt["knockout"].items():
            # A cut that was made in all blocks at once only has one number: the last window's.
            for layer, prob in zip(centres[-np.size(probs) :], np.atleast_1d(probs), strict=True):
                change = float(prob) - undisturbed
                rows.append({**about, "cut": cut, "layer": layer, "change": change})
    return rows


def knockouts(rows: list[dict]) -> pd.DataFrame:
    """What cutting attention does to P(first answer token): from the `knockout_rows` of all records
    a row per image, prompt, cut (KNOCKOUT) and window.

    - `layer`: the centre of the window's blocks, block l making layer l; one past the last layer
      for the window of all blocks
    - `change`: P with the cut minus P without; not as a share of P, which nothing would bound
    """
    return pd.DataFrame(rows, columns=["image", "prompt", "kind", "cut", "layer", "change"])


def window_centres(run: dict) -> np.ndarray:
    """`layer` of `knockouts` `[window]`."""
    if not run["knockout_windows"]:
        return np.zeros(0)
    centres = np.mean(run["knockout_windows"], axis=1)
    return np.append(centres[:-1], run["n_layers"] + 1)


def knockout_curves(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The mean change by cut (`layer_curve` of `knockouts`), for each kind of prompt there is."""
    kinds = filter(set(table["kind"]).__contains__, KINDS)
    return {kind: layer_curve(table[table["kind"] == kind], "change", "cut") for kind in kinds}


def changes_by_window(table: pd.DataFrame, run: dict, cut: str, rows=("image",)) -> pd.DataFrame:
    """The mean change `[*rows, window]` of a cut in the windows of some blocks; columns are
    `layer`."""
    moved = table[(table["cut"] == cut) & (table["layer"] <= run["n_layers"])]
    return moved.groupby([*rows, "layer"])["change"].mean().unstack("layer")


def readable_and_used(table: pd.DataFrame, answers: pd.DataFrame, run: dict) -> pd.DataFrame:
    """A row per answer that some window's cut to its object's patches lowers by more than any
    window's cut to the control's changes it, from `knockouts` and `answers` of `tabulate`.

    `used` is the centre of the window that lowers it most, `readable` its readable layer (first
    token), `lead` by how many layers it is used before it is readable.
    """
    own, control = (changes_by_window(table, run, cut, ("image", "prompt")) for cut in OF_OBJECTS)
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
