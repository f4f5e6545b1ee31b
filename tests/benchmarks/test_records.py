from dataclasses import replace

import pytest

from benchmarks import records


def write(path, rows):
    writer = records.Writer(path)
    writer.write(rows)
    writer.close()


def test_rows_survive_the_csv(tmp_path, a_row):
    path = tmp_path / "deep" / "rows.csv"
    skipped = replace(
        a_row, provider="quack", us=None, us_spread=None, status="skipped", reason="a, b"
    )
    write(path, [a_row, skipped])
    frame = records.read([path])
    assert list(frame.columns) == records.COLUMNS
    first, second = frame.iloc[0], frame.iloc[1]
    assert (first["us"], first["hidden_size"], first["commit"]) == (1.25, 4096, "abc123")
    assert first["reason"] == ""
    assert second["us"] != second["us"]
    assert (second["status"], second["reason"]) == ("skipped", "a, b")


def test_a_commit_of_digits_stays_a_text(tmp_path, a_row):
    write(tmp_path / "rows.csv", [replace(a_row, commit="001234567890")])
    assert records.read([tmp_path / "rows.csv"])["commit"][0] == "001234567890"


def test_writing_again_appends_without_a_second_header(tmp_path, a_row):
    path = tmp_path / "rows.csv"
    write(path, [a_row])
    write(path, [a_row])
    assert len(path.read_text().splitlines()) == 3
    assert len(records.read([path])) == 2


def test_rows_are_on_disk_before_the_writer_is_closed(tmp_path, a_row):
    writer = records.Writer(tmp_path / "rows.csv")
    writer.write([a_row])
    assert len(records.read([tmp_path / "rows.csv"])) == 1
    writer.close()


def test_numbers_keep_four_digits(tmp_path, a_row):
    write(tmp_path / "rows.csv", [replace(a_row, us=1.234567, gb_per_s=4123.7)])
    row = records.read([tmp_path / "rows.csv"]).iloc[0]
    assert (row["us"], row["gb_per_s"]) == (1.235, 4124)


def test_a_foreign_csv_is_refused(tmp_path):
    path = tmp_path / "peers.csv"
    path.write_text("num_tokens,us\n1,2\n")
    with pytest.raises(ValueError, match=r"peers\.csv: not a benchmark result, it lacks commit"):
        records.read([path])


def test_no_files_give_an_empty_frame():
    assert list(records.read([]).columns) == records.COLUMNS
