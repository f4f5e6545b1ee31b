from dataclasses import replace

import pytest

from benchmarks import analysis, charts, records, report, results, shapes, tables
from benchmarks.tables import TABLES


def write(path, rows):
    writer = records.Writer(path)
    writer.write(rows)
    writer.close()
    return path


@pytest.fixture
def csvs(tmp_path, cell_rows):
    """A small H200 run of every operator and dtype, with one lost cell, and a CPU run."""
    rows = []
    for op, dtype in (("fused_add", "bf16"), ("fused_add", "fp16"), ("plain", "bf16")):
        for tokens in (1, 64, 512, 4096):
            for hidden in (1024, 4096):
                us = 1.0 + tokens * hidden / 1e6
                times = {"hp_norm": us, "copy": us, "empty_kernel": 0.5}
                times |= {"flashinfer_cute": us * 1.5, "flashinfer_cuda": us * 1.25}
                times |= {"quack": us * 2, "vllm_c": us * 2.5, "inductor": us * 3}
                if (op, tokens, hidden) == ("plain", 64, 1024):
                    times["quack"] = us * 0.9
                rows += cell_rows(tokens, hidden, times, op=op, dtype=dtype)
    failed = replace(rows[-1], num_tokens=2, protocol="cached", us=None, status="failed")
    rows.append(replace(failed, provider="quack", reason="wrong output"))
    cpu = {"device": "a CPU, 2 threads", "cuda": "", "driver": "", "torch": "2.13.0+cpu"}
    rows += cell_rows(8, 4096, {"hp_norm": 10.0, "torch": 30.0, "vllm_c": 12.0}, **cpu)
    return [write(tmp_path / "results" / "run.csv", rows)]


@pytest.fixture
def found(csvs):
    return results.load(csvs)


def test_devices_are_told_apart(found):
    assert set(found) == {"H200", "CPU"}
    assert results.short_name("NVIDIA H100 80GB HBM3") == "H100"
    assert results.short_name("NVIDIA H20") == "H20"
    assert results.short_name("AMD EPYC 9654") == "CPU"


def test_two_devices_of_one_name_are_not_mixed(tmp_path, cell_rows):
    writer = records.Writer(tmp_path / "a.csv")
    for threads, us, date in ((2, 5.0, "2026-01-01"), (1, 9.0, "2026-01-02")):
        device = {"device": f"a CPU, {threads} threads", "cuda": "", "date": date}
        writer.write(cell_rows(1, 4096, {"hp_norm": us, "torch": 20.0}, **device))
    writer.close()
    found = results.load([tmp_path / "a.csv"])
    assert found["CPU"].times("fused_add", "bf16")["hp_norm"].tolist() == [9.0]


def test_founding_table_takes_the_faster_flashinfer_and_names_who_was_not_measured(found):
    lines = tables.founding(found, "H200").splitlines()
    assert lines[0] == (
        "| hidden size | H100 | H200 FlashInfer, us | H200 hp_norm, us | speed-up | B200 | H20 |"
    )
    row = next(line for line in lines if line.startswith("| 4096 |"))
    assert row == (
        "| 4096 | not measured here | 22.2 | 17.8 | 1.25 | not measured here | not measured here |"
    )
    unmeasured = next(line for line in lines if line.startswith("| 20480 |"))
    assert unmeasured == (
        "| 20480 | not measured here | - | - | - | not measured here | not measured here |"
    )
    assert len([line for line in lines if line.startswith("| ")]) == 2 + 20
    assert "python -m benchmarks.run --founding" in lines[-1]


def test_grid_holds_time_and_ratio(found):
    text = tables.TABLES["grid"](found, "H200")
    assert "|  | 1 | 64 | 512 | 4096 |" in text
    assert "| 1024 | 1.00 (1.25) | 1.07 (1.25) | 1.52 (1.25) | 5.19 (1.25) |" in text


