"""What the modes of examples/serve_llama.py conclude from what they saw."""

import pytest

pytest.importorskip("rich", reason="examples need rich")
from serving import agreement, cache, offline  # noqa: E402


def result(on, off=0.0, layers=None):
    state = {
        "reason": "vLLM 0.26.0, IR adapter",
        "layers": layers or {"operator": 5},
        "left": [],
        "first_gpc": [],
    }
    profiles = [
        {"plugin": name, "kind": kind, "summary": {"hp_norm_per_step": calls * steps}}
        for name, calls in (("off", off), ("on", on))
        for kind, steps in (("decode", 1), ("prefill", 2))  # which may be of more steps than one
    ]
    return {"profiles": profiles, "state": {"on": state, "off": state}}


@pytest.mark.parametrize(
    ("outcome", "ran", "words"),
    [
        (result(5.0), True, "the operator ran 5 times a decode step (5 norm layers on it)"),
        (result(0.0), False, "the operator did not run: vLLM 0.26.0, IR adapter"),
        (result(5.0, off=5.0), False, "the operator ran 5 times a step with the plugin off"),
        (result(0.0, layers={"fp8 quantisation fuses with the norm": 65}), False,
         "65 fp8 quantisation fuses with the norm"),
    ],
)  # fmt: skip
def test_verdict_is_a_count_not_a_flag(outcome, ran, words):
    verdict = offline.verdict(outcome)
    assert verdict[0] is ran
    assert words in verdict[1]


def test_who_compiled_and_who_loaded():
    counted = {"off": (1, 0), "on": (0, 1)}
    state = {
        name: {"compile": {"num_aot_compiles": compiled, "num_aot_artifacts_loaded": loaded}}
        for name, (compiled, loaded) in counted.items()
    }
    assert offline.graphs({"state": state}).endswith(
        "off compiled 1, loaded 0; on compiled 0, loaded 1"
    )


def start(plugin, key, calls, loaded=1, compiled=0):
    return {"plugin": plugin, "cache_dir": key, "hp_norm_per_step": calls, "loaded": loaded,
            "compiled": compiled, "start_seconds": 1.0}  # fmt: skip


FILL = [start("on", "a", 65, 0, 1), start("off", "b", 0, 0, 1)]


@pytest.mark.parametrize(
    ("later", "apart", "words"),
    [
        ([start("on", "a", 65), start("off", "b", 0)], True, "each later start loaded its own"),
        ([start("on", "b", 65)], False, "one setting had two keys"),
        ([start("on", "a", 0)], False, "plugin on: 0 calls a step"),
        ([start("off", "b", 65)], False, "plugin off: 65 calls a step"),
        ([start("on", "a", 65, 0, 1)], False, "1 later starts did not load their graph"),
    ],
)
def test_cache_verdict(later, apart, words):
    verdict = cache.verdict({"starts": FILL + later}, gpu=True)
    assert verdict[0] is apart
    assert words in verdict[1]


def test_cache_verdict_sees_a_shared_key():
    starts = [start("on", "a", 65), start("off", "a", 0)]
    assert cache.verdict({"starts": starts}, gpu=False)[1].startswith("both settings have one key")


ASIDE = [start("on", "a", 0, 0, 1), start("off", "a", 0), start("on", "a", 0)]


@pytest.mark.parametrize(
    ("starts", "may", "fine", "words"),
    [
        (ASIDE, True, True, "3 starts, one key for both settings; each later start loaded the fir"),
        (ASIDE, False, False, "plugin on: 0 calls a step"),
        ([ASIDE[0], start("off", "b", 0)], True, False, "the settings have two keys for one graph"),
        ([ASIDE[0], start("off", "a", 0, 0, 1)], True, False, "1 later starts did not load"),
        (FILL, True, True, "2 starts, one key for each setting"),
    ],
)
def test_cache_verdict_of_a_model_that_the_plugin_leaves_alone(starts, may, fine, words):
    verdict = cache.verdict({"starts": starts}, gpu=True, may_stand_aside=may)
    assert verdict[0] is fine
    assert words in verdict[1]


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("torch_compile_cache/3f0c9a7be1d24c55/rank_0_0/backbone", "3f0c9a7be1d2"),
        ("torch_compile_cache/torch_aot_compile/44de79eaa8e5404b74/rank_0_0", "44de79eaa8e5"),
        ("somewhere", "somewhere"),
    ],
)
def test_the_key_of_a_cache_folder(folder, key):
    assert cache._key(folder) == key


def test_agreement_names_the_nearest_order():
    rows = [
        {"against_off": name, "logprob_moved_mean": moved}
        for name, moved in (("off again", 0.0), ("once", 0.02), ("before_weight", 0.01))
    ]
    assert agreement.verdict({"comparisons": rows}).endswith("rounding before_weight")
