"""The table of environment flags."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from hp_norm_plugin import library, settings


@pytest.mark.parametrize(
    ("raw", "value"),
    [(None, "auto"), ("", "auto"), ("1", "auto"), (" Auto ", "auto"), ("ir", "ir"),
     ("layer", "layer"), ("0", "0"), ("off", "0"), ("FALSE", "0")],
)  # fmt: skip
def test_plugin_flag(raw, value):
    environ = {} if raw is None else {"HP_NORM_PLUGIN": raw}
    reading = settings.read_flag(settings.PLUGIN, environ)
    assert reading.value == value
    assert reading.warning is None
    assert reading.is_set == bool(raw)


def test_unknown_plugin_value_turns_the_plugin_off_and_says_so():
    reading = settings.read_flag(settings.PLUGIN, {"HP_NORM_PLUGIN": "disbale"})
    assert reading.value == "0"
    assert reading.warning == (
        "HP_NORM_PLUGIN='disbale' is not one of auto, ir, layer, 0, 1, on, true, off, false, no; "
        "using 0"
    )


@pytest.mark.parametrize(
    "flag", [settings.ROUNDING, settings.SCOPE, settings.FIRST_GPC], ids=lambda f: f.name
)
def test_other_unknown_values_take_the_default(flag):
    reading = settings.read_flag(flag, {flag.name: "8"})
    assert reading.value == flag.default == "auto"
    assert flag.name in reading.warning


@pytest.mark.parametrize("flag", settings.FLAGS, ids=lambda f: f.name)
def test_every_flag_is_consistent(flag):
    assert flag.default in flag.values
    assert flag.on_unknown in flag.values
    assert set(flag.aliases.values()) <= set(flag.values)
    assert not set(flag.aliases) & set(flag.values)


def test_read_all_reads_the_process_environment(monkeypatch):
    monkeypatch.setenv("HP_NORM_PLUGIN", "layer")
    monkeypatch.delenv("HP_NORM_SCOPE", raising=False)
    readings = settings.read_all()
    assert readings["HP_NORM_PLUGIN"].value == "layer"
    assert not readings["HP_NORM_SCOPE"].is_set


@pytest.mark.parametrize(("raw", "limits"), [("0", [0]), ("off", [0]), ("1", []), ("8", [])])
def test_dependent_launch_is_off_from_when_the_library_is_loaded(
    monkeypatch, tmp_path, raw, limits
):
    path = tmp_path / "libhp_norm_cuda.so"
    path.touch()
    told = []

    def limit(max_tokens):
        told.append(max_tokens.value)

    native = SimpleNamespace(hp_norm_limit_dependent_launch=limit)
    monkeypatch.setattr(library, "CUDA_LIBRARY", path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: native)
    monkeypatch.setenv("HP_NORM_PDL", raw)
    assert library._load_cuda() is None
    assert told == limits
