"""The pipeline on one page: what both notebooks call."""

import os
from typing import NamedTuple

import numpy as np
import pandas as pd

# Idle torch threads sleep: with one of two cores busy, spinning made reading an image 50 times
# slower. torch reads this once, when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from llava_lens.analysis.answers import answer_rows, answers_table, layer_rows, layers_table
from llava_lens.analysis.causal import knockout_rows, knockouts, route_rows, routes
from llava_lens.analysis.grounding import Grounding
from llava_lens.analysis.presence import category_confidence, watched_of
from llava_lens.store import Results


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
    run, grounding = results.run, Grounding(results.run)
    layers, answers, watched, routed, knocked, pages = [], [], [], [], [], []
    for record in results.records():
        layers += layer_rows(record, run)
        answers += answer_rows(record, run)
        grounding.add(record)
        watched.append(watched_of(record))
        routed += route_rows(record, run)
        knocked += knockout_rows(record, run)
        # Here: pages.append(index_entry(record, run))
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
