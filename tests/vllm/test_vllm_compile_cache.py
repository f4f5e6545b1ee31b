"""The compile-cache key: what has nodes of ours has a key of its own, all else the key without."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hp_norm_plugin import library
from hp_norm_plugin.vllm import policy
from hp_norm_plugin.vllm.host import detect


def key(model=None):
    """The key of a compiled graph, but for the model's sources, as vLLM's AOT cache makes it.

    Of a model in a folder, or of a configuration without one.
    """
    from vllm import envs
    from vllm.config import VllmConfig
    from vllm.config.utils import hash_factors
    from vllm.engine.arg_utils import EngineArgs

    if model is None:
        config = VllmConfig()
    else:
        config = EngineArgs(
            model=str(model), load_format="dummy", max_model_len=64, max_num_seqs=2,
            kv_cache_memory_bytes=2**26, skip_tokenizer_init=True,
        ).create_engine_config()  # fmt: skip
    # The first configuration of a process sets variables of vLLM's.
    return config.compute_hash(), hash_factors(envs.compile_factors())


@pytest.fixture
def key_of(clean, fresh, monkeypatch):
    """Return a function: the key in a process that registers with such variables."""

    def registered(model=None, **environ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        fresh()
        clean.register()
        return key(model)

    return registered


def test_on_off_on(key_of):
    on, off = key_of(HP_NORM_PLUGIN="1"), key_of(HP_NORM_PLUGIN="0")
    assert on != off
    assert key_of(HP_NORM_PLUGIN="1") == on
    assert key_of(HP_NORM_PLUGIN="0") == off


def test_off_is_the_key_without_the_plugin(clean, key_of):
    before = key()
    assert key_of(HP_NORM_PLUGIN="0") == before


@pytest.mark.parametrize("adapter", ["ir", "layer"])
def test_on_is_not_the_key_without_the_plugin(clean, key_of, adapter):
    before = key()
    assert key_of(HP_NORM_PLUGIN=adapter) != before


@pytest.mark.skipif(not detect().has_ir, reason="this vLLM has no IR")
def test_a_model_that_stands_aside_has_the_key_without_the_plugin(clean, key_of, monkeypatch):
    """Its graph is the one that there would be without it, and so are its artifacts."""
    before = key()
    monkeypatch.setattr(policy, "stand_aside", lambda config: "as arranged")
    assert key_of(HP_NORM_PLUGIN="ir") == before
    assert clean.registration().adapter == "ir"


def write_model(folder, name, **sizes):
    """Write the configuration of one of examples/models in smaller."""
    source = Path(__file__).resolve().parents[2] / "examples" / "models" / f"{name}.json"
    config = json.loads(source.read_text()) | sizes
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][: config["num_hidden_layers"]]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(not detect().has_ir, reason="this vLLM has no IR")
@pytest.mark.parametrize(
    ("name", "left_alone"), [("Gemma-3-4B-text", True), ("Llama-3.2-1B", False)]
)
def test_the_keys_of_models(key_of, tmp_path, monkeypatch, name, left_alone):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = write_model(tmp_path, name, num_hidden_layers=2)
    on, off = (key_of(model, HP_NORM_PLUGIN=value) for value in ("1", "0"))
    assert (on == off) == left_alone


@pytest.mark.skipif(not detect().has_ir, reason="this vLLM has no IR")
def test_a_draft_model_leaves_its_targets_key(key_of, monkeypatch):
    """vLLM completes the draft's configuration on the target's lists, then takes the key."""
    from vllm.config import VllmConfig

    monkeypatch.setattr(policy, "stand_aside", lambda config: "as arranged")
    before, _ = key_of(HP_NORM_PLUGIN="ir")
    target = VllmConfig()
    assert target.compute_hash() == before
    monkeypatch.setattr(policy, "stand_aside", lambda config: None)
    VllmConfig(kernel_config=target.kernel_config, compilation_config=target.compilation_config)
    assert target.compute_hash() == before


@pytest.mark.skipif(not detect().has_ir, reason="this vLLM has no IR")
def test_gemmas_layers_in_a_graph_are_in_the_key(key_of, monkeypatch):
    """With HP_NORM_SCOPE=all they come into graphs whatever the providers."""
    monkeypatch.setattr(policy, "stand_aside", lambda config: "as arranged")
    assert key_of(HP_NORM_SCOPE="all") != key_of(HP_NORM_SCOPE="auto")


def test_auto_and_its_aliases_are_one_key(key_of):
    assert len({key_of(HP_NORM_PLUGIN=value) for value in ("1", "auto", "on")}) == 1


@pytest.mark.parametrize("adapter", ["auto", "layer"])
@pytest.mark.parametrize(
    ("name", "value"), [("HP_NORM_ROUNDING", "before_weight"), ("HP_NORM_SCOPE", "all")]
)
def test_every_flag_that_shapes_a_graph_is_in_the_key(key_of, adapter, name, value):
    default = key_of(HP_NORM_PLUGIN=adapter)
    assert key_of(**{name: value}) != default


@pytest.mark.parametrize(("name", "value"), [("HP_NORM_FIRST_GPC", "3"), ("HP_NORM_PDL", "0")])
def test_a_flag_of_launches_alone_is_not_in_the_key(key_of, name, value):
    default = key_of()
    assert key_of(**{name: value}) == default


def test_adapters_have_different_keys(key_of):
    assert key_of(HP_NORM_PLUGIN="ir") != key_of(HP_NORM_PLUGIN="layer")


@pytest.mark.parametrize("adapter", ["auto", "layer"])
def test_a_rebuilt_library_is_a_new_key(key_of, monkeypatch, adapter):
    first = key_of(HP_NORM_PLUGIN=adapter)
    status = replace(library.library_status(), digest="f" * 16)
    monkeypatch.setattr(library, "library_status", lambda: status)
    assert key_of() != first


@pytest.mark.parametrize("adapter", ["auto", "layer"])
def test_a_changed_source_is_a_new_key(key_of, monkeypatch, adapter):
    from hp_norm_plugin.vllm import compile_cache

    first = key_of(HP_NORM_PLUGIN=adapter)
    monkeypatch.setattr(compile_cache, "source_digest", lambda: "0" * 16)
    assert key_of() != first


def test_a_library_that_does_not_run_shares_no_key_with_one_that_does(clean, key_of, monkeypatch):
    on = key_of()
    monkeypatch.setattr(clean, "_library_problem", lambda host: "does not load")
    assert key_of() != on


def test_what_torchs_own_caches_know_of_a_provider_changes_with_the_flags(fresh, monkeypatch):
    """Their key has `uuid()`, which is vLLM's digest of one file; a graph depends on more."""
    from hp_norm_plugin.vllm import compile_cache, ir_provider

    ir = pytest.importorskip("vllm.ir", reason="this vLLM has no IR")
    seen = set()
    for rounding in ("once", "before_weight", "once"):
        monkeypatch.setenv("HP_NORM_ROUNDING", rounding)
        fresh()
        ir_provider.register_providers(supported=True, state=compile_cache.graph_state())
        uuid = ir.ops.rms_norm.impls["hp_norm"].uuid()
        assert uuid == ir.ops.rms_norm.impls["hp_norm"].uuid()
        seen.add(uuid)
    assert len(seen) == 2