def test_the_grid_of_another_dtype_is_its_own(tmp_path, cell_rows):
    """fp16 beside the peers, as `gpu_run` measures it, in a file and at a commit of its own."""
    for dtype, us, commit in (("bf16", 1.0, "old"), ("fp16", 1.2, "new")):
        times = {"hp_norm": us, "quack": 1.5, "copy": 2.0}
        write(tmp_path / f"{dtype}.csv", cell_rows(1, 1024, times, dtype=dtype, commit=commit))
    alone = write(tmp_path / "alone.csv", cell_rows(1, 1024, {"hp_norm": 0.9}, dtype="fp16"))
    found = results.load(sorted(tmp_path.glob("?p16.csv")) + [tmp_path / "bf16.csv"], [alone])
    assert "| 1024 | 1.00 (1.50) |" in tables.TABLES["grid"](found, "H200")
    text = tables.TABLES["grid-fp16"](found, "H200")
    assert "| 1024 | 1.20 (1.25) |" in text
    assert text.endswith("\nus (ratio to the best peer), hidden size by number of tokens.")


def test_a_dtype_that_met_no_peers_has_a_grid_without_ratios(tmp_path, cell_rows):
    bf16 = write(tmp_path / "bf16.csv", cell_rows(1, 1024, {"hp_norm": 1.0, "quack": 1.5}))
    rows = [
        row
        for dtype, us in (("bf16", 0.9), ("fp16", 0.95))
        for hidden in (1024, 9216)  # the second is no width of the grid
        for row in cell_rows(1, hidden, {"hp_norm": us, "copy": 2.0}, dtype=dtype)
    ]
    found = results.load([bf16], [write(tmp_path / "alone.csv", rows)])
    assert tables.TABLES["grid-fp16"](found, "H200") == (
        "|  | 1 |\n| :-- | --: |\n| 1024 | 0.950 |\n\n"
        "us, in a process without the peers, hidden size by number of tokens."
    )
    assert "| 1024 | 1.00 (1.50) |" in tables.TABLES["grid"](found, "H200")
    assert "not measured" in tables.TABLES["grid-plain"](found, "H200")


def test_a_cell_that_was_not_measured_is_a_dash(tmp_path, cell_rows):
    rows = [
        row
        for tokens, hidden in ((1, 1024), (2, 2048))
        for row in cell_rows(tokens, hidden, {"hp_norm": 1.0, "quack": 2.0})
    ]
    found = results.load([write(tmp_path / "a.csv", rows)])
    text = tables.TABLES["grid"](found, "H200")
    assert "| 1024 | 1.00 (2.00) | - |\n| 2048 | - | 1.00 (2.00) |" in text


def test_losses_name_the_lost_cell_only(found):
    text = tables.losses(found, "H200")
    assert text.startswith("1 of the 24 cells measured on H200.")
    assert "| plain bf16 64 x 1024 | 1.07 | 0.959 (quack) | 0.900 | 1.0% |" in text


def test_peers_are_compared_one_by_one(found):
    text = tables.peers(found, "H200")
    assert "| flashinfer_cute | 1.50 | 1.50 | 1.50 | 1.50 |" in text
    assert "| inductor | 3.00 | 3.00 | 3.00 | 3.00 |" in text


def test_floor_shows_launch_and_copy(found):
    assert "| 4096 x 4096 | 17.8 | 0.500 | 17.8 | 1.00 |" in tables.floor(found, "H200")


def test_missing_rows_are_counted_with_their_reason(found):
    text = tables.missing(found, "H200")
    assert "| quack | failed | 1 | plain bf16 2 x 4096 | wrong output |" in text


def test_cpu_table(found):
    assert "| 8 x 4096 | 10.0 | 12.0 | - | 30.0 | 1.20 |" in tables.cpu(found, "H200")


def test_environment_names_the_commit_of_the_run_without_peers(tmp_path, csvs, cell_rows):
    rows = cell_rows(1, 1024, {"hp_norm": 1.0}, dtype="fp16", commit="older")
    found = results.load(csvs, [write(tmp_path / "alone.csv", rows)])
    assert "Commit abc123, older," in tables.environment(found, "H200")


