"""Tables and charts of served models."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="examples need rich")
from rich.console import Console  # noqa: E402
from serving import report  # noqa: E402


@pytest.mark.parametrize(("kernels", "share"), [(200.0, "5.0%"), (-50.0, "")])
def test_a_share_is_of_something(kernels, share):
    summary = {"kernel_us_per_step": kernels, "norm_us_per_step": 10.0, "norms_per_step": 5,
               "hp_norm_per_step": 5}  # fmt: skip
    console = Console(record=True, width=200)
    profiles = [{"plugin": "on", "kind": "prefill", "batch": 8, "summary": summary}]
    report.print_offline(console, "title", {"rows": [], "profiles": profiles})
    *_, row, _ = console.export_text().strip().splitlines()
    assert "on, prefill 8" in row
    assert [cell.strip() for cell in row.split("│")[1:-1]][1:4] == [f"{kernels:.1f}", "10.0", share]


def test_a_chart_names_every_workload_of_every_panel(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    bars = {
        "TTFT": [("decode 1", 1.0, 0.01), ("prefill 8", 0.99, 0.02)],
        "TPOT": [("decode 1", 0.99, 0.001)],
        "one pair": [("decode 1", 0.99, None)],
        "ITL": [],
    }
    path = tmp_path / "chart.png"
    assert report.chart(path, "tiny-llama", bars)
    assert path.read_bytes().startswith(b"\x89PNG")
    shared = figures[0].axes[0]
    assert [label.get_text() for label in shared.get_yticklabels()] == ["decode 1", "prefill 8"]
    bar, no_bar = (axis.collections[0].get_segments()[0] for axis in figures[0].axes[1:3])
    assert [x for x, _ in bar] == pytest.approx([0.989, 0.991]) and len(no_bar) == 0
    low, high = sorted(shared.get_ylim())
    assert low < 0 and high > 1


def test_without_matplotlib_there_is_no_chart_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not report.chart(tmp_path / "chart.png", "tiny-llama", {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_written_to_its_end_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "found.json"
    report.write_json(path, {"rows": [1]})
    kept = path.read_text()

    def cut_off(self, text):
        self.open("w").write(text[:9])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(KeyboardInterrupt):
        report.write_json(path, {"rows": [1, 2]})
    assert path.read_text() == kept
