"""`python -m hp_norm_plugin`: the report, and an exit status that means something."""

import json
import subprocess
import sys

import pytest
import torch

from hp_norm_plugin import __main__ as command
from hp_norm_plugin import doctor, settings


def healthy(**changes):
    """A report of a GPU machine on which everything works."""
    report = {
        "gpus": [{"name": "NVIDIA H200", "sm": 90, "covered": True}],
        "library": {"loaded": True, "cuda_loaded": True, "cuda_error": None, "cuda_archs": ["90"]},
        "vllm": {"installed": True, "adapter": "ir", "reason": "vLLM 0.26.0, IR adapter"},
        "self_test": {"passed": True, "cases": 3, "device": "cuda:0", "error": None},
    }
    for name, change in changes.items():
        report[name] = change if isinstance(change, list) else {**report[name], **change}
    return report


@pytest.mark.parametrize(
    ("changes", "runs", "words"),
    [
        ({}, True, "the CUDA operator works, and in vLLM: vLLM 0.26.0, IR adapter"),
        ({"gpus": []}, True, "the CPU operator works"),
        ({"vllm": {"installed": False, "adapter": None, "reason": "vLLM is not installed"}}, True,
         "vLLM is not installed"),
        ({"vllm": {"adapter": None, "reason": "off (HP_NORM_PLUGIN=0)"}}, False,
         "the CUDA operator works, but not in vLLM: off (HP_NORM_PLUGIN=0)"),
        ({"library": {"loaded": False, "error": "libhp_norm_cpu.so was not built"}}, False,
         "the operator cannot run: libhp_norm_cpu.so was not built"),
        ({"library": {"cuda_loaded": False, "cuda_error": "not built"}}, False,
         "the CUDA operator cannot run: not built"),
        ({"gpus": [{"name": "T4", "sm": 75, "covered": False}]}, False,
         "the CUDA library has no code for T4 (sm_75)"),
        ({"self_test": {"passed": False, "error": "out differs"}}, False,
         "the self-test failed: out differs"),
    ],
)  # fmt: skip
def test_verdict(changes, runs, words):
    verdict = doctor.verdict(healthy(**changes))
    assert verdict[0] is runs
    assert words in verdict[1]


@pytest.mark.parametrize(
    ("tokens", "width", "scope", "adapter", "gpus", "left"),
    [
        (33, 4096, "auto", "ir", True, True),
        (256, 7168, "auto", "ir", True, True),
        (32, 4096, "auto", "ir", True, False),
        (257, 4096, "auto", "ir", True, True),
        (64, 8192, "auto", "ir", True, False),
        (64, 4096, "all", "ir", True, False),
        (64, 4096, "auto", "layer", True, False),
        (64, 4096, "auto", "ir", False, False),
    ],
)
def test_a_size_that_vllm_keeps_for_inductor_is_said(tokens, width, scope, adapter, gpus, left):
    report = healthy(vllm={"adapter": adapter}, **({} if gpus else {"gpus": []}))
    report["flags"] = {"HP_NORM_SCOPE": {"value": scope, "set": True, "warning": None}}
    said = doctor.in_vllm(report, tokens, width)
    assert (said is not None) == left
    if left:
        assert said == "Inductor's norm (more than 32 tokens, narrower than 8192)"


def test_self_test_passes_here():
    state = {"loaded": True, "cuda_loaded": torch.cuda.is_available()}
    gpus = [{}] if torch.cuda.is_available() else []
    result = doctor.self_test({"library": state, "gpus": gpus})
    assert result["passed"], result["error"]
    assert result["cases"] > 0


def test_self_test_notices_a_wrong_operator(monkeypatch):
    """The self-test must compare, not just run: here the weight is dropped."""
    from hp_norm_plugin import ops

    right = ops.fused_add_rms_norm
    monkeypatch.setattr(
        ops, "fused_add_rms_norm", lambda x, r, weight, eps, **k: right(x, r, None, eps)
    )
    result = doctor.self_test({"library": {"loaded": True, "cuda_loaded": False}, "gpus": []})
    assert not result["passed"]
    assert "differs from the reference by up to" in result["error"]


def test_rule_of_a_size_and_of_a_wrong_one():
    assert "threads a row" in doctor.rule(32, 4096, "bfloat16", "sm_90")["text"]
    assert doctor.rule(32, 4096, "bfloat16", "tpu")["error"]


def test_a_missing_library_is_a_line_not_a_traceback(monkeypatch):
    from hp_norm_plugin import ops

    def missing():
        raise ops.LibraryError("libhp_norm_cpu.so was not built; build it: pip install .")

    monkeypatch.setattr(ops, "library_status", missing)
    assert doctor.library() == {
        "loaded": False,
        "error": "libhp_norm_cpu.so was not built; build it: pip install .",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-tokens", "-1"], "--num-tokens: must be at least 0, got -1"),
        (["--hidden-size", "65537"], "--hidden-size: must be 1 to 65536, got 65537"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command.parse(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_json_and_its_status_follows_the_flag(monkeypatch):
    run = [sys.executable, "-m", "hp_norm_plugin", "--json", "--device", "sm_100"]
    monkeypatch.setenv("HP_NORM_PLUGIN", "0")
    done = subprocess.run(run, capture_output=True, text=True, timeout=180)
    report = json.loads(done.stdout)
    assert report["rule"]["device"] == "sm_100"
    assert report["flags"]["HP_NORM_PLUGIN"] == {"value": "0", "set": True, "warning": None}
    assert report["self_test"]["passed"]
    assert done.returncode == (1 if report["vllm"]["installed"] else 0)
    assert "self-test" in command.text(report)


def test_every_fact_begins_in_the_same_column():
    lines = command.text(doctor.gather(1, 4096, "bfloat16", "sm_90")).split("\n\n")[0].splitlines()
    column = max(len(name) for name in settings.read_all()) + 2
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)
