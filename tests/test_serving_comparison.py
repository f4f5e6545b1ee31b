"""What is said of a workload that served models did with the plugin off and on."""

import json

import pytest
from helpers import runs

pytest.importorskip("rich", reason="examples need rich")
from rich.console import Console  # noqa: E402
from serving import comparison, report  # noqa: E402


def test_the_time_per_output_token_leaves_the_first_one_out():
    work = {"kind": "decode", "batch": 1, "input_len": 4, "output_len": 129}
    engines = {"off": runs(0.5, 129), "on": runs(0.25, 129)}
    row = comparison.summarise(work, engines)
    assert row["tpot_s"] == {"off": 0.5, "on": 0.25} and row["tpot_ratio"] == 0.5


def test_more_engines_are_averaged_and_variants_compared_with_off():
    work = {"kind": "decode", "batch": 1, "input_len": 4, "output_len": 3}
    engines = {"off": runs(2.0), "on": runs(1.0), "no-pdl": runs(1.5),
               "off-2": runs(3.0), "on-2": runs(1.5)}  # fmt: skip
    row = comparison.summarise(work, engines)
    ratios = {name: ratio for name, (ratio, _) in row["others"].items()}
    assert ratios == {"no-pdl": 0.75, "off-2": 1.5, "on-2": 0.75}
    # 1.25 over 2.5; the standard errors of the means are 0.25 and 0.5, a fifth of each.
    assert row["tpot_ratio"] == 0.5 and row["tpot_spread"] == pytest.approx(0.5 * 0.08**0.5)
    assert row["tpot_mean_s"] == {"off": 2.5, "on": 1.25}
    console = Console(record=True, width=200)
    report.print_offline(console, "title", {"rows": [row], "profiles": []})
    text = console.export_text()
    assert "off-2/off" in text and "1.5000" in text and "2500.000, 1250.000" in text
    assert "no-pdl/off" in text and "0.7500" in text
    for name in ("off-2", "on-2", "no-pdl"):
        del engines[name]
    row = comparison.summarise(work, engines)
    report.print_offline(console, "title", {"rows": [row], "profiles": []})
    assert row["others"] == {} and "/off" not in console.export_text().replace("on/off", "")


def test_of_a_prefill_the_first_tokens_are_compared():
    work = {"kind": "prefill", "batch": 8, "input_len": 4, "output_len": 1}
    slow = {**runs(1.0), "first_token_s": [1.5, 1.5]}
    row = comparison.summarise(work, {"off": runs(1.0), "on": runs(1.0), "slow": slow})
    assert (row["ttft_ratio"], row["others"]["slow"][0]) == (1.0, 1.5)
    console = Console(record=True, width=200)
    report.print_offline(console, "title", {"rows": [row], "profiles": []})
    assert "1.5000" in console.export_text()


def test_a_single_pair_has_no_spread(tmp_path):
    """Neither a table, nor the JSON, nor the chart says that it has one of zero."""
    work = {"kind": "decode", "batch": 1, "input_len": 4, "output_len": 2}
    run = {"first_token_s": [1.0], "all_tokens_s": [2.0], "tokens": [[[1, 2]]]}
    row = comparison.summarise(work, {"off": run, "on": run, "no-pdl": run})
    graph = {"batch": 1, **comparison.compare("step", {"off": [1.0], "on": [1.0]})}
    parts = (comparison.compare(part, {"off": [1.0], "on": [1.0]}) for part in ("graph", "rest"))
    console = Console(record=True, width=200)
    report.print_offline(console, "title", {"rows": [row], "profiles": []})
    report.print_replayed(console, [graph])
    report.print_watched(console, [dict(item for part in (graph, *parts) for item in part.items())])
    text = console.export_text()
    # Three of the first table, one of the second, three of the third.
    assert text.count("1.0000") == 7 and "±" not in text
    report.write_json(tmp_path / "it.json", {"rows": [row]})
    kept = json.loads((tmp_path / "it.json").read_text(), parse_constant=pytest.fail)
    assert kept["rows"][0]["tpot_spread"] is None
    assert kept["rows"][0]["others"]["no-pdl"] == [1.0, None]
    bars = report.offline_bars(kept)
    assert bars["TPOT"] == [("decode 1", 1.0, None)]


def test_turns_go_there_and_back_and_the_first_ones_do_not_count():
    found = list(comparison.turns(["off", "on"], warmup=1, repeats=2))
    assert [name for name, _ in found] == ["off", "on", "on", "off", "off", "on"]
    assert [counts for _, counts in found] == [False, False, True, True, True, True]


def test_names_are_found_again():
    names = [comparison.named(setting, n) for n in (1, 2, 12) for setting in ("on", "off")]
    assert comparison.more_of("off", names) == ["off", "off-2", "off-12"]
