"""Tests and tables of coefficients whose fit is given.

Standard errors of real fits are tested with the fits.
"""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from seqfoundry.core.errors import InputError
from seqfoundry.core.reporting.html import text_table
from seqfoundry.families.vdj.inference.uncertainty import (
    Fit,
    bootstrap_table,
    chi2_tail,
    contrasts,
    likelihood_ratio,
    shown,
)

NAMES = (
    "average_mh",
    "v_trim_motif_5end_pos1_A",
    "v_trim_motif_5end_pos1_C",
    "a",
    "b",
    "ligation_mh",
)
FULL = Fit(
    names=NAMES,
    theta=np.arange(6.0),
    observed_nll=4.2,
    expected_complete_nll=4.3,
    gradient_norm=0.0,
    iterations=3,
    reason="gradient",
    runaway=(),
    hessian=np.eye(6),
    total=20_000.0,
    penalty=0.0,
)


def test_t_of_a_motif_position_is_minus_the_sum_of_the_others():
    names, weights = contrasts(("v_trim_motif_3end_pos2_G", *NAMES))
    assert names[7:] == ("v_trim_motif_3end_pos2_T", "v_trim_motif_5end_pos1_T")
    np.testing.assert_array_equal(weights[7:] @ np.arange(7.0), [0, -5])
    assert contrasts(())[1].shape == (0, 0)


def test_bootstrap_without_converged_replicates_is_undefined():
    table = bootstrap_table(FULL, np.zeros((3, 6)), np.array([False, True, False]))
    assert table["bootstrap_sd"].isna().all()
    assert table["adjusted_pvalue"].isna().all()


def test_likelihood_ratio():
    less = dataclasses.replace(
        FULL, names=NAMES[1:5], theta=np.ones(4), observed_nll=FULL.observed_nll + 2e-4
    )
    found = likelihood_ratio(FULL, less)
    assert found["DF"] == 2
    assert found["LRT_test_statistic"] == pytest.approx(8.0)
    assert found["LRT_pval"] == pytest.approx(scipy.stats.chi2.sf(8.0, 2), rel=1e-9)
    assert found["full_model_logLik"] == pytest.approx(-20_000 * FULL.observed_nll)
    other = dataclasses.replace(less, names=("another", *NAMES[2:5]))
    assert likelihood_ratio(FULL, other, nested=True) == found
    for sub, message in (
        (other, "also another"),
        (FULL, "got 6 of 6"),
        (dataclasses.replace(less, total=7.0), "same reads, got 20000 and 7"),
    ):
        with pytest.raises(InputError, match=message):
            likelihood_ratio(FULL, sub)


def test_chi_squared_tail():
    for degrees in (1, 2, 3, 4, 7, 14, 26):
        for statistic in (0.0, 0.5, 3.0, 40.0, 900.0):
            expected = scipy.stats.chi2.sf(statistic, degrees)
            assert chi2_tail(statistic, degrees) == pytest.approx(expected, rel=1e-10, abs=1e-300)


def test_figures_are_shown_as_a_person_reads_them() -> None:
    assert shown("lrt.pvalue", 0.0) == shown("LRT_pval", 1e-320) == "< 1e-300"
    assert shown("p", 1e-299) == 1e-299
    assert math.isnan(shown("p", math.nan))
    assert repr(shown("train.n", 9834.0)) == "9834"
    assert shown("below_null", 0.25) == 0.25
    text = text_table(["figure", "value"], [["p", "< 1e-300"], ["n", 5]])
    assert text.splitlines()[-1] == "n              5"  # a bound stands among numbers
