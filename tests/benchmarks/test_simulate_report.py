"""A short form of `simulate_report.py`: planted truths, and what the report claims of them."""

import numpy as np
import pytest
import scipy.stats
import simulate_report as sim

N_SETS = 16
# More of 16 data sets claim something in fewer than 1 of 1,000 tries if 5 % do.
MOST_FALSE = scipy.stats.binom.ppf(0.999, N_SETS, 0.05) / N_SETS
LEFT_OUT = "several prompts", "large image", "twice the noise", "half six", "nothing", "usual place"


def rows(table, left_out=()):
    """Those of the long form whose plant has none of the words `left_out`."""
    chosen = [row for row in table if not any(words in row[1] for words in left_out)]
    ids = [f"{claim}: {plant}" for claim, plant, _ in chosen]
    return pytest.mark.parametrize("row", chosen, ids=ids)


@rows(sim.FALSE, LEFT_OUT)
def test_what_is_false_is_hardly_ever_claimed(row):
    (shares,) = sim.count([row], [8, 24], N_SETS).iloc[:, 2:].to_numpy(float)
    assert shares[0] == 0 and shares[1] <= MOST_FALSE


@rows(sim.TRUE)
def test_what_is_true_is_found(row):
    (shares,) = sim.count([row], [60], 4).iloc[:, 2:].to_numpy(float)
    assert shares[0] >= 0.5


def test_intervals_hold_the_true_value_and_do_not_exist_below_twelve_images():
    table = sim.count(sim.HELD, [11, 24], 400)
    assert table[11].isna().all()
    low, high = scipy.stats.binom.ppf([0.0005, 0.9999], 400, [0.93, 0.97]) / 400
    assert (table[24] >= low).all() and (table["planted"] < 0.9)[table[24] > high].sum() <= 1
    assert np.isfinite(table[24].to_numpy(float)).all()
