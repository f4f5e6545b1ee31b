from dataclasses import asdict, replace

import pandas as pd
import pytest

from benchmarks import check_regression, records, results
from benchmarks.check_regression import Comparison

BEFORE = {"hp_norm": 10.0, "quack": 12.0, "copy": 11.0}


def frame(*cells):
    return pd.DataFrame([asdict(row) for cell in cells for row in cell], columns=records.COLUMNS)


def test_the_same_results_lose_nothing(cell_rows):
    old = frame(cell_rows(1, 1024, BEFORE), cell_rows(4096, 1024, BEFORE))
    assert check_regression.compare(old, old) == Comparison([], [], compared=2, missing=0)


def test_a_slower_machine_is_no_loss(cell_rows):
    slower = {name: 2 * us for name, us in BEFORE.items()}
    old, new = frame(cell_rows(1, 1024, BEFORE)), frame(cell_rows(1, 1024, slower))
    assert check_regression.compare(old, new).losses == []


@pytest.mark.parametrize(("us", "losses"), [(10.29, 0), (10.32, 2)])
def test_three_percent_is_the_line(cell_rows, us, losses):
    old = frame(cell_rows(1, 1024, BEFORE))
    new = frame(cell_rows(1, 1024, BEFORE | {"hp_norm": us}))
    assert len(check_regression.compare(old, new).losses) == losses


def test_a_faster_peer_is_a_loss_of_that_ratio_alone(cell_rows):
    old = frame(cell_rows(1, 1024, BEFORE))
    new = frame(cell_rows(1, 1024, BEFORE | {"quack": 11.0}))
    (loss,) = check_regression.compare(old, new).losses
    assert str(loss) == (
        "fused_add bf16 1 x 1024 cached: ratio to the best peer 1.200 -> 1.100 (-8.3%)"
    )


def test_losses_come_worst_first_and_missing_cells_are_counted(cell_rows):
    old = frame(*(cell_rows(n, 1024, BEFORE) for n in (1, 2, 4)))
    new = frame(
        cell_rows(1, 1024, BEFORE | {"hp_norm": 11.0}),
        cell_rows(2, 1024, BEFORE | {"hp_norm": 20.0}),
    )
    found = check_regression.compare(old, new)
    assert (found.compared, found.missing) == (2, 1)
    assert "2 x 1024" in found.losses[0].cell and "1 x 1024" in found.losses[-1].cell


def test_without_peers_the_copy_is_what_is_compared_to(cell_rows):
    """As in benchmarks/results/dtypes, where ours and the copy are alone."""
    old = frame(cell_rows(1, 1024, {"hp_norm": 10.0, "copy": 11.0}))
    new = frame(cell_rows(1, 1024, {"hp_norm": 11.0, "copy": 11.0}))
    found = check_regression.compare(old, new)
    assert [loss.to for loss in found.losses] == ["the copy"]
    assert (found.compared, found.missing) == (1, 0)


def test_a_cell_that_has_no_ratio_in_one_of_the_files_is_not_compared(cell_rows):
    old = frame(cell_rows(1, 1024, BEFORE))
    new = frame(cell_rows(1, 1024, {"hp_norm": 99.0}))
    assert check_regression.compare(old, new) == Comparison([], [], compared=0, missing=1)


def test_results_of_two_devices_in_one_file_are_refused(cell_rows):
    old = frame(*(cell_rows(1, 1024, BEFORE, device=name) for name in ("NVIDIA H100", "H200")))
    with pytest.raises(ValueError, match="not unique"):
        check_regression.compare(old, old)


