"""At which layers a lens is said to find objects, and what sinks change of it."""

import numpy as np
import pytest

from llava_lens.analysis import grounding, lenses
from tests.analysis.made import GRID, RUN, grounding_of, planted


def with_lens(records, top=0.5):
    """Give records cosines that mark the dog's patches at all layers, and norms."""
    for record in records:
        inside = grounding.patches_of(record, RUN, "dog")
        for word in record["words"]:
            word["cosines"] = np.tile(inside * word["present"] * top, (3, 1)).astype("f2")
        ids = np.where(inside, 0, 1).astype("u1")
        record["patches"]["embedding_ids"] = np.tile(ids[None, :, None], (2, 1, 5))
        record["patches"]["norms"] = np.ones((3, GRID**2), "f2")
    return records


def said(records, run=RUN):
    return {each["about"]: each for each in lenses.lenses(run, grounding_of(records, run))}


def test_a_lens_finds_objects_from_the_layer_on_at_which_they_were_planted():
    """P(word) is planted from the second layer on, whose number is 2. One image has no control of
    places: its box lies within the one before."""
    found = said(with_lens(planted(20)))
    logit, embedding = found["logit lens"], found["embedding lens"]
    assert (logit["outcome"], logit["value"], logit["high"], logit["n"]) == ("shown", 2, 5, 19)
    assert logit["sentence"] == "The logit lens finds objects from layer 2 on (19 images)."
    assert embedding["value"] == 0 and "from the embedding on" in embedding["sentence"]
    table = grounding_of(with_lens(planted(20)), RUN)
    assert (table["auroc_embedding"] == 1).all()
    hits = table.groupby("layer")["top1_hit_rate_embedding"]
    assert hits.min().fillna(-1).tolist() == [1, -1, 1] and (hits.count() == [20, 0, 20]).all()
    assert (table["auroc_embedding_absent"] == 0.5).all()


def test_a_word_below_chance_is_not_found_although_absent_ones_are_further_below():
    records = planted(20)
    for record in records:
        inside = grounding.patches_of(record, RUN, "dog")
        for word, less in zip(record["words"], (1, 9), strict=True):
            word["log2_probs"] = np.random.default_rng(0).normal(-9, 1, (3, GRID**2))
            word["log2_probs"][:, inside] -= less
    assert said(records)["logit lens"]["outcome"] == "not shown"


def test_few_images_and_a_lens_that_was_not_read_are_said():
    found = said(planted(3))
    few = found["logit lens"]["sentence"]
    assert few == "Not tested: the logit lens (3 images with a control)."
    assert found["embedding lens"]["sentence"] == ""
    for records in (planted(3), []):
        outcomes = [(each["outcome"], each["claim"]) for each in said(records).values()]
        assert outcomes == [("not tested", lenses.FINDS)] * 2


def test_tied_embeddings_are_said_where_both_lenses_were_read():
    records = with_lens(planted(12))
    assert lenses.TIED in said(records, RUN | {"tied": True})["embedding lens"]["sentence"]
    assert not any(lenses.TIED in each["sentence"] for each in said(records).values())


@pytest.mark.parametrize(
    "holds, expected",
    [([0, 0, 0], None), ([1, 0, 1], (2, 2)), ([1, 1, 0, 1], (0, 1)), ([0, 1, 1], (1, 2))],
)
def test_the_longest_run(holds, expected):
    assert lenses.longest_run(np.array(holds, bool)) == expected


def test_sinks_are_large_at_more_than_half_of_the_layers():
    (record,) = with_lens(planted(1))
    assert not grounding.sink_patches(record).any()
    record["patches"]["norms"][:2, 7] = 50  # two layers of three
    record["patches"]["norms"][2, 8] = 50
    assert np.flatnonzero(grounding.sink_patches(record)).tolist() == [7]
    del record["patches"]["norms"]
    assert grounding.sink_patches(record) is None


def test_sinks_are_counted_and_what_only_they_show_is_lost_without_them():
    records = with_lens(planted(20))
    assert "at the same layers" in said(records)["patches"]["sentence"]
    few = said(records[:3])["patches"]["sentence"]
    # Nothing was shown that could be lost.
    assert few == "Sinks, patches with far longer states: 0 per image on average, on 3 images."
    for record in records:
        inside = np.flatnonzero(grounding.patches_of(record, RUN, "dog"))
        word = record["words"][0]
        word["cosines"][:] = -0.1 * np.isin(np.arange(GRID**2), inside[2:])
        word["cosines"][:, inside[:2]] = 0.5
        record["patches"]["norms"][:, inside[:2]] = 50
    found = said(records)
    assert found["embedding lens"]["outcome"] == "not shown"
    sentence = found["patches"]["sentence"]
    assert found["patches"]["value"] == 2 and sentence.startswith("Sinks, patches with far")
