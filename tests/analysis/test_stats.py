"""Layers at which a curve has risen, intervals, tests, AUROCs."""

import itertools

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from llava_lens.analysis import stats


def test_the_best_rival_is_no_spelling_of_the_word():
    ids, probs = np.array([[4, 7, 9], [7, 9, 4]]), np.array([[0.5, 0.3, 0.1], [0.6, 0.2, 0.1]])
    assert stats.best_rival(ids, probs, [4, 9]).tolist() == [0.3, 0.6]
    # A top-k without a rival: it has at most the last one's.
    assert stats.best_rival(ids, probs, [4, 7, 9]).tolist() == [0.1, 0.1]


def test_a_layer_from_which_on_something_stays_by_hand():
    holds = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 0]], dtype=bool)
    assert stats.stays_from(holds).tolist() == [2, 0, 3]


def test_readable_layer_by_hand():
    margin = np.array([[-2, 3, 1.9, 2, 4], [1, 1, 1, 1, 1], [0] * 5, [-1, 2, 3, 1, -0.1]]).T
    prob = np.full(margin.shape, 0.5)
    assert stats.readable_layer(margin, prob).tolist() == [3, 0, 5, 5]
    # What ends below a probability of 0.1 is readable nowhere, whatever it was before.
    prob[-1] = [0.1, 0.09, 0.5, 0.5]
    assert stats.readable_layer(margin, prob).tolist() == [3, 5, 5, 5]


def test_signed_rank_against_all_signs():
    """With ties and zeros scipy would go through all signs; small p are near to what it finds."""
    rng, compared = np.random.default_rng(0), 0
    signs = np.array(list(itertools.product([-1, 1], repeat=12)))
    for _ in range(60):
        values = rng.integers(-2, 5, 12)
        ranks = scipy.stats.rankdata(np.abs(values))
        sums = (signs * ranks * (values != 0)).sum(axis=1)
        exact = np.mean(np.abs(sums) >= abs((np.sign(values) * ranks).sum()) - 1e-9)
        if exact < 0.06:
            assert stats.signed_rank(values) == pytest.approx(exact, abs=0.015)
            compared += 1
    assert compared > 10 and stats.signed_rank(np.zeros(9)) == 1


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
    few = stats.interval(values[:11])
    assert np.isnan(few).all() and few.shape == (2, 4)


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


def test_the_interval_of_the_largest_holds_in_all_of_them_at_once():
    rng, missed = np.random.default_rng(0), 0
    for _ in range(400):
        values = rng.normal(0, 1, (24, 9))
        best = values.mean(axis=0).argmax()
        low, high = stats.interval(values, n_chosen_from=9)[:, best]
        missed += not low <= 0 <= high
    assert missed / 400 < 0.05


def test_auroc_against_scikit_learn():
    rng = np.random.default_rng(0)
    values, inside = rng.integers(0, 9, (4, 50)).astype(float), rng.random(50) < 0.3  # with ties
    expected = [sklearn.metrics.roc_auc_score(inside, row) for row in values]
    assert stats.auroc(values, inside) == pytest.approx(expected)
    assert stats.auroc(-values, inside) == pytest.approx(1 - stats.auroc(values, inside))
