"""Layers at which a curve has risen, intervals, tests, AUROCs."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from llava_lens.analysis import stats


def test_settling_layer_against_a_loop():
    rank = np.random.default_rng(0).integers(1, 3, (6, 500))
    rank[-1] = 1
    for column, settled in zip(rank.T, stats.settling_layer(rank), strict=True):
        assert (column[settled:] == 1).all() and (settled == 0 or column[settled - 1] != 1)


def test_the_best_rival_is_no_spelling_of_the_word():
    ids, probs = np.array([[4, 7, 9], [7, 9, 4]]), np.array([[0.5, 0.3, 0.1], [0.6, 0.2, 0.1]])
    assert stats.best_rival(ids, probs, [4, 9]).tolist() == [0.3, 0.6]
    # A top-k without a rival: it has at most the last one's.
    assert stats.best_rival(ids, probs, [4, 7, 9]).tolist() == [0.1, 0.1]


def test_readable_layer_by_hand():
    margin = np.array([
        [-2.0, 1.0, 0.0, -1.0], [3.0, 1.0, 0.0, 2.0], [1.9, 1.0, 0.0, 3.0], [2.0, 1.0, 0.0, 1.0],
        [4.0, 1.0, 0.0, -0.1],
    ])  # fmt: skip
    assert stats.readable_layer(margin).tolist() == [3, 0, 5, 5]
    assert stats.readable_layer(margin, 0.25).tolist() == [1, 0, 5, 5]
    assert stats.readable_layer(margin, 0.75).tolist() == [4, 0, 5, 5]


def test_drawn_layers_by_hand():
    """0.5 to 0.8: by odds 1 to 4, two doublings; half is one doubling, 2 / 3."""
    prob = np.array([[0.5, 0.5], [0.64, 0.5], [0.67, 0.52], [0.62, 0.5], [0.8, 0.6]])
    control = np.full((5, 2), 0.5)
    by_odds, by_probability = stats.drawn_layers(prob, control)
    assert by_odds[0] == 3  # one layer that falls back costs one layer, not all before it
    assert by_probability[0] == 3 and np.isnan([by_odds[1], by_probability[1]]).all()
    by_odds, by_probability = stats.drawn_layers(prob[:, 0], np.linspace(0.5, 0.2, 5))
    assert (by_odds, by_probability) == (3, 2)
    certain = stats.drawn_layers(np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.0]))
    assert certain.tolist() == [1, 1]


def test_equal_timing_is_equal_by_one_of_the_two_scales():
    rise = np.linspace(0, 1, 33)
    odds = {end: 1 / (1 + np.exp(-(-4 + rise * (end + 4)))) for end in (0.4, 4)}
    probability = {end: 0.02 + rise * (end - 0.02) for end in (0.6, 0.98)}
    control = {"odds": np.full(33, odds[4][0]), "probability": np.full(33, 0.02)}
    low, high = (stats.drawn_layers(prob, control["odds"]) for prob in odds.values())
    assert low[0] == high[0] == 16 and low[1] > high[1]
    low, high = (stats.drawn_layers(p, control["probability"]) for p in probability.values())
    assert low[1] == high[1] == 16 and low[0] < high[0]


def test_intervals_against_scipy():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (20, 4))
    expected = scipy.stats.t.interval(0.95, 19, values.mean(axis=0), scipy.stats.sem(values))
    np.testing.assert_allclose(stats.interval(values), expected)
    for right in (0, 9, 20):
        wilson = scipy.stats.binomtest(right, 20).proportion_ci(method="wilson")
        ends = stats.interval(np.arange(20) < right, "share")
        np.testing.assert_allclose(ends, [wilson.low, wilson.high], atol=1e-12)
    exact = scipy.stats.quantile_test(values[:, 0], p=0.5).confidence_interval()
    assert stats.interval(values[:, 0], "median").tolist() == [exact.low, exact.high]
    assert np.isnan(stats.interval(values[:11])).all() and stats.interval(values[:11]).shape == (
        2,
        4,
    )


def test_prompts_of_one_image_that_agree_count_once():
    image = (np.arange(20) < 12).astype(float)
    once = stats.interval(image, "share", 20)
    assert stats.interval(image, "share", 60).tolist() == once.tolist()
    spread = np.random.default_rng(0).binomial(3, 0.6, 20) / 3
    low, high = stats.interval(spread, "share", 60)
    assert high - low < once[1] - once[0]


def test_auroc_by_image_against_brute_force():
    rng = np.random.default_rng(0)
    images, inside = np.repeat(np.arange(9), 6), rng.random(54) < 0.5
    values, strata = rng.integers(0, 7, 54) + inside, rng.integers(0, 3, 54)

    def brute(kept, strata):
        pairs = [
            (values[i] > values[j]) + (values[i] == values[j]) / 2
            for i in np.flatnonzero(inside & kept)
            for j in np.flatnonzero(~inside & kept)
            if strata[i] == strata[j]
        ]
        return np.mean(pairs)

    for groups in (np.zeros(54), strata):
        area = brute(images >= 0, groups)
        jackknife = np.array([9 * area - 8 * brute(images != left, groups) for left in range(9)])
        expected = jackknife - jackknife.mean() + area
        found = stats.auroc_by_image(values, inside, images, groups)
        np.testing.assert_allclose(found, expected)
    assert np.isnan(stats.auroc_by_image(values, inside, np.zeros(54, int))).all()
    assert np.isnan(stats.auroc_by_image(values, inside | True, images)).all()


def test_no_certainty_from_a_perfect_score():
    images, inside = np.repeat(np.arange(24), 2), np.tile([True, False], 24)
    low, high = stats.interval(stats.auroc_by_image(inside * 1.0, inside, images), "share", 48)
    assert 0.8 < low < 0.9 and high == 1


def test_the_interval_of_the_largest_holds_in_all_of_them_at_once():
    rng, missed = np.random.default_rng(0), 0
    for _ in range(400):
        values = rng.normal(0, 1, (24, 9))
        best = values.mean(axis=0).argmax()
        low, high = stats.interval(values, n_chosen_from=9)[:, best]
        missed += not low <= 0 <= high
    assert missed / 400 < 0.05


def test_kl_bits_against_scipy():
    p, q = np.random.default_rng(0).dirichlet(np.ones(9), 2)
    assert stats.kl_bits(p, q) == pytest.approx(scipy.stats.entropy(p, q, base=2))
    assert stats.kl_bits(np.array([0.0, 1.0]), np.array([0.5, 0.5])) == pytest.approx(1)


def test_auroc_against_scikit_learn():
    rng = np.random.default_rng(0)
    values, inside = rng.integers(0, 9, (4, 50)).astype(float), rng.random(50) < 0.3  # with ties
    assert stats.auroc(values, inside) == pytest.approx(
        [sklearn.metrics.roc_auc_score(inside, row) for row in values]
    )
    assert stats.auroc(-values, inside) == pytest.approx(1 - stats.auroc(values, inside))