def test_environment_names_machine_commit_and_versions(found):
    text = tables.environment(found, "H200")
    for part in ("NVIDIA H200", "driver 580.1", "CUDA 13.0", "torch 2.11.0+cu130", "abc123"):
        assert part in text
    assert "SM clock 1980 to 1980 MHz" in text
    assert "quack: 0.1.0" in text and "copy" not in text and "CPU" not in text


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_table_renders_with_and_without_results(found, name):
    for device in ("H200", "H100"):
        for available in (found, {}):
            text = TABLES[name](available, device)
            assert text and "nan" not in text.lower()


def test_without_results_every_table_says_not_measured():
    for name in sorted(set(TABLES) - {"peers"}):
        assert "not measured" in TABLES[name]({}, "H200")


DOCUMENT = "# Title\n\n<!-- bench:bounds -->\nold\n<!-- /bench:bounds -->\n\ntext\n"


def test_render_fills_blocks_and_leaves_the_rest(found):
    text = report.render(DOCUMENT, found)
    assert text.startswith("# Title\n\n<!-- bench:bounds -->\n| bf16")
    assert text.endswith("<!-- /bench:bounds -->\n\ntext\n")
    assert "old" not in text
    assert report.render(text, found) == text


def test_numbers_have_three_significant_digits():
    assert [tables.us(value) for value in (0.5, 1.2, 36.41, 100.4, 999.7, 1234.5)] == [
        "0.500",
        "1.20",
        "36.4",
        "100",
        "1000",
        "1234",
    ]
    assert tables.us(float("nan")) == "-"


def test_dtypes_are_compared_within_the_process_that_timed_both(tmp_path, csvs, cell_rows):
    """Beside the peers fp16 was as fast; alone, where a bf16 call is faster too, it was not."""
    rows = [
        row
        for dtype, us in (("bf16", 0.5), ("fp16", 0.6))
        for row in cell_rows(1, 1024, {"hp_norm": us, "copy": 1.0}, dtype=dtype)
    ]
    path = write(tmp_path / "dtypes.csv", rows)
    assert "| fp16 over bf16: worst cell | at most 1.03 | 1.000 " in tables.bounds(
        results.load(csvs), "H200"
    )
    found = results.load(csvs, [path])
    assert "1.200 (1 x 1024) | NOT met |" in tables.bounds(found, "H200")
    assert found["H200"].times("fused_add", "bf16").loc[(1, 1024), "hp_norm"] > 1.0


def test_a_marker_may_name_a_device(found):
    document = "<!-- bench:losses@H100 -->\n<!-- /bench:losses@H100 -->\n"
    assert "H100: not measured here." in report.render(document, found)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("<!-- bench:bounds -->\n", "README.md: <!-- bench:bounds --> is not closed"),
        (
            "<!-- bench:nothing -->\n<!-- /bench:nothing -->",
            "README.md: no table 'nothing', known are environment, bounds",
        ),
    ],
)
def test_bad_markers_are_one_line(found, document, message):
    with pytest.raises(report.DocumentError, match=message):
        report.render(document, found, "README.md")


def test_charts_are_linked_from_where_the_document_lies(found):
    document = "<!-- bench:chart-ratio -->\n<!-- /bench:chart-ratio -->\n"
    for name, link in (
        ("README.md", "(docs/img/bench-ratio-h200.png)"),
        ("docs/performance.md", "(img/bench-ratio-h200.png)"),
        ("docs/notes/a.md", "(../img/bench-ratio-h200.png)"),
    ):
        assert link in report.render(document, found, name)


def test_stale_documents_are_found(tmp_path, found):
    path = tmp_path / "README.md"
    path.write_text(DOCUMENT)
    assert list(report.stale(tmp_path, found)) == [path]
    path.write_text(report.render(DOCUMENT, found))
    assert report.stale(tmp_path, found) == {}


