from dataclasses import asdict, replace

import pandas as pd
import pytest

from benchmarks import analysis, records
from benchmarks.analysis import Bound
from benchmarks.shapes import BANDS


def frame(*cells):
    rows = [asdict(row) for cell in cells for row in cell]
    return pd.DataFrame(rows, columns=records.COLUMNS)


def test_the_best_peer_is_the_fastest_of_the_five(cell_rows):
    times = {"hp_norm": 1.0, "quack": 2.0, "inductor": 1.5, "copy": 1.2, "torch": 0.1}
    cells = analysis.ours_against_peers(frame(cell_rows(1, 4096, times)))
    (cell,) = cells.itertuples()
    assert (cell.best_peer, cell.best_peer_us) == ("inductor", 1.5)
    assert cell.ratio_to_peer == pytest.approx(1.5)
    assert cell.ratio_to_copy == pytest.approx(1.2)


def test_plain_torch_is_a_peer_on_the_cpu(cell_rows):
    times = {"hp_norm": 1.0, "torch": 1.4, "vllm_c": 2.0}
    (cell,) = analysis.ours_against_peers(
        frame(cell_rows(1, 4096, times, cuda="", device="a CPU"))
    ).itertuples()
    assert cell.best_peer == "torch"


def test_a_peer_without_a_time_does_not_count(cell_rows):
    rows = cell_rows(1, 4096, {"hp_norm": 1.0, "quack": 2.0, "inductor": 0.5})
    rows[2] = replace(rows[2], us=None, status="failed", reason="wrong output")
    (cell,) = analysis.ours_against_peers(frame(rows)).itertuples()
    assert cell.best_peer == "quack"


def test_cells_without_us_or_without_a_peer_are_left_out(cell_rows):
    cells = analysis.ours_against_peers(
        frame(
            cell_rows(1, 1024, {"hp_norm": 1.0, "copy": 1.0}),
            cell_rows(2, 1024, {"quack": 1.0, "copy": 1.0}),
        )
    )
    assert cells.empty


def test_a_newer_commit_replaces_an_older_one_and_shards_add_up(cell_rows):
    old = cell_rows(1, 1024, {"hp_norm": 9.0}, commit="old", date="2026-01-01")
    shard_1 = cell_rows(1, 2048, {"hp_norm": 1.0}, commit="new", date="2026-01-02")
    shard_2 = cell_rows(1, 4096, {"hp_norm": 2.0}, commit="new", date="2026-01-03")
    latest = analysis.latest(frame(shard_2, old, shard_1))
    assert latest["us"].tolist() == [1.0, 2.0]


def test_a_newer_grid_leaves_the_founding_widths_between_its_own(cell_rows):
    founding = cell_rows(4096, 9216, {"hp_norm": 1.0}, commit="old", date="2026-01-01")
    founding += cell_rows(4096, 8192, {"hp_norm": 9.0}, commit="old", date="2026-01-01")
    grid = cell_rows(4096, 8192, {"hp_norm": 2.0}, commit="new", date="2026-01-02")
    assert sorted(analysis.latest(frame(founding, grid))["us"]) == [1.0, 2.0]


def test_each_operator_and_device_has_its_own_newest_commit(cell_rows):
    latest = analysis.latest(
        frame(
            cell_rows(1, 1024, {"hp_norm": 1.0}, commit="a", date="2026-01-01"),
            cell_rows(1, 1024, {"hp_norm": 2.0}, commit="b", date="2026-01-02", op="plain"),
            cell_rows(1, 1024, {"hp_norm": 3.0}, commit="c", date="2026-01-03", device="X"),
        )
    )
    assert sorted(latest["us"]) == [1.0, 2.0, 3.0]


def test_a_cell_measured_twice_keeps_its_newest_rows(cell_rows):
    latest = analysis.latest(
        frame(
            cell_rows(1, 1024, {"hp_norm": 2.0}, date="2026-01-02"),
            cell_rows(1, 1024, {"hp_norm": 1.0}, date="2026-01-01"),
        )
    )
    assert latest["us"].tolist() == [2.0]


def test_rows_of_a_forced_protocol_are_not_judged(cell_rows):
    forced = [replace(row, protocol="cold") for row in cell_rows(1, 1024, {"hp_norm": 1.0})]
    kept = analysis.default_protocol(frame(forced, cell_rows(2, 1024, {"hp_norm": 2.0})))
    assert kept["us"].tolist() == [2.0]


