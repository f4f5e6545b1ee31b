import logging
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import compile_ahead, shapes
from benchmarks.provider import Provider

CPU = torch.device("cpu")
CASES = list(shapes.grid(["fused_add"], ["bf16"], [1, 4], [64, 128]))


def provider(name, compiles_per, seen=None, **options):
    def bind(case):
        if seen is not None:
            seen.append((name, case.num_tokens, case.hidden_size))
        return lambda *_: None

    return Provider(name, "1", bind, compiles_per, **options)


def test_one_task_per_compilation():
    found = compile_ahead.tasks(
        [
            provider("vllm_c", "install"),
            provider("flashinfer_cuda", "process"),
            provider("quack", "hidden_size"),
            provider("inductor", "shape"),
        ],
        CASES,
    )
    by_name = {}
    for name, case in found:
        by_name.setdefault(name, []).append((case.num_tokens, case.hidden_size))
    assert by_name == {
        "flashinfer_cuda": [(1, 128)],
        "quack": [(1, 128), (1, 64)],
        "inductor": [(4, 128), (4, 64), (1, 128), (1, 64)],
    }


def test_what_no_other_process_can_load_is_compiled_here():
    seen, progress = [], []
    compile_ahead.run(
        [provider("flashinfer_cute", "hidden_size", seen)],
        CASES,
        CPU,
        seconds=60,
        advance=lambda *step: progress.append(step),
    )
    assert seen == [("flashinfer_cute", 1, 128), ("flashinfer_cute", 1, 64)]
    assert progress == [("flashinfer_cute", 1, 2), ("flashinfer_cute", 2, 2)]


def test_a_failed_compilation_is_logged_and_not_fatal(caplog):
    def bind(case):
        raise RuntimeError("no such hidden size")

    broken = Provider("flashinfer_cute", "1", bind, "hidden_size")
    with caplog.at_level(logging.WARNING):
        compile_ahead.run([broken], CASES[:1], CPU, seconds=60)
    assert "flashinfer_cute: RuntimeError: no such hidden size (1 times); left" in caplog.text


def test_a_worker_reports_a_provider_that_it_cannot_load(caplog):
    """The worker loads providers by name, so a name that it does not know comes back as a log."""
    unknown = provider("not_there", "shape", disk_cache=True)
    with caplog.at_level(logging.WARNING):
        compile_ahead.run([unknown], CASES[:1], CPU, seconds=120, workers=1)
    assert "not_there" in caplog.text and "unknown provider" in caplog.text


def test_workers_that_cannot_start_are_one_warning(caplog, monkeypatch):
    """A device that takes one process only breaks the pool; the cells then compile themselves."""
    monkeypatch.setattr(compile_ahead, "_start_worker", exit)
    workers = provider("inductor", "shape", disk_cache=True)
    with caplog.at_level(logging.WARNING):
        compile_ahead.run([workers], CASES, CPU, seconds=120, workers=1)
    assert len(caplog.records) == 1
    assert "inductor: BrokenProcessPool" in caplog.text and "4 times" in caplog.text


def test_compiling_makes_one_call_of_the_right_shape():
    calls = []

    def bind(case):
        return lambda x, residual, weight: calls.append((x.shape, residual, weight.shape))

    plain = shapes.Case("plain", "fp16", 3, 16)
    compile_ahead.compile_case(Provider("quack", "1", bind, "shape"), plain, CPU)
    assert calls == [((3, 16), None, (16,))]


SCRIPT = """
import torch, multiprocessing, pickle, sys
sys.path.insert(0, {root!r})
from benchmarks import compile_ahead
if __name__ == "__main__":
    compile_ahead.hide_main_module()
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1, compile_ahead._start_worker, ("cpu",)) as pool:
        there = pool.apply(pickle.dumps, (torch.contiguous_format,))
    print(pickle.dumps(torch.contiguous_format) == there)
"""


def test_workers_and_the_run_agree_on_inductors_cache_key(tmp_path):
    """What workers compiled was never found: the key named ``__mp_main__``, the run as a worker
    sees it, as the home of ``torch.contiguous_format``."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(Path(compile_ahead.__file__).parents[1])))
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
