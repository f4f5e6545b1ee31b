"""Whole engines: the operator runs in them, off means off, and a toggle never mixes graphs up."""

import json
import os
import subprocess
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serve_llama.py"

pytestmark = pytest.mark.engine


def run(python, out, *arguments):
    """Run examples/serve_llama.py and return its exit status, output and JSON."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HP_NORM_PLUGIN")}
    done = subprocess.run(
        [python, str(EXAMPLE), *arguments, "--out", str(out)],
        capture_output=True, text=True, env=environment, timeout=900,
    )  # fmt: skip
    results = list(out.glob("*.json"))
    assert len(results) == 1, done.stdout + done.stderr
    return done, json.loads(results[0].read_text())


def run_script(python, script, **environ):
    """Run engines in one process of their own, which must end well; return what it said."""
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    environment.pop("HP_NORM_PLUGIN", None)
    done = subprocess.run(
        [python, "-c", script, str(EXAMPLE.parent)],
        capture_output=True, text=True, env=environment | environ, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def starts(python, tmp_path_factory):
    """Three starts in one cache, on, off, on, and the folder of their logs."""
    out = tmp_path_factory.mktemp("starts")
    done, result = run(python, out, "cache", "--model", "tiny-llama", "--starts", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    return result["starts"], out


@pytest.mark.xdist_group("starts")
def test_three_starts_in_one_cache(starts):
    """Each setting has one key, its own, and runs its own graph."""
    (on, off, again), out = starts
    # Two layers have two norms each, and one is at the end.
    assert [start["hp_norm_per_step"] for start in (on, off, again)] == [5, 0, 5]
    assert on["cache_dir"] == again["cache_dir"] != off["cache_dir"]
    assert on["cache_dir"].startswith("torch_compile_cache/")  # not where this machine has it
    assert on["tokens"] == again["tokens"]
    log = (out / "engine_start1_on.log").read_text()
    assert log.count("IR adapter, fused_add_rms_norm and rms_norm on") == 1
    assert "hp_norm: LlamaForCausalLM: 5 of 5 norm layers on the operator" in log
    assert "hp_norm: Llama" not in (out / "engine_start2_off.log").read_text()


@pytest.mark.xdist_group("starts")
def test_swapped_compilations_are_those_that_engines_would_have(python, tmp_path, starts):
    """One engine compiles both settings: each has the key that it has in an engine of its own."""
    few = ("--model", "tiny-llama", "--repeats", "1", "--warmup", "0")
    done, result = run(python, tmp_path, "swap", *few)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the operator ran 5 times a decode step (5 norm layers on it)" in done.stdout
    calls = {one["plugin"]: one["summary"]["hp_norm_per_step"] for one in result["profiles"]}
    assert calls == {"off": 0, "on": 5}
    keys = {name: state["cache_dir"] for name, state in result["state"].items()}
    assert keys == {start["plugin"]: start["cache_dir"] for start in starts[0]}


TWO_ENGINES = """
import sys
import torch
from vllm import LLM, SamplingParams

sys.path.insert(0, sys.argv[1])
from serving import models

path = models.resolve("tiny-llama").path
params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True, detokenize=False)
prompt = [{"prompt_token_ids": list(range(5, 21))}]
options = dict(model=path, enforce_eager=True, max_model_len=64, max_num_seqs=2,
               kv_cache_memory_bytes=2**26, skip_tokenizer_init=True, seed=0)
engines = [LLM(**options) for _ in range(2)]
import hp_norm_plugin.vllm as plugin
print("ADAPTER", plugin.registration().adapter)
for engine in engines:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = engine.generate(prompt, params, use_tqdm=False)
    calls = sum(e.count for e in profile.key_averages() if e.key.startswith("hp_norm::"))
    print("CALLS", calls, list(out[0].outputs[0].token_ids))
"""


UNKNOWN_SIZES = """
import sys
import torch
from vllm import LLM, SamplingParams

sys.path.insert(0, sys.argv[1])
from serving import models

compilation = {"mode": 3, "dynamic_shapes_config": {"type": "unbacked"}}
engine = LLM(model=models.resolve("tiny-llama").path, compilation_config=compilation,
             max_model_len=64, max_num_seqs=2, kv_cache_memory_bytes=2**26,
             skip_tokenizer_init=True, seed=0)
params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True, detokenize=False)
import hp_norm_plugin.vllm as plugin
print("ADAPTER", plugin.registration().adapter)
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
    engine.generate([{"prompt_token_ids": list(range(5, 21))}], params, use_tqdm=False)
print("CALLS", sum(e.count for e in profile.key_averages() if e.key.startswith("hp_norm::")))
"""


@pytest.mark.parametrize("adapter", ["ir", "layer"])
def test_sizes_that_dynamo_does_not_know(python, tmp_path, adapter):
    """No check of ours may ask for one: the engine would end where vLLM measures its memory."""
    environ = {"VLLM_CACHE_ROOT": str(tmp_path), "HP_NORM_PLUGIN": adapter}
    done = run_script(python, UNKNOWN_SIZES, **environ)
    assert f"ADAPTER {adapter}" in done.stdout
    assert "5 of 5 norm layers on the operator" in done.stdout + done.stderr
    # Five norms in each of five steps.
    assert "CALLS 25" in done.stdout


def test_two_engines_in_one_process(python):
    """Both run the operator, eagerly here, which is the in-place path."""
    done = run_script(python, TWO_ENGINES)
    assert "ADAPTER ir" in done.stdout
    calls = [line for line in done.stdout.splitlines() if line.startswith("CALLS")]
    assert len(calls) == 2 and calls[0] == calls[1]
    # Five norms in each of five steps.
    assert calls[0].startswith("CALLS 25 ")
