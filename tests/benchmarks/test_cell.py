import pytest
import torch

from benchmarks import cell, environment, stopwatch, terminal
from benchmarks.provider import Provider
from benchmarks.shapes import Case
from hp_norm_plugin import reference

CASE = Case("fused_add", "bf16", 4, 64)


def contract(x, residual, weight):
    return reference.fused_add_rms_norm(x, residual, weight, 1e-6)


def provider(name, call=contract, **options):
    return Provider(name, "1.0", lambda case: call, **options)


COPY = provider("copy", lambda x, residual, _: (x.clone(), residual.clone()), is_norm=False)


class Clocks:
    def read(self):
        return 1980, 3201


@pytest.fixture
def bench():
    env = environment.Environment("abc", "2026-01-02", "a GPU", "580", "13.0", "2.11", 2**20)
    return cell.Bench(
        torch.device("cpu"),
        env,
        stopwatch.CpuClock(),
        Clocks(),
        repeats=3,
        free_bytes=lambda _: 2**40,
    )


def by_name(rows):
    return {row.provider: row for row in rows}


def test_a_timed_cell_carries_everything(bench, monkeypatch):
    monkeypatch.setattr(cell, "rule_of", lambda case, device: f"rule of {case}")
    rows = by_name(cell.run(bench, CASE, [provider("hp_norm"), provider("quack"), COPY]))
    ours = rows["hp_norm"]
    assert list(rows) == ["hp_norm", "quack", "copy"]
    assert {row.status for row in rows.values()} == {"ok"}
    assert (ours.sm_clock_mhz, ours.mem_clock_mhz) == (1980, 3201)
    assert (ours.commit, ours.device, ours.provider_version) == ("abc", "a GPU", "1.0")
    assert ours.rule == "rule of fused_add bf16 4 x 64" and rows["quack"].rule == ""
    assert ours.protocol == "cached"
    assert ours.gb_per_s == pytest.approx(CASE.traffic_bytes / ours.us / 1e3)
    assert ours.ratio_to_copy == pytest.approx(rows["copy"].us / ours.us)
    assert rows["copy"].ratio_to_copy == 1


FAR, NEAR, CALM = [1.0, 1.2, 3.0], [1.0, 1.01, 1.15], [1.0, 1.01, 1.0]  # 83, 7 and 0.5 %


@pytest.mark.parametrize(
    ("attempts", "empty", "kept", "marked"),
    [([CALM], CALM, CALM, False), ([FAR, CALM], CALM, CALM, False), ([FAR] * 3, CALM, FAR, True),
     ([NEAR, CALM], CALM, CALM, False), ([NEAR, NEAR, FAR], CALM, NEAR, False),
     ([CALM], FAR, CALM, False)],
)  # fmt: skip
def test_a_disturbed_cell_is_measured_again_and_marked_if_it_stays_so(
    bench, monkeypatch, attempts, empty, kept, marked
):
    """The calmest attempt is kept; the empty kernel is neither a reason for one, nor marked."""
    done = []

    def measure(replays, *_, **__):
        done.append(replays)
        return {"hp_norm": attempts[len(done) - 1], "quack": [2.0] * 3, "empty_kernel": empty}

    monkeypatch.setattr(stopwatch, "measure", measure)
    monkeypatch.setattr(cell, "rule_of", lambda case, device: "")
    bench.steady_spread, bench.calm_spread = cell.GPU_STEADY_SPREAD, cell.GPU_CALM_SPREAD
    names = ("hp_norm", "quack", "empty_kernel")
    rows = by_name(cell.run(bench, CASE, [provider(name) for name in names]))
    assert len(done) == len(attempts)
    assert rows["hp_norm"].us_spread == pytest.approx(cell.stats.relative_iqr(kept))
    assert {row.status for row in rows.values()} == {"ok"} and len(rows) == 3
    assert rows["quack"].reason == rows["empty_kernel"].reason == ""
    assert rows["hp_norm"].reason == (cell.UNSTEADY if marked else "")
    assert (cell.UNSTEADY in terminal.summary_of(rows.values())) == bool(marked)


def test_an_unavailable_provider_is_a_skipped_row(bench):
    rows = by_name(cell.run(bench, CASE, [COPY], {"quack": "quack: No module named 'quack'"}))
    assert rows["quack"].status == "skipped"
    assert rows["quack"].reason == "quack: No module named 'quack'"
    assert rows["quack"].us is None
    assert rows["copy"].status == "ok"


def test_a_wrong_result_is_not_timed(bench):
    def zero(x, residual, weight):
        return torch.zeros_like(x), contract(x, residual, weight)[1]

    rows = by_name(cell.run(bench, CASE, [provider("vllm_c", zero), provider("quack")]))
    assert rows["vllm_c"].status == "failed"
    assert rows["vllm_c"].reason.startswith("wrong output: ")
    assert rows["vllm_c"].us is None
    assert rows["quack"].status == "ok"