def committed_results():
    csvs, dtypes = (sorted(path.glob("*.csv")) for path in (results.RESULTS, results.DTYPES))
    return results.load(csvs, dtypes)


def test_the_committed_documents_say_what_the_committed_results_say():
    """README.md and docs/ are made by `make bench-report` and not edited by hand."""
    found = committed_results()
    stale = report.stale(report.ROOT, found)
    assert not stale, f"run make bench-report: {', '.join(path.name for path in stale)}"


def test_readmes_words_are_those_of_its_table():
    """What stands above the table of bounds by hand."""
    found = committed_results()
    h200 = found[results.DEFAULT_DEVICE]
    means = [bound.reached for bound in analysis.all_bounds(h200.cells, h200.dtypes)
             if bound.name.endswith("geometric mean to the best peer")]  # fmt: skip
    few, some, many, most = (f"{mean:.2f}" for mean in means)
    words = (f"**1 to 8 tokens: {few} times** as fast as the best peer of each cell (geometric "
             f"mean), 16 to 256: {some}, 512 and 1024: {many}, 2048 and more, where all wait for "
             f"DRAM: {most}.")  # fmt: skip
    readme = " ".join((report.ROOT / "README.md").read_text().split())
    assert words in readme
    fused = h200.cells[h200.cells["op"] == "fused_add"]
    assert "**The fused add loses no cell** to any peer" in readme
    assert fused[["ratio_to_peer", "ratio_to_copy"]].min().min() >= 1


def test_main_rewrites_draws_and_prints_the_bounds(tmp_path, csvs, capsys):
    (tmp_path / "docs").mkdir()
    readme, performance = tmp_path / "README.md", tmp_path / "docs" / "performance.md"
    for path in (readme, performance):
        path.write_text(DOCUMENT)
    arguments = [str(csvs[0])]
    assert report.main([*arguments, "--check"], tmp_path) == 1
    assert readme.read_text() == performance.read_text() == DOCUMENT
    assert report.main(arguments, tmp_path) == 0
    assert readme.read_text() == performance.read_text() != DOCUMENT
    assert report.main([*arguments, "--check"], tmp_path) == 0
    output = capsys.readouterr().out
    assert "1 to 8 tokens: geometric mean to the best peer" in output
    assert "NOT met" in output
    assert "rewritten: docs/performance.md" in output
    drawn = sorted(path.name for path in (tmp_path / "docs" / "img").iterdir())
    assert drawn == ["bench-bandwidth-h200.png", "bench-ratio-h200.png"]


def test_rows_that_are_not_used_are_counted(tmp_path, csvs, a_row, capsys):
    old = write(tmp_path / "old.csv", [replace(a_row, commit="older", date="2020-01-01")])
    report.main([str(csvs[0]), str(old), "--check"], tmp_path)
    assert "1 rows left out: of an older commit" in capsys.readouterr().out


def test_charts_are_the_same_bytes_when_drawn_again(tmp_path, found):
    for name in ("a", "b"):
        assert charts.heat_map(found["H200"], tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_no_chart_without_cells(tmp_path):
    nothing = results.of_device({}, "H200")
    assert not charts.heat_map(nothing, tmp_path / "a.png")
    assert not charts.bandwidth(nothing, tmp_path / "b.png")
    assert list(tmp_path.iterdir()) == []


def test_bandwidth_is_traffic_over_time(found):
    cells = found["H200"].part("fused_add", "bf16")
    cell = cells[(cells["num_tokens"] == 4096) & (cells["hidden_size"] == 4096)]
    (terabytes,) = charts._terabytes(cell, "us")
    traffic = shapes.Case("fused_add", "bf16", 4096, 4096).traffic_bytes
    assert terabytes == pytest.approx(traffic / cell["us"].item() / 1e6)


def test_main_refuses_a_foreign_csv(tmp_path, capsys):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    assert report.main([str(path)], tmp_path) == 2
    assert "not a benchmark result" in capsys.readouterr().out
