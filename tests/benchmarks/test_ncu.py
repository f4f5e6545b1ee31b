import subprocess

import pytest

from benchmarks import ncu
from benchmarks.shapes import Case

CASE = Case("fused_add", "bf16", 4096, 8192)


def output(kernels=1):
    """What ncu writes with --csv --page raw --print-units base: names, units, values."""
    metrics = [metric for metric, _ in ncu.METRICS.values()]
    header = ["ID", "Process ID", "Kernel Name", *metrics]
    units = ["", "", "", "ns", *[""] * (len(metrics) - 1)]
    lines = ["==PROF== Connected to process 7", '"' + '","'.join(header) + '"']
    lines.append('"' + '","'.join(units) + '"')
    for kernel in range(kernels):
        values = [str(kernel), "7", f"norm_kernel<{kernel}, 2>(void *)", "36,400"]
        values += ["2100000000000", "2050000000000", "88.5", "50.1", "61.25", "40", "7.5"]
        values += ["12.5", "3.25", "n/a", "0.5", "0", "1"]
        lines.append('"' + '","'.join(values) + '"')
    return "\n".join([*lines, "==PROF== Disconnected"])


def test_parse_scales_to_our_units():
    (row,) = ncu.parse(output()).itertuples()
    assert row.kernel == "norm_kernel<0, 2>(void *)"
    assert row.us == pytest.approx(36.4)
    assert (row.read_gb_s, row.write_gb_s) == (pytest.approx(2100), pytest.approx(2050))
    assert (row.dram_pct, row.l2_hit_pct, row.occupancy_pct) == (88.5, 50.1, 61.25)
    assert row.stall_long_scoreboard == 12.5
    assert row.stall_lg_throttle != row.stall_lg_throttle


def test_what_ncu_has_no_number_for_is_no_number():
    (row,) = ncu.parse(output().replace('"n/a"', '"(!) n/a"')).itertuples()
    assert row.stall_lg_throttle != row.stall_lg_throttle
    assert row.stall_long_scoreboard == 12.5


def test_every_kernel_of_a_call_is_a_row():
    assert len(ncu.parse(output(3))) == 3


def test_an_error_of_ncu_is_one_line():
    with pytest.raises(ncu.ProfileError, match="ncu: ==ERROR== Failed to connect"):
        ncu.parse("==PROF== hello\n==ERROR== Failed to connect to process\n")
    with pytest.raises(ncu.ProfileError, match="no table in its output"):
        ncu.parse("")


def test_what_the_profiled_process_died_of_is_in_the_line():
    said = "Traceback (most recent call last):\nUnavailableError: unknown provider 'apex'\n"
    ended = "==ERROR== The application returned an error code (1).\n"
    with pytest.raises(ncu.ProfileError, match="error code .1..; UnavailableError: unknown"):
        ncu.parse(f"==PROF== Connected to process 7\n{ended}{said}")


def test_no_ncu_is_one_line(monkeypatch):
    monkeypatch.setattr(ncu.shutil, "which", lambda name: None)
    with pytest.raises(ncu.ProfileError, match="ncu: not found; it comes with the CUDA toolkit"):
        ncu.profile("hp_norm", CASE, "cold")


def run_with(monkeypatch, stdout="", stderr=""):
    monkeypatch.setattr(ncu.shutil, "which", lambda name: "/usr/bin/ncu")
    done = subprocess.CompletedProcess([], 0, stdout, stderr)
    monkeypatch.setattr(ncu.subprocess, "run", lambda *_, **__: done)
    return ncu.profile("hp_norm", CASE, "cold")


def test_no_permission_is_one_line(monkeypatch):
    with pytest.raises(ncu.ProfileError, match="no permission to read counters"):
        run_with(monkeypatch, "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n")


def test_a_profile_names_provider_and_shape(monkeypatch):
    (row,) = run_with(monkeypatch, output()).itertuples()
    assert (row.provider, row.num_tokens, row.hidden_size) == ("hp_norm", 4096, 8192)


def test_the_table_names_the_two_largest_stalls(monkeypatch):
    from rich.console import Console

    console = Console(width=200, record=True, quiet=False)
    with console.capture() as capture:
        console.print(ncu.table_of(run_with(monkeypatch, output())))
    assert "long_scoreboard 12.5, barrier 3.2" in capture.get()


def test_clocks_are_left_alone_and_caches_follow_the_protocol():
    for protocol, caches in (("cold", "all"), ("cached", "none")):
        command = ncu.command("hp_norm", CASE, protocol)
        assert command[command.index("--clock-control") + 1] == "none"
        assert command[command.index("--cache-control") + 1] == caches
        assert command[command.index("--target") + 1] == "hp_norm"
        assert command[command.index("--tokens") + 1] == "4096"


def test_main_tells_why_and_fails_when_nothing_was_profiled(monkeypatch, capsys):
    monkeypatch.setattr(ncu.shutil, "which", lambda name: None)
    assert ncu.main(["--tokens", "1", "--hidden", "64", "--providers", "hp_norm"]) == 2
    assert "hp_norm, fused_add bf16 1 x 64: ncu: not found" in capsys.readouterr().out