def test_a_provider_that_raises_leaves_the_others_alone(bench):
    def broken(x, residual, weight):
        raise RuntimeError("no kernel\nfor this size")

    def unbindable(case):
        raise ValueError(f"hidden size {case.hidden_size} is not supported")

    providers = [provider("quack", broken), Provider("vllm_c", "1", unbindable), COPY]
    rows = by_name(cell.run(bench, CASE, providers))
    assert rows["quack"].reason == "RuntimeError: no kernel for this size"
    assert rows["vllm_c"].reason == "ValueError: hidden size 64 is not supported"
    assert rows["quack"].status == rows["vllm_c"].status == "failed"
    assert rows["copy"].status == "ok"


def test_too_little_memory_skips_every_row_with_the_figures(bench):
    bench.free_bytes = lambda _: 10**6
    case = Case("fused_add", "bf16", 1024, 1024)
    rows = cell.run(bench, case, [provider("hp_norm"), COPY])
    assert {row.status for row in rows} == {"skipped"}
    assert all(row.reason.startswith("not enough memory: needs ") for row in rows)
    assert all("0.0 GB are free" in row.reason for row in rows)


def test_a_provider_that_runs_out_of_memory_is_skipped_and_the_others_run(bench):
    def greedy(x, residual, weight):
        raise torch.OutOfMemoryError("tried to allocate\n2.00 GiB")

    rows = by_name(cell.run(bench, CASE, [provider("quack", greedy), COPY]))
    assert rows["quack"].status == "skipped"
    assert rows["quack"].reason == "not enough memory: tried to allocate 2.00 GiB"
    assert rows["copy"].status == "ok"


def test_inputs_that_do_not_fit_after_all_skip_the_cell_and_not_the_run(bench, monkeypatch):
    def no_inputs(*_):
        raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")

    monkeypatch.setattr(cell.timing, "InputSets", no_inputs)
    rows = cell.run(bench, CASE, [provider("hp_norm"), COPY], {"quack": "not installed"})
    assert {(row.provider, row.status) for row in rows} == {
        (name, "skipped") for name in ("hp_norm", "copy", "quack")
    }
    assert by_name(rows)["copy"].reason == "not enough memory: tried to allocate 2.00 GiB"
    assert by_name(rows)["quack"].reason == "not installed"


def test_without_a_copy_there_is_no_ratio_to_it(bench):
    (row,) = cell.run(bench, CASE, [provider("quack")])
    assert row.us is not None and row.ratio_to_copy is None


def test_the_empty_kernel_has_a_time_but_moves_nothing(bench):
    empty = provider("empty_kernel", lambda *_: None, is_norm=False)
    rows = by_name(cell.run(bench, CASE, [empty, COPY]))
    row = rows["empty_kernel"]
    assert row.us is not None and row.gb_per_s is None and row.ratio_to_copy is None


def test_the_protocol_can_be_forced(bench):
    bench.protocol = "cold"
    rows = cell.run(bench, Case("fused_add", "bf16", 4, 1024), [COPY])
    assert rows[0].protocol == "cold"


def test_the_rule_is_the_one_of_the_operator_that_runs(monkeypatch):
    from hp_norm_plugin import rules

    monkeypatch.setattr(rules, "sm_of", lambda device: 90)
    gpu = torch.device("cuda:0")
    for op, add in (("fused_add", True), ("plain", False)):
        expected = rules.explain(8, 4096, torch.bfloat16, gpu, add=add).describe()
        assert cell.rule_of(Case(op, "bf16", 8, 4096), gpu) == expected
    assert cell.rule_of(CASE, torch.device("cpu")) == ""


def test_commit_comes_from_the_environment_first(monkeypatch):
    monkeypatch.setenv("HP_NORM_COMMIT", "f00ba4")
    assert environment.commit() == "f00ba4"


def test_commit_without_git_is_unknown(monkeypatch):
    def no_git(*_):
        raise FileNotFoundError("git")

    monkeypatch.delenv("HP_NORM_COMMIT", raising=False)
    monkeypatch.setattr(environment, "_git", no_git)
    assert environment.commit() == "unknown"


def test_an_edited_tree_is_marked(monkeypatch):
    answers = {"rev-parse": "abc", "status": " M csrc/ops.cpp"}
    monkeypatch.delenv("HP_NORM_COMMIT", raising=False)
    monkeypatch.setattr(environment, "_git", lambda command, *_: answers[command])
    assert environment.commit() == "abc+dirty"
