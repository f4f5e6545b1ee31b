"""The compile-cache key: on, off and another library are three keys, and each comes back."""

import pytest

from hp_norm_plugin import ops


def key():
    """The part of vLLM's key that is made of the environment, as its AOT cache hashes it."""
    from vllm import envs
    from vllm.config.utils import hash_factors

    return hash_factors(envs.compile_factors())


def key_of(plugin, monkeypatch, **environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(plugin, "_registration", None)
    plugin.register()
    return key()


def test_on_off_on(clean, monkeypatch):
    before = key()
    on = key_of(clean, monkeypatch, HP_NORM_PLUGIN="1")
    off = key_of(clean, monkeypatch, HP_NORM_PLUGIN="0")
    again = key_of(clean, monkeypatch, HP_NORM_PLUGIN="1")
    assert on == again
    assert len({before, on, off}) == 3


def test_auto_and_its_aliases_are_one_key(clean, monkeypatch):
    keys = {key_of(clean, monkeypatch, HP_NORM_PLUGIN=value) for value in ("1", "auto", "on")}
    assert len(keys) == 1


@pytest.mark.parametrize("name", ["HP_NORM_ROUNDING", "HP_NORM_SCOPE"])
def test_every_flag_that_shapes_a_graph_is_in_the_key(clean, monkeypatch, name):
    values = {"HP_NORM_ROUNDING": "before_weight", "HP_NORM_SCOPE": "all"}
    default = key_of(clean, monkeypatch)
    assert key_of(clean, monkeypatch, **{name: values[name]}) != default


@pytest.mark.parametrize(("name", "value"), [("HP_NORM_FIRST_GPC", "3"), ("HP_NORM_PDL", "0")])
def test_a_flag_of_launches_alone_is_not_in_the_key(clean, monkeypatch, name, value):
    assert key_of(clean, monkeypatch, **{name: value}) == key_of(clean, monkeypatch)


def test_adapters_have_different_keys(clean, monkeypatch):
    ir = key_of(clean, monkeypatch, HP_NORM_PLUGIN="ir")
    layer = key_of(clean, monkeypatch, HP_NORM_PLUGIN="layer")
    assert ir != layer


def test_a_rebuilt_library_is_a_new_key(clean, monkeypatch):
    from dataclasses import replace

    first = key_of(clean, monkeypatch)
    status = replace(ops.library_status(), digest="f" * 16)
    monkeypatch.setattr(ops, "library_status", lambda: status)
    assert key_of(clean, monkeypatch) != first


def test_a_changed_source_is_a_new_key(clean, monkeypatch):
    from hp_norm_plugin.vllm import compile_cache

    first = key_of(clean, monkeypatch)
    monkeypatch.setattr(compile_cache, "source_digest", lambda: "0" * 16)
    assert key_of(clean, monkeypatch) != first


def test_a_library_that_does_not_run_shares_no_key_with_one_that_does(clean, monkeypatch):
    on = key_of(clean, monkeypatch)
    monkeypatch.setattr(clean, "_library_problem", lambda host: "does not load")
    assert key_of(clean, monkeypatch) != on


def test_what_torchs_own_caches_know_of_a_provider_changes_with_the_flags(clean, monkeypatch):
    """Their key has `uuid()`, which is vLLM's digest of one file; a graph depends on more."""
    from hp_norm_plugin.vllm import compile_cache, ir_provider

    ir = pytest.importorskip("vllm.ir", reason="this vLLM has no IR")
    impls = dict(ir.ops.rms_norm.impls)
    seen = set()
    for rounding in ("once", "before_weight", "once"):
        monkeypatch.setenv("HP_NORM_ROUNDING", rounding)
        monkeypatch.setattr(ir.ops.rms_norm, "impls", {"native": impls["native"]})
        ir_provider.register_providers(supported=True, state=compile_cache.graph_state())
        uuid = ir.ops.rms_norm.impls["hp_norm"].uuid()
        assert uuid == ir.ops.rms_norm.impls["hp_norm"].uuid()
        seen.add(uuid)
    assert len(seen) == 2
