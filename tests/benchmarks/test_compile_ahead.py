import logging

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
    assert "flashinfer_cute, fused_add bf16 1 x 64: RuntimeError: no such hidden" in caplog.text


def test_a_worker_reports_a_provider_that_it_cannot_load(caplog):
    """The worker loads providers by name, so a name that it does not know comes back as a log."""
    unknown = provider("not_there", "shape", disk_cache=True)
    with caplog.at_level(logging.WARNING):
        compile_ahead.run([unknown], CASES[:1], CPU, seconds=120, workers=1)
    assert "not_there" in caplog.text and "unknown provider" in caplog.text


def test_compiling_makes_one_call_of_the_right_shape():
    calls = []

    def bind(case):
        return lambda x, residual, weight: calls.append((x.shape, residual, weight.shape))

    plain = shapes.Case("plain", "fp16", 3, 16)
    compile_ahead.compile_case(Provider("quack", "1", bind, "shape"), plain, CPU)
    assert calls == [((3, 16), None, (16,))]
