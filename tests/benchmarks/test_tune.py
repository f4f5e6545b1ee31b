import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from benchmarks import shapes, tune
from benchmarks.providers import CANDIDATE
from hp_norm_plugin import rules
from hp_norm_plugin.rules import Config

FIRST, SECOND, *_ = rules.OPTIONS


def test_names_tell_configurations_apart():
    candidates = rules.candidates(4096, torch.bfloat16, 90)
    names = [tune.name_of(config) for config in tune.with_options(candidates, [FIRST, SECOND])]
    assert len(set(names)) == len(names) > 8
    assert tune.name_of(Config(16, 2, 4, 1, 0)) == "candidate:16B x2, 4 rows, 1 CTA"
    named = tune.name_of(Config(16, 1, 1, 8, rules.OPTIONS[FIRST]))
    assert named == f"candidate:16B x1, 1 row, 8 CTAs, {FIRST}"


def test_a_name_is_read_with_its_prefix_and_without():
    config = Config(16, 2, 1, 4, rules.OPTIONS["trigger_early"] + rules.OPTIONS["fill_gpu"])
    name = tune.name_of(config)
    assert tune.config_of(name) == tune.config_of(name.removeprefix(CANDIDATE)) == config


def test_what_no_kernel_exists_for_is_no_candidate():
    case = shapes.Case("fused_add", "bf16", 8, 4096)
    found = tune.candidates(case, "sm_90", ["staged", "cached", "pair_ctas"], "")
    configs = [tune.config_of(provider.name) for provider in found]
    assert len(configs) > 8 and all(config.is_valid(case.row_bytes) for config in configs)
    assert {config.options for config in configs} >= {0, rules.OPTIONS["pair_ctas"]}


def test_every_subset_of_the_options_once():
    configs = tune.with_options([Config(16, 1)], [FIRST, SECOND])
    first, second = rules.OPTIONS[FIRST], rules.OPTIONS[SECOND]
    assert [config.options for config in configs] == [0, first, second, first + second]


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match=f"options: must be of {FIRST}, .*, got speed"):
        tune.with_options([Config(16, 1)], ["speed"])


def test_a_provider_forces_its_configuration_for_its_own_calls_only(monkeypatch):
    import contextlib

    import hp_norm_plugin

    log = []

    @contextlib.contextmanager
    def forced(config):
        log.append(config)
        yield
        log.append(None)

    monkeypatch.setattr(rules, "forced", forced)
    monkeypatch.setattr(hp_norm_plugin, "rms_norm", lambda *_: log.append("call"))
    config = Config(16, 2)
    call = tune.as_provider(config).bind(shapes.Case("plain", "bf16", 1, 64))
    assert log == []
    call(torch.ones(1, 64), None, torch.ones(64))
    assert log == [config, "call", None]


def test_ranking_is_by_time_and_relative_to_the_rule(a_row):
    rows = [
        replace(a_row, us=2.0),
        replace(a_row, provider="candidate:a", us=2.5),
        replace(a_row, provider="candidate:b", us=1.6),
        replace(a_row, provider="candidate:c", us=None, status="failed"),
        replace(a_row, provider="copy", us=1.0),
    ]
    assert [(one.name, one.us, one.gain) for one in tune.ranking(rows)] == [
        ("b", 1.6, pytest.approx(1.25)),
        ("a", 2.5, pytest.approx(0.8)),
    ]


def test_many_candidates_are_timed_in_groups_each_beside_the_rule(a_row):
    found = list(range(tune.AT_A_TIME + 3))
    first, second = tune.groups(["rule", "copy"], found)
    assert first == ["rule", "copy", *found[:-3]] and second == ["rule", "copy", *found[-3:]]
    assert tune.groups(["rule"], []) == [["rule"]]

    console = Console(file=io.StringIO(), width=200)
    timed = [
        [replace(a_row, us=2.0), replace(a_row, provider="candidate:a", us=1.9)],
        [replace(a_row, us=2.2), replace(a_row, provider="candidate:b", us=1.8)],
    ]
    tune.print_ranking(console, shapes.Case("plain", "bf16", 1, 64), timed, top=2)
    _, *ranked = console.file.getvalue().splitlines()
    assert [line.split()[0:3:2] for line in ranked] == [["1.8", "1.222x"], ["1.9", "1.053x"]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_there_is_nothing_to_tune(tmp_path, capsys):
    assert tune.main(["--out", str(tmp_path / "a.csv")]) == 2
    assert "no CUDA device here" in capsys.readouterr().out
    assert not (tmp_path / "a.csv").exists()


def test_no_tokens_are_refused_by_the_parser(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tune.main(["--tokens", "0", "--out", str(tmp_path / "a.csv")])
    assert "--tokens: invalid positive_int value: '0'" in capsys.readouterr().err
