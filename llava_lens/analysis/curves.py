"""Tables to curves over layers, with intervals."""

import numpy as np
import pandas as pd

from llava_lens.analysis.stats import TINY, interval
from llava_lens.kinds import KINDS
from llava_lens.schema import SEGMENTS, layer_numbers

# Of a record's readings `[layer, pos]`; all three are in bits, as the schema bounds them.
SERIES_IN_BITS = ("jsd_prev", "jsd_final", "entropy")


def repeat_over_layers(rows: list[tuple[dict, dict]], numbers: np.ndarray) -> pd.DataFrame:
    """A table with a row per one of `rows` and layer; empty without rows. Each row is `(constants,
    columns)`: values shared by all layers, and one array `[layer]` per column."""
    if not rows:
        return pd.DataFrame()
    constants, columns = zip(*rows, strict=True)
    table = {}
    for name, value in constants[0].items():
        # Not pandas' own kind of text, which would copy a question to all rows: these refer to it.
        dtype = type(value) if type(value) in (int, float) else object
        # Not np.array, which makes tuples of one length a second axis.
        values = np.fromiter((constant[name] for constant in constants), dtype, len(constants))
        table[name] = np.repeat(values, len(numbers))
    table["layer"] = np.tile(numbers, len(rows))
    for name in columns[0]:
        table[name] = np.concatenate([column[name] for column in columns])
    return pd.DataFrame({name: pd.Series(v, dtype=v.dtype) for name, v in table.items()})


def top_tokens(mean: np.ndarray, run: dict, n: int = 30) -> pd.DataFrame:
    """The `n` tokens with the largest mean probability over all layers, from `mean`
    `[layer, d_vocab]`: `token`, `id`, `mean` over the layers, then a column per layer, by label."""
    over_layers = mean.mean(axis=0)
    ids = np.argsort(-over_layers, kind="stable")[:n]
    columns = {"token": [run["tokens"][i] for i in ids], "id": ids, "mean": over_layers[ids]}
    by_layer = dict(zip(run["layers"], mean[:, ids], strict=True))
    return pd.DataFrame({**columns, **by_layer})


def first_tokens(answers: pd.DataFrame) -> pd.DataFrame:
    """A row per image and prompt, from the table of answers: its word's answer token (`word_at`,
    nearly always the first) at the first layer. Use only columns that don't vary by layer."""
    at_word = answers["token"] == answers["word_at"]
    return answers[at_word & (answers["layer"] == answers["layer"].min())]


def whole_words(answers: pd.DataFrame) -> pd.DataFrame:
    """The rows of `answers` on the answer's word, of answers that begin with a whole word: a piece
    may begin another word, so it says nothing about the answer's."""
    at_word = answers["token"] == answers["word_at"]
    return answers[at_word & answers["whole_word"].astype(bool)]


def per_image(table: pd.DataFrame, column: str, by: str = "layer") -> pd.DataFrame:
    """The mean of `column` within each image `[image, by]`: images, not rows, are independent."""
    return table.groupby(["image", by])[column].mean().unstack(by).astype(float)


def layer_curve(table: pd.DataFrame, column: str, by: str, of: str = "mean") -> pd.DataFrame:
    """The `mean` of `column` over images per group and `layer` (number), with its `interval` `low`
    and `high`, `of` a mean or a change. A layer without values is left out, as the first of JSD."""
    curves = [pd.DataFrame(columns=[by, "layer", "mean", "low", "high"])]
    for group, rows in table.groupby(by, sort=False):
        values = per_image(rows, column).dropna(how="all").dropna(axis=1, how="all")
        if values.empty:
            continue
        low, high = interval(values.to_numpy(), of)
        mean = values.mean().to_numpy()
        curve = {by: group, "layer": values.columns, "mean": mean, "low": low, "high": high}
        curves.append(pd.DataFrame(curve))
    return pd.concat(curves[1:] or curves, ignore_index=True)


def split_by_kind(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each kind of prompt that there is, in the order of KINDS."""
    kinds = filter(set(table["kind"]).__contains__, KINDS)
    return {kind: table[table["kind"] == kind] for kind in kinds}


def curves_by_kind(table: pd.DataFrame, *of_curve: str) -> dict[str, pd.DataFrame]:
    """`layer_curve` for each kind of prompt that there is, with what it takes beside the table."""
    return {kind: layer_curve(rows, *of_curve) for kind, rows in split_by_kind(table).items()}


def bias_curve(mean_probability: np.ndarray, run: dict) -> pd.DataFrame:
    """The lens's own `bias` per `segment` and `layer`, in bits: the Kullback-Leibler divergence of
    the mean distribution at the layer from that at the last, from `mean_probability`
    `[segment, layer, d_vocab]`. It is large where the lens prefers some tokens whatever the input.
    Source: Belrose et al., arXiv 2303.08112.
    """
    rows = []
    for segment, mean in zip(SEGMENTS, mean_probability, strict=True):
        if mean.any():  # a run of one-token answers has no answer positions
            p, q = np.maximum(mean[-1], TINY), np.maximum(mean, TINY)
            bias = (p * np.log2(p / q)).sum(-1)
            rows += zip([segment] * len(bias), layer_numbers(run), bias, strict=True)
    return pd.DataFrame(rows, columns=["segment", "layer", "bias"])


def answer_curves(answers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The curves (`layer_curve`) of the answer's word (`whole_words`) by `kind`: `probability` and
    `rank` (log10) with the image, `other_probability` and `other_rank` with another one."""
    word = whole_words(answers)
    word = word.assign(rank=np.log10(word["rank"]), other_rank=np.log10(word["other_rank"]))
    columns = ("probability", "other_probability", "rank", "other_rank")
    return {column: layer_curve(word, column, "kind") for column in columns}
