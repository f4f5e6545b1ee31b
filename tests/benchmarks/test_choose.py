import math
from dataclasses import replace

import pandas as pd
import pytest

from benchmarks import choose, environment, records, results, tune
from benchmarks.choose import AT_END, EARLY, Choice
from hp_norm_plugin import rules

A, B, LATE = (1, 1, 1, EARLY), (2, 1, 1, AT_END), (4, 1, 1, 0)
SWEEP = results.RESULTS / "sweep" / "2026-11-26-h200-shorter.csv"


def sweep(path, times, op="fused_add"):
    """A CSV of ``{(num_tokens, hidden_size): {config: us}}``, as benchmarks/sweep.cu writes it."""
    columns = ["vecs_per_thread", "rows_per_cta", "ctas_per_row", "options"]
    rows = [
        {"op": op, "num_tokens": tokens, "hidden_size": width, "us": us,
         **dict(zip(columns, config, strict=True))}
        for (tokens, width), of_shape in times.items()
        for config, us in of_shape.items()
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def losses_of(tmp_path, *cards, robust_tokens=256):
    paths = [sweep(tmp_path / f"{index}.csv", times) for index, times in enumerate(cards)]
    return choose.merge([choose.read(path, "fused_add") for path in paths], robust_tokens)


def test_a_rule_is_split_where_that_wins_more_than_it_costs(tmp_path):
    def times(better):
        return {
            (1, 1024): {A: 1.0, B: better},
            (1, 2048): {A: better, B: 1.0},
            (2, 1024): {A: 1.0, B: better},
            (2, 2048): {A: better, B: 1.0},
        }

    assert choose.choose(losses_of(tmp_path, times(1.05))) == [
        Choice(2, 1024, A),
        Choice(2, 2048, B),
    ]
    assert len(choose.choose(losses_of(tmp_path, times(1.01)))) == 1


def test_numbers_of_tokens_that_disagree_have_rules_of_their_own(tmp_path):
    times = {(1, 1024): {A: 1.0, B: 2.0}, (8, 1024): {A: 2.0, B: 1.0}}
    losses = losses_of(tmp_path, times)
    found = choose.choose(losses)
    assert found == [Choice(1, 1024, A), Choice(8, 1024, B)]
    assert choose.lost(found, losses) == {(1, 1024): 0.0, (8, 1024): 0.0}


def test_the_worse_card_counts_and_what_it_has_not_measured_does_not(tmp_path):
    first, second = {(1, 1024): {A: 1.0, B: 1.02}}, {(1, 1024): {A: 3.0, B: 2.0}}
    losses = losses_of(tmp_path, first, second)
    assert losses[1, 1024] == {A: pytest.approx(math.log(1.5)), B: pytest.approx(math.log(1.02))}
    assert choose.choose(losses) == [Choice(1, 1024, B)]
    del second[1, 1024][B]
    assert choose.choose(losses_of(tmp_path, first, second)) == [Choice(1, 1024, A)]


def test_a_short_call_does_not_trigger_behind_its_loads(tmp_path):
    times = {(tokens, 1024): {LATE: 1.0, A: 1.2} for tokens in (256, 512)}
    assert choose.choose(losses_of(tmp_path, times)) == [
        Choice(256, 1024, A),
        Choice(512, 1024, LATE),
    ]
    assert choose.choose(losses_of(tmp_path, times, robust_tokens=0)) == [Choice(512, 1024, LATE)]
    only_late = losses_of(tmp_path, {(1, 1024): {LATE: 1.0}})
    with pytest.raises(ValueError, match="no configuration is left for a shape"):
        choose.choose(only_late)


def test_tune_writes_what_is_read(tmp_path, a_row):
    config = rules.Config(16, 2, 1, 4, EARLY | 512)
    writer = records.Writer(tmp_path / "tune.csv")
    row = replace(a_row, op="fused_add", num_tokens=8, hidden_size=4096, us=2.0)
    writer.write([replace(row, provider=tune.name_of(config)), replace(row, provider="hp_norm")])
    writer.close()
    assert choose.read(tmp_path / "tune.csv", "fused_add") == {(8, 4096): {(2, 1, 4, 513): 0.0}}


def test_only_what_a_rule_can_say_is_read(tmp_path):
    narrow, wide = (2, 1, 1, rules.OPTIONS["narrow"]), (2, 1, 1, EARLY)
    losses = losses_of(tmp_path, {(1, 1024): {narrow: 1.0, wide: 1.5}})
    assert losses == {(1, 1024): {wide: 0.0}}


def test_lines_are_the_tables(capsys):
    """A line of the table, from the sweep that it says it comes from."""
    assert choose.main([str(SWEEP), "--op", "fused_add", "--evidence", "kShort"]) == 0
    printed = capsys.readouterr().out.splitlines()
    table = (environment.ROOT / "csrc" / "cuda" / "launch_rules_table.inc").read_text().splitlines()
    assert len(set(printed) & set(table)) > 10
    assert "rules for 285 shapes" in printed[-1]
    first = choose.line(Choice(1, 2048, A), "plain", False, "kX")
    assert first == "    {90, 99, kPlainOp, 4096, 1, {16, 1, 1, 1, kEarly}, kX},"
    assert "kNoLimit, {16, 4, 1, 1, 0}" in choose.line(Choice(1, 2048, LATE), "plain", True, "kX")


def test_nothing_to_choose_from_is_said(tmp_path, capsys):
    path = sweep(tmp_path / "a.csv", {(1, 1024): {A: 1.0}})
    assert choose.main([str(path), "--op", "plain"]) == 2
    assert "no plain in" in capsys.readouterr().err


def test_a_foreign_file_or_none_is_one_line(tmp_path, capsys):
    (tmp_path / "peers.csv").write_text("op,us\nfused_add,1\n")
    for name, message in (("peers.csv", "neither of benchmarks/sweep.cu nor"), ("none.csv", "No")):
        assert choose.main([str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("choose: ") and name in line and message in line


def test_every_option_of_a_rule_has_its_name_in_the_table():
    """A configuration with another one would be left out without a word."""
    used = {name for rule in rules.table() for name in rule.config.option_names()}
    assert used <= set(choose.NAMES)