def test_band_bounds(cell_rows):
    """Ratios 1.2 and 1.8 in the first band: a mean of 1.47, a worst cell of 1.2."""
    cells = analysis.ours_against_peers(
        frame(
            cell_rows(1, 1024, {"hp_norm": 1.0, "quack": 1.2, "copy": 1.0}),
            cell_rows(8, 2048, {"hp_norm": 1.0, "quack": 1.8, "copy": 1.0}),
            cell_rows(16, 2048, {"hp_norm": 1.0, "quack": 0.1, "copy": 1.0}),
        )
    )
    mean, worst = analysis.band_bounds(cells, BANDS[0])
    assert mean.reached == pytest.approx((1.2 * 1.8) ** 0.5)
    assert (mean.bound, mean.verdict) == (1.40, "met")
    assert (worst.reached, worst.where, worst.verdict) == (
        pytest.approx(1.2),
        "1 x 1024",
        "met",
    )
    assert analysis.band_bounds(cells, BANDS[1])[0].verdict == "NOT met"


def test_the_copy_bounds_the_band_from_2048_tokens(cell_rows):
    cells = analysis.ours_against_peers(
        frame(
            cell_rows(2048, 1024, {"hp_norm": 100.0, "quack": 110.0, "copy": 99.0}),
            cell_rows(4096, 1024, {"hp_norm": 100.0, "quack": 110.0, "copy": 103.0}),
        )
    )
    *_, mean, worst = analysis.band_bounds(cells, BANDS[3])
    assert (mean.bound, mean.verdict) == (1.0, "met")
    assert (worst.reached, worst.where) == (pytest.approx(0.99), "2048 x 1024")
    assert worst.verdict == "met within 2%"
    assert len(analysis.band_bounds(cells, BANDS[2])) == 2


def test_cells_that_miss_a_bound_are_counted(cell_rows):
    """The spread of a cell is for a single one; the report says how many use it."""
    times = {1024: 110.0, 2048: 99.0, 4096: 98.5, 8192: 99.5}
    cells = analysis.ours_against_peers(
        frame(
            *(
                cell_rows(2048, hidden, {"hp_norm": 100.0, "quack": us, "copy": 120.0})
                for hidden, us in times.items()
            )
        )
    )
    _, worst, *_ = analysis.band_bounds(cells, BANDS[3])
    assert worst.where == "2048 x 4096; 3 cells miss it"
    assert worst.verdict == "met within 2%"


@pytest.mark.parametrize(
    ("reached", "spread", "verdict"),
    [
        (1.0, 0.0, "met"),
        (0.999, 0.0, "NOT met"),
        (0.981, 0.02, "met within 2%"),
        (0.979, 0.02, "NOT met"),
        (float("nan"), 0.02, "not measured"),
    ],
)
def test_verdicts(reached, spread, verdict):
    bound = Bound("x", 1.0, reached, spread=spread)
    assert bound.verdict == verdict
    assert bound.is_met == verdict.startswith("met")


def test_fp16_is_bounded_from_above(cell_rows):
    def both(fp16):
        return frame(
            cell_rows(1, 1024, {"hp_norm": 1.0, "copy": 1.0}),
            cell_rows(1, 1024, {"hp_norm": fp16, "copy": 9.0}, dtype="fp16"),
            cell_rows(1, 2048, {"hp_norm": 9.0}, dtype="fp16"),
            cell_rows(1, 2048, {"hp_norm": 1.0}, op="plain"),
        )

    assert analysis.fp16_bound(both(1.02)).verdict == "met"
    bound = analysis.fp16_bound(both(1.04))
    assert (bound.reached, bound.where, bound.verdict) == (
        pytest.approx(1.04),
        "1 x 1024",
        "NOT met",
    )


def test_plain_is_bounded_by_its_worst_cell(cell_rows):
    cells = analysis.ours_against_peers(
        frame(
            cell_rows(1, 1024, {"hp_norm": 1.0, "quack": 0.9}, op="plain"),
            cell_rows(1, 1024, {"hp_norm": 1.0, "quack": 0.5}),
        )
    )
    bound = analysis.plain_bound(cells)
    assert (bound.reached, bound.verdict) == (pytest.approx(0.9), "NOT met")


def test_nothing_measured_is_never_met():
    nothing = records.read([])
    cells = analysis.ours_against_peers(nothing)
    assert {bound.verdict for bound in analysis.all_bounds(cells, nothing)} == {"not measured"}