def test_ours_that_fails_now_is_named_and_fails_the_check(tmp_path, cell_rows, capsys):
    cells = [cell_rows(n, 1024, BEFORE) for n in (1, 2)]
    old = write(tmp_path / "old.csv", [*cells[0], *cells[1]])
    wrong = replace(cells[1][0], us=None, status="failed", reason="wrong output: 3 of 9 elements")
    skipped = replace(cells[1][1], us=None, status="skipped", reason="not installed")
    new = write(tmp_path / "new.csv", [*cells[0], wrong, skipped, cells[1][2]])
    assert check_regression.main([old, new]) == 1
    output = capsys.readouterr().out
    assert "FAILED: fused_add bf16 2 x 1024 cached: wrong output: 3 of 9 elements" in output
    assert output.count("FAILED") == 1 and "1 cells compared, 0 lost" in output
    assert check_regression.main([new, old]) == 0, "what failed before and works now is no loss"
    assert check_regression.main([new, new]) == 0, "nor is what fails in both"


def test_ours_that_was_skipped_is_missing_and_not_failed(cell_rows):
    old = frame(cell_rows(1, 1024, BEFORE))
    ours, *others = cell_rows(1, 1024, BEFORE)
    skipped = replace(ours, us=None, status="skipped", reason="not enough memory")
    found = check_regression.compare(old, frame([skipped, *others]))
    assert found == Comparison([], [], compared=0, missing=1)


def write(path, rows):
    writer = records.Writer(path)
    writer.write(rows)
    writer.close()
    return str(path)


def test_exit_status_and_names(tmp_path, cell_rows, capsys):
    old = write(tmp_path / "old.csv", cell_rows(1, 1024, BEFORE))
    new = write(tmp_path / "new.csv", cell_rows(1, 1024, BEFORE | {"hp_norm": 11.0}))
    other = write(tmp_path / "other.csv", cell_rows(2, 1024, BEFORE))
    assert check_regression.main([old, old]) == 0
    assert "1 cells compared, 0 lost more than 3%" in capsys.readouterr().out
    assert check_regression.main([old, new]) == 1
    assert "fused_add bf16 1 x 1024 cached: ratio to the copy" in capsys.readouterr().out
    assert check_regression.main([old, new, "--max-loss", "0.2"]) == 0
    capsys.readouterr()
    assert check_regression.main([old, other]) == 2
    assert "nothing was compared" in capsys.readouterr().out
    assert check_regression.main([old, str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().out


def test_without_an_old_file_it_is_the_committed_ones(tmp_path, cell_rows, capsys, monkeypatch):
    """Those of the device, operator and dtype, beside peers or without."""
    committed, dtypes = tmp_path / "results", tmp_path / "results" / "dtypes"
    dtypes.mkdir(parents=True)
    monkeypatch.setattr(results, "RESULTS", committed)
    monkeypatch.setattr(results, "DTYPES", dtypes)
    slow = cell_rows(1, 1024, BEFORE | {"hp_norm": 11.0})
    write(committed / "old.csv", cell_rows(1, 1024, BEFORE))
    elsewhere = [replace(row, device="NVIDIA H20") for row in cell_rows(2, 1024, BEFORE)]
    write(committed / "elsewhere.csv", elsewhere)
    assert check_regression.main([write(tmp_path / "new.csv", slow)]) == 1
    assert "1 cells compared, 1 lost more than 3%" in capsys.readouterr().out

    alone = [row for row in slow if row.provider in ("hp_norm", "copy")]
    new = write(tmp_path / "alone.csv", alone)
    assert check_regression.main([new]) == 2, "there is none without peers yet"
    write(dtypes / "old.csv", alone)
    assert check_regression.main([new]) == 0


def test_a_committed_result_is_compared_with_those_before(tmp_path, cell_rows, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    slow = cell_rows(1, 1024, BEFORE | {"hp_norm": 11.0})
    now = [replace(row, commit="of now", date="2030-01-01T00:00:00+00:00") for row in slow]
    write(tmp_path / "old.csv", cell_rows(1, 1024, BEFORE))
    new = write(tmp_path / "new.csv", now)
    write(tmp_path / "founding.csv", now)
    assert check_regression.main([new]) == 1
