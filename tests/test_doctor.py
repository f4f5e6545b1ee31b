"""`python -m hp_norm_plugin`: the report, and an exit status that means something."""

import json
import os
import subprocess
import sys

import pytest
import torch

from hp_norm_plugin import __main__ as command
from hp_norm_plugin import doctor, self_test, settings


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
    result = self_test.run({"library": state, "gpus": gpus})
    assert result["passed"], result["error"]
    assert result["cases"] > 0


def no_weight(right):
    return lambda x, weight, eps, **_: right(x, None, eps)


def no_weight_after_add(right):
    return lambda x, residual, weight, eps, **_: right(x, residual, None, eps)


@pytest.mark.parametrize(
    ("operator", "wrong"),
    [("rms_norm", no_weight), ("fused_add_rms_norm", no_weight_after_add),
     ("fused_add_rms_norm_", no_weight_after_add),
     ("fused_add_rms_norm_", lambda right: lambda *_, **options: None)],
    ids=["rms_norm", "fused_add_rms_norm", "fused_add_rms_norm_", "writes nothing"],
)  # fmt: skip
def test_self_test_notices_a_wrong_operator(monkeypatch, operator, wrong):
    """The self-test must compare, not just run: here the weight is dropped."""
    from hp_norm_plugin import ops

    monkeypatch.setattr(ops, operator, wrong(getattr(ops, operator)))
    result = self_test.run({"library": {"loaded": True, "cuda_loaded": False}, "gpus": []})
    assert not result["passed"]
    assert result["error"].startswith(f"{operator}: out of 1 x 4096 bfloat16")
    assert "differs from the reference by up to" in result["error"]


def test_self_test_begins_with_a_case_of_each_operator():
    """A slow machine, which comes no further in its time, has tried all of them."""
    operators = [case[-1] for case in self_test._cases()]
    assert set(operators[:3]) == set(operators)
    assert set(operators) == {"rms_norm", "fused_add_rms_norm", "fused_add_rms_norm_"}


def test_self_test_ends_in_time(monkeypatch):
    times = iter((0.0, 4.0, 8.0, 12.0))
    monkeypatch.setattr(self_test.time, "monotonic", lambda: next(times))
    result = self_test.run({"library": {"loaded": True, "cuda_loaded": False}, "gpus": []})
    assert (result["passed"], result["cases"]) == (True, 2)


def test_rule_of_a_size_and_of_a_wrong_one():
    assert "threads a row" in doctor.rule(32, 4096, "bfloat16", "sm_90")["text"]
    assert doctor.rule(32, 4096, "bfloat16", "tpu")["error"]


def test_a_missing_library_is_a_line_not_a_traceback(monkeypatch):
    from hp_norm_plugin import library

    def missing():
        raise library.LibraryError("libhp_norm_cpu.so was not built; build it: pip install .")

    monkeypatch.setattr(library, "library_status", missing)
    assert doctor.library() == {
        "loaded": False,
        "error": "libhp_norm_cpu.so was not built; build it: pip install .",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-tokens", "-1"], "--num-tokens: must be at least 0, got -1"),
        (["--hidden-size", "65537"], "--hidden-size: must be 1 to 65536, got 65537"),
        (["--hidden-size", "0"], "--hidden-size: must be 1 to 65536, got 0"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command.parse(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


RUN = [sys.executable, "-m", "hp_norm_plugin"]


def run(*arguments, **variables):
    """Run the command with variables of its own beside the environment's."""
    unset = ("VLLM_PLUGINS", "VLLM_BATCH_INVARIANT")
    kept = {k: v for k, v in os.environ.items() if k not in unset and k[:8] != "HP_NORM_"}
    done = subprocess.run(
        [*RUN, *arguments], capture_output=True, text=True, timeout=180, env={**kept, **variables}
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("variables", "shown", "reason"),
    [
        ({"VLLM_PLUGINS": "other"}, "other",
         "VLLM_PLUGINS=other has no hp_norm, so vLLM does not load it"),
        ({"VLLM_BATCH_INVARIANT": "1"}, "1",
         "batch-invariant mode (VLLM_BATCH_INVARIANT) runs vLLM's own kernels"),
        ({"VLLM_PLUGINS": "other,hp_norm"}, "other,hp_norm", None),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_what_has_vllm_not_run_the_operator(variables, shown, reason, monkeypatch):
    pytest.importorskip("vllm")
    monkeypatch.setattr(self_test, "SECONDS", 0.0)
    (name,) = variables
    monkeypatch.setenv(name, variables[name])
    report = doctor.gather(32, 4096, "bfloat16", None)
    assert report["flags"][name] == {"value": shown, "set": True, "warning": None}
    assert report["self_test"]["passed"]
    assert report["runs"] is (reason is None)
    if reason is not None:
        assert report["vllm"] == {"installed": True, "adapter": None, "reason": reason}
        assert report["verdict"].endswith(f"operator works, but not in vLLM: {reason}")


def test_nothing_but_the_report_is_on_stdout(monkeypatch, capsys):
    """As vLLM 0.28 logs to it while it is imported."""

    def gather(*_):
        print("INFO [importing.py:53] Triton is installed")
        return {**healthy(), "runs": True}

    monkeypatch.setattr(doctor, "gather", gather)
    assert command.main(["--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["runs"] and "Triton is installed" in printed.err


def test_vllms_variables_are_shown_as_they_are():
    names = ("VLLM_PLUGINS", "VLLM_BATCH_INVARIANT")
    unset = settings.read_vllm({})
    assert [(unset[name].value, unset[name].is_set) for name in names] == [
        ("all", False), ("0", False)
    ]  # fmt: skip
    empty = settings.read_vllm({"VLLM_PLUGINS": ""})["VLLM_PLUGINS"]
    assert (empty.value, empty.is_set) == ("", True)


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_torch_that_does_not_import_is_a_line_not_a_traceback(tmp_path, arguments):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        'raise ImportError("libcudart.so.13: cannot open\\nshared object file")\n'
    )
    done = run(*arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == ""
    line = (
        "the operator cannot run: torch does not import: "
        "ImportError: libcudart.so.13: cannot open shared object file"
    )
    if not arguments:
        assert done.stdout.splitlines()[-1] == line
        return
    report = json.loads(done.stdout)
    assert (report["runs"], report["verdict"]) == (False, line)
    problem = line.removeprefix("the operator cannot run: ")
    for part in ("library", "rule"):
        assert report[part]["error"] == problem, "what torch said the first time"
    assert (report["vllm"]["adapter"], report["vllm"]["reason"]) == (None, problem)
    assert report["versions"]["torch"]  # as it is installed
    assert report["flags"]["HP_NORM_PLUGIN"]["value"] == "auto"


def test_the_command_prints_json_and_its_status_follows_the_flag():
    done = run("--json", "--device", "sm_100", HP_NORM_PLUGIN="0")
    report = json.loads(done.stdout)
    assert report["rule"]["device"] == "sm_100"
    assert report["flags"]["HP_NORM_PLUGIN"] == {"value": "0", "set": True, "warning": None}
    assert report["self_test"]["passed"]
    assert done.returncode == (1 if report["vllm"]["installed"] else 0)
    assert "self-test" in command.text(report)


def test_every_fact_begins_in_the_same_column():
    lines = command.text(doctor.gather(1, 4096, "bfloat16", "sm_90")).split("\n\n")[0].splitlines()
    column = max(len(name) for name in doctor.flags()) + 2
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)
