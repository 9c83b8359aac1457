"""Tables of the route (activation patching) and of attention knockout."""

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import curves_by_kind, per_image, repeat_over_layers
from llava_lens.analysis.stats import stays_from

PATCHED = ("image", "question", "last")  # groups of positions; of ROUTE
# Of the logit difference between the two runs. Below it rounding in float16 (0.016 at a logit of
# 20) becomes a few per cent of an effect, and the two answers are hardly told apart.
LEAST_DIFFERENCE = 0.5
UNKNOWN = {"leaves_image": np.nan, "handed_over": np.nan, "mediated": np.nan}


def effects_of(prompt: dict) -> dict[str, np.ndarray]:
    """The normalised effects of patching `[route_layer]` by group (PATCHED), and of the question at
    all layers at once as `mediated`: (own - patched) / (own - counterfactual).

    0 is the own answer, 1 the counterfactual's. Empty without a counterfactual, or where the two
    differ by less than LEAST_DIFFERENCE. Sources: Heimersheim and Nanda, arXiv 2404.15255; Zhang
    and Nanda, arXiv 2309.16042.
    """
    route = prompt.get("route") or {"own": 0.0, "counterfactual": 0.0}
    difference = route["own"] - route["counterfactual"]
    if difference < LEAST_DIFFERENCE:  # each run prefers its own answer: it is positive
        return {}
    return {
        name: (route["own"] - np.asarray(route[name], dtype=float)) / difference
        for name in (*PATCHED, "mediated")
    }


def route_layers_of(prompt: dict, run: dict) -> dict[str, float]:
    """Where an answer is on its way, as layer numbers, and how much of it is `mediated`; NaN
    without effects. docs/method.md says what each means."""
    effects = effects_of(prompt)
    if not effects:
        return UNKNOWN
    numbers = np.append(run["route_layers"], run["n_layers"] + 1.0)  # with never
    return {
        "leaves_image": numbers[stays_from(effects["image"] < 0.5)],
        "handed_over": numbers[stays_from(effects["last"] > 0.5)],
        "mediated": float(effects["mediated"]),
    }


def route_rows(record: dict, run: dict) -> list[tuple[dict, dict]]:
    """For `routes`: a row per prompt that has a route."""
    rows = []
    for number, prompt in enumerate(record["prompts"]):
        if effects := effects_of(prompt):
            about = {"image": record["name"], "prompt": number, "kind": prompt["kind"]}
            about |= route_layers_of(prompt, run)
            rows.append((about, {f"effect_{name}": effects[name] for name in PATCHED}))
    return rows


def routes(rows: list[tuple[dict, dict]], run: dict) -> pd.DataFrame:
    """From the `route_rows` of all records a row per answer and route layer: `effect_image`,
    `effect_question` and `effect_last` (`effects_of`), and the columns of `route_layers_of`."""
    if rows:
        return repeat_over_layers(rows, np.array(run["route_layers"]))
    names = [f"effect_{name}" for name in PATCHED]
    return pd.DataFrame(columns=["image", "prompt", "kind", *UNKNOWN, "layer", *names])


def route_curves(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Per kind of prompt the `layer_curve` of the effects in `routes`, by `patched` (PATCHED)."""
    groups = [
        table.assign(patched=name, effect=table[f"effect_{name}"].astype(float)) for name in PATCHED
    ]
    return curves_by_kind(pd.concat(groups), "effect", "patched")


def knockout_rows(record: dict, run: dict) -> list[dict]:
    """For `knockouts`: a row per prompt, cut and window."""
    rows, centres = [], window_centres(run)
    for number, prompt in enumerate(record["prompts"]):
        about = {"image": record["name"], "prompt": number, "kind": prompt["kind"]}
        at_word = prompt["n_prompt"] - 1 + prompt["word_at"]
        undisturbed = float(prompt["readings"]["target_prob"][-1, at_word])
        for cut, probs in prompt["knockout"].items():
            # Most cuts are made in all blocks at once only: one number, of the last window.
            for layer, prob in zip(centres[-np.size(probs) :], np.atleast_1d(probs), strict=True):
                change = float(prob) - undisturbed
                rows.append({**about, "cut": cut, "layer": layer, "change": change})
    return rows


def knockouts(rows: list[dict]) -> pd.DataFrame:
    """What cutting attention does to P(answer), from the `knockout_rows` of all records.

    - `layer`: the centre of the window's blocks, block l making layer l; one past the last layer
      for all blocks at once
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
    return curves_by_kind(table, "change", "cut", "change")


def changes_by_window(table: pd.DataFrame, run: dict, cut: str) -> pd.DataFrame:
    """The mean change `[image, window]` of a cut in the windows of some blocks."""
    return per_image(table[(table["cut"] == cut) & (table["layer"] <= run["n_layers"])], "change")
