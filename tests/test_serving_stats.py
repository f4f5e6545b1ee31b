"""Medians, spreads and sums over what was measured of served models."""

import math

import pytest
from serving import stats


def test_paired_ratio_cancels_a_drift():
    """A clock that doubles over the run leaves a one percent difference visible."""
    off = [1.0, 1.5, 2.0, 2.5]
    ratio, spread = stats.paired_ratio([0.99 * value for value in off], off)
    assert ratio == pytest.approx(0.99)
    assert spread == pytest.approx(0.0, abs=1e-12)


def test_spread_is_relative_and_robust():
    assert stats.spread([1.0, 1.0, 1.0, 1.0, 9.0]) == 0.0
    assert stats.spread([1.0, 3.0]) == pytest.approx(0.5)
    assert stats.spread([1.0]) is None


@pytest.mark.parametrize(("on", "off"), [([0.0] * 3, [0.0] * 3), ([1.0, 2.0], [0.0, 0.0])])
def test_nothing_to_compare_with_is_no_error(on, off):
    """It would come at the end of a run, and take all else that was measured with it."""
    assert all(math.isnan(value) for value in stats.paired_ratio(on, off))
    assert math.isnan(stats.spread([0.0, 0.0]))
    assert all(math.isnan(value) for value in stats.ratio_of_means(on, [0.0, 0.0]))


def test_norm_share_counts_ours_apart_from_inductors():
    kernels = [
        {"name": "void hp_norm::rms_norm_kernel<16>(...)", "count": 20, "time_us": 40.0},
        {"name": "triton_red_fused_add_mean_mul_pow_rsqrt_2", "count": 10, "time_us": 30.0},
        {"name": "nvjet_tst_64x8", "count": 40, "time_us": 930.0},
    ]
    share = stats.norm_share({"steps": 10, "kernels": kernels})
    assert share["hp_norm_per_step"] == 2 and share["norms_per_step"] == 3
    assert share["hp_norm_us_per_step"] == 4 and share["norm_us_per_step"] == 7
    assert share["kernel_us_per_step"] == 100


def test_same_tokens():
    same = stats.same_tokens([[1, 2], [3, 4]], [[1, 2], [3, 5]])
    assert same == {"share_equal": 0.75, "sequences_equal": 1, "sequences": 2, "tokens": 4}
