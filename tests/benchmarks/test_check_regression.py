from dataclasses import asdict

import pandas as pd
import pytest

from benchmarks import check_regression, records

BEFORE = {"hp_norm": 10.0, "quack": 12.0, "copy": 11.0}


def frame(*cells):
    return pd.DataFrame([asdict(row) for cell in cells for row in cell], columns=records.COLUMNS)


def test_the_same_results_lose_nothing(cell_rows):
    old = frame(cell_rows(1, 1024, BEFORE), cell_rows(4096, 1024, BEFORE))
    assert check_regression.compare(old, old) == ([], 2, 0)


def test_a_slower_machine_is_no_loss(cell_rows):
    slower = {name: 2 * us for name, us in BEFORE.items()}
    old, new = frame(cell_rows(1, 1024, BEFORE)), frame(cell_rows(1, 1024, slower))
    assert check_regression.compare(old, new)[0] == []


@pytest.mark.parametrize(("us", "losses"), [(10.29, 0), (10.32, 2)])
def test_three_percent_is_the_line(cell_rows, us, losses):
    old = frame(cell_rows(1, 1024, BEFORE))
    new = frame(cell_rows(1, 1024, BEFORE | {"hp_norm": us}))
    assert len(check_regression.compare(old, new)[0]) == losses


def test_a_faster_peer_is_a_loss_of_that_ratio_alone(cell_rows):
    old = frame(cell_rows(1, 1024, BEFORE))
    new = frame(cell_rows(1, 1024, BEFORE | {"quack": 11.0}))
    (loss,) = check_regression.compare(old, new)[0]
    assert str(loss) == (
        "fused_add bf16 1 x 1024 cached: ratio to the best peer 1.200 -> 1.100 (-8.3%)"
    )


def test_losses_come_worst_first_and_missing_cells_are_counted(cell_rows):
    old = frame(*(cell_rows(n, 1024, BEFORE) for n in (1, 2, 4)))
    new = frame(
        cell_rows(1, 1024, BEFORE | {"hp_norm": 11.0}),
        cell_rows(2, 1024, BEFORE | {"hp_norm": 20.0}),
    )
    losses, compared, missing = check_regression.compare(old, new)
    assert (compared, missing) == (2, 1)
    assert "2 x 1024" in losses[0].cell and "1 x 1024" in losses[-1].cell


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
