"""Tables to curves over layers, with intervals."""

import numpy as np
import pandas as pd

from llava_lens.analysis.stats import interval, kl_bits
from llava_lens.kinds import KINDS
from llava_lens.schema import SEGMENTS, layer_numbers

SERIES = ("jsd_prev", "jsd_final", "entropy")  # of a record's readings


def per_layer(rows: list[tuple[dict, dict]], numbers: np.ndarray) -> pd.DataFrame:
    """A table of a row per one of `rows` and layer; each of `rows` is its values that hold at all
    layers and its columns `[layer]`."""
    constants, columns = zip(*rows, strict=True)
    table = {}
    for name, value in constants[0].items():
        # Not pandas' own kind of text, which would copy a question to all rows: these refer to it.
        dtype = type(value) if type(value) in (int, float) else object
        values = np.array([constant[name] for constant in constants], dtype=dtype)
        table[name] = np.repeat(values, len(numbers))
    table["layer"] = np.tile(numbers, len(rows))
    for name in columns[0]:
        table[name] = np.concatenate([column[name] for column in columns])
    series = {name: pd.Series(values, dtype=values.dtype) for name, values in table.items()}
    return pd.DataFrame(series)


def top_tokens(mean: np.ndarray, run: dict, n: int = 30) -> pd.DataFrame:
    """The `n` tokens with the largest mean probability over all layers, from `mean`
    `[layer, d_vocab]`.

    Columns: `token`, `id`, `mean` over the layers, then one column per layer, by label.
    """
    over_layers = mean.mean(axis=0)
    ids = np.argsort(-over_layers, kind="stable")[:n]
    columns = {"token": [run["tokens"][i] for i in ids], "id": ids, "mean": over_layers[ids]}
    per_layer = dict(zip(run["layers"], mean[:, ids], strict=True))
    return pd.DataFrame({**columns, **per_layer})


def first_tokens(answers: pd.DataFrame) -> pd.DataFrame:
    """A row per image and prompt: of the columns of `answers` (`tabulate`), those that don't vary
    by layer are the first answer token's."""
    return answers[(answers["token"] == 0) & (answers["layer"] == answers["layer"].min())]


def whole_words(answers: pd.DataFrame) -> pd.DataFrame:
    """The rows of `answers` on first tokens that are a whole word. Where it is a piece, it may be
    one of another word, and says nothing about the answer's."""
    return answers[(answers["token"] == 0) & answers["whole_word"].astype(bool)]


def per_image(table: pd.DataFrame, column: str, by: str = "layer") -> pd.DataFrame:
    """The mean of `column` within each image `[image, by]`: images, not rows, are independent."""
    return table.groupby(["image", by])[column].mean().unstack(by).astype(float)


def layer_curve(table: pd.DataFrame, column: str, by: str) -> pd.DataFrame:
    """The mean of `column` over images per group and layer, with its interval.

    Columns: `by`, `layer` (number), `mean`, `low` and `high` (`interval`; NaN for a group of fewer
    than MIN_IMAGES images). A layer without values, such as JSD to the layer before the first, is
    left out.
    """
    curves = [pd.DataFrame(columns=[by, "layer", "mean", "low", "high"])]
    for group, rows in table.groupby(by, sort=False):
        values = per_image(rows, column).dropna(how="all").dropna(axis=1, how="all")
        if values.empty:
            continue
        low, high = interval(values.to_numpy())
        mean = values.mean().to_numpy()
        curve = {by: group, "layer": values.columns, "mean": mean, "low": low, "high": high}
        curves.append(pd.DataFrame(curve))
    return pd.concat(curves[1:] or curves, ignore_index=True)


def bias_curve(mean_probability: np.ndarray, run: dict) -> pd.DataFrame:
    """The lens's own bias at each layer, per segment: the Kullback-Leibler divergence, in bits, of
    the mean distribution there from the mean distribution at the last layer, `[segment, layer,
    d_vocab]`.

    A lens that prefers some tokens whatever the input has a large one. Columns: `segment`, `layer`,
    `bias`. Source: Belrose et al., arXiv 2303.08112.
    """
    rows = []
    for segment, mean in zip(SEGMENTS, mean_probability, strict=True):
        if mean.any():  # a run of one-token answers has no answer positions
            bias = kl_bits(mean[-1], mean)
            rows += zip([segment] * len(bias), layer_numbers(run), bias, strict=True)
    return pd.DataFrame(rows, columns=["segment", "layer", "bias"])


def answer_curves(answers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The curves (`layer_curve`) of the answer's first word (`whole_words`) by `kind`.

    - `probability`, `control_probability`: mean probability with the image and with another one (a
      grey one, where there is no other)
    - `rank`, `control_rank`: mean log10 of its rank, so 10 to its power is the geometric mean
    """
    first = whole_words(answers)
    control = {c: first[f"other_{c}"].fillna(first[f"grey_{c}"]) for c in ("probability", "rank")}
    first = first.assign(
        control_probability=control["probability"],
        rank=np.log10(first["rank"]),
        control_rank=np.log10(control["rank"]),
    )
    columns = ("probability", "control_probability", "rank", "control_rank")
    return {column: layer_curve(first, column, "kind") for column in columns}


def _by_kind(first: pd.DataFrame, row_of) -> pd.DataFrame:
    """A row per kind of prompt that there is: `row_of(its rows)`."""
    kinds = filter(set(first["kind"]).__contains__, KINDS)
    return pd.DataFrame.from_dict(
        {kind: row_of(first[first["kind"] == kind]) for kind in kinds}, orient="index"
    )
