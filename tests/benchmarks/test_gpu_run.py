import importlib
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import default_signals
from rich.console import Console

from benchmarks import gpu_run, run
from benchmarks.environment import ROOT
from benchmarks.gpu_run import TIMED_OUT, Job


def python(code):
    return ("-c", code)


@pytest.fixture
def console():
    return Console(record=True, width=100)


def test_a_job_sees_its_gpu_and_leaves_a_log(tmp_path, console):
    code = "import os; print('on', os.environ['CUDA_VISIBLE_DEVICES']); open('{out}/a', 'w')"
    (done,) = gpu_run.run_jobs([Job("one", python(code), 60)], [3], tmp_path / "new", console)
    assert (done.status, done.gpu) == (0, 3)
    assert (tmp_path / "new" / "one.txt").read_text() == "on 3\n"
    assert (tmp_path / "new" / "a").exists()
    assert "one: ended with 0" in console.export_text()


def test_one_that_fails_or_hangs_leaves_the_rest(tmp_path, console):
    # It hangs in a child, as a server's engines do: that has to go, too, or wait() never returns.
    sleep = "import time; time.sleep(60)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}])"
    jobs = [
        Job("fails", python("raise SystemExit(4)"), 60),
        Job("hangs", python(child), 1),
        Job("works", python("pass"), 60),
    ]
    done = gpu_run.run_jobs(jobs, [0], tmp_path, console)
    assert [ended.status for ended in done] == [4, TIMED_OUT, 0]
    printed = console.export_text()
    assert "fails: FAILED with 4" in printed and "hangs: stopped after its 1 s" in printed


JOBS_OF_A_MINUTE = """
import sys
import time
from benchmarks import gpu_run

code = "import os, time; open('{out}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
gpu_run.JOBS = (gpu_run.Job("first", ("-c", code), 60), gpu_run.Job("second", ("-c", code), 60))
try:
    gpu_run.main([sys.argv[1]])
except KeyboardInterrupt:
    time.sleep(1)  # in which the second would start
    raise
"""


def test_ctrl_c_ends_the_jobs_and_starts_no_other(tmp_path):
    command = [sys.executable, "-c", JOBS_OF_A_MINUTE, str(tmp_path)]
    run_all = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals
    )
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert run_all.poll() is None, run_all.stderr.read()
        time.sleep(0.05)
    run_all.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in run_all.communicate(timeout=30)[1]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (tmp_path / "second.txt").exists()


def test_gpus_work_side_by_side_and_stages_one_after_the_other(tmp_path, console):
    # Each of the first stage waits for the other's file; the second stage finds both.
    wait = (
        "import pathlib, time; pathlib.Path('{{out}}/{0}').touch()\n"
        "while not pathlib.Path('{{out}}/{1}').exists(): time.sleep(0.01)"
    )
    both = "import pathlib; assert {'a', 'b'} <= {p.name for p in pathlib.Path('{out}').iterdir()}"
    jobs = [
        Job("last", python(both), 60, stage=2),
        Job("first", python(wait.format("a", "b")), 60),
        Job("second", python(wait.format("b", "a")), 60),
    ]
    done = gpu_run.run_jobs(jobs, [0, 1], tmp_path, console)
    assert [ended.status for ended in done] == [0, 0, 0]
    assert done[-1].job.name == "last"
    assert {ended.gpu for ended in done[:2]} == {0, 1}


def test_the_arguments_of_every_grid_are_understood():
    grids = [job for job in gpu_run.JOBS if job.arguments[:2] == gpu_run.GRID]
    assert len(grids) == 5
    for job in grids:
        args = run.parser().parse_args(list(job.arguments[2:]))
        assert args.out.name == f"{job.name}.csv" and job.stage == 1
        operator, _, dtype = job.name.partition("-")
        if dtype:  # a quarter of the grid, beside every peer
            assert [kind.split("_")[0] for kind in args.op] == [operator]
            assert args.dtype == [dtype] and args.providers is None


def test_main_runs_what_is_asked_for(tmp_path, monkeypatch, capsys):
    jobs = (Job("good", python("pass"), 60), Job("bad", python("raise SystemExit(2)"), 60))
    monkeypatch.setattr(gpu_run, "JOBS", jobs)
    assert gpu_run.main([str(tmp_path), "--only", "good"]) == 0
    assert gpu_run.main([str(tmp_path), "--gpus", "0", "1"]) == 1
    assert "FAILED with 2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu_run.main([str(tmp_path), "--only", "unknown"])


def test_the_served_models_of_a_gpu_run_are_understood(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    serve_llama = importlib.import_module("serve_llama")
    jobs = [job for job in gpu_run.JOBS if job.arguments[:1] == gpu_run.SERVE]
    assert len(jobs) == 9
    for job in jobs:
        args = serve_llama.parse(list(job.arguments[1:]), gpu=True)
        assert args.out == f"{{out}}/{job.name}"
        assert job.stage == 2, "a compiler beside it would be in its times"
