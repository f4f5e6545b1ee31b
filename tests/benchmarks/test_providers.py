import importlib.machinery
import sys
import types
from pathlib import Path

import pytest
import torch

from benchmarks import peers, providers
from benchmarks.provider import UnavailableError, one_line
from benchmarks.shapes import Case

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def test_an_unknown_provider_says_which_are_known():
    with pytest.raises(UnavailableError, match="unknown provider 'apex', known are hp_norm, "):
        providers.load("apex", CPU)


@pytest.mark.parametrize(
    ("name", "module"),
    [("quack", "quack"), ("flashinfer_cute", "flashinfer"), ("flashinfer_cuda", "flashinfer")],
)
def test_a_missing_package_is_one_line(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError) as raised:
        providers.load(name, CUDA)
    assert str(raised.value).startswith(f"{name}: ModuleNotFoundError: ")
    assert "\n" not in str(raised.value)


def test_a_missing_vllm_is_one_line(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="vllm_c: ModuleNotFoundError: No module named"):
        providers.load("vllm_c", CUDA)


def test_vllm_without_its_library_is_one_line(monkeypatch, tmp_path):
    spec = importlib.machinery.ModuleSpec("vllm", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UnavailableError, match="vllm: no operator library"):
        providers.load("vllm_c", CUDA)


@pytest.mark.parametrize("library", ["_C_stable_libtorch.abi3.so", "_C.abi3.so"])
def test_vllm_library_is_found_without_importing_vllm(monkeypatch, tmp_path, library):
    (tmp_path / library).touch()
    spec = importlib.machinery.ModuleSpec("vllm", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    assert peers._vllm_library(CUDA) == Path(tmp_path / library)
    assert "vllm" not in sys.modules


def test_flashinfer_that_chose_its_cuda_kernels_is_not_called_cute(monkeypatch):
    norm = types.ModuleType("flashinfer.norm")
    norm._use_cuda_norm = lambda device: True
    flashinfer = types.ModuleType("flashinfer")
    flashinfer.norm = norm
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer)
    monkeypatch.setitem(sys.modules, "flashinfer.norm", norm)
    with pytest.raises(UnavailableError, match="it chose its CUDA kernels"):
        providers.load("flashinfer_cute", CUDA)


def test_ours_without_its_cuda_library_says_why(monkeypatch):
    import hp_norm_plugin

    status = types.SimpleNamespace(cuda_loaded=False, cuda_error="no nvcc", digest="0" * 12)
    monkeypatch.setattr(hp_norm_plugin, "library_status", lambda: status)
    with pytest.raises(UnavailableError, match="CUDA library not loaded: no nvcc"):
        providers.load("hp_norm", CUDA)


def test_load_all_keeps_going(monkeypatch):
    monkeypatch.setitem(sys.modules, "quack", None)
    loaded, reasons = providers.load_all(["quack", "copy", "nonsense", "torch"], CPU)
    assert [provider.name for provider in loaded] == ["copy", "torch"]
    assert list(reasons) == ["quack", "nonsense"]


def test_the_defaults_are_known_and_hold_the_five_peers():
    for device in (CPU, CUDA):
        assert set(providers.default_names(device)) <= set(providers.NAMES)
    assert len(providers.PEERS) == 5
    assert set(providers.PEERS) < set(providers.default_names(CUDA))


@pytest.mark.parametrize("name", ["hp_norm", "torch", "copy"])
@pytest.mark.parametrize("op", ["fused_add", "plain"])
def test_calls_follow_the_convention(name, op):
    provider = providers.load(name, CPU)
    call = provider.bind(Case(op, "bf16", 2, 64))
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    residual = torch.randn_like(x) if op == "fused_add" else None
    outputs = call(x.clone(), None if residual is None else residual.clone(), torch.ones_like(x[0]))
    if op == "plain":
        assert outputs.shape == x.shape
    elif outputs is not None:
        assert [output.shape for output in outputs] == [x.shape, x.shape]
    if name == "copy":
        copied = outputs if op == "fused_add" else (outputs,)
        assert all(torch.equal(a, b) for a, b in zip(copied, (x, residual), strict=False))


def test_native_formula_is_the_contract_to_two_ulp():
    from benchmarks import check
    from hp_norm_plugin import reference

    torch.manual_seed(0)
    x, residual = torch.randn(2, 16, 512, dtype=torch.bfloat16)
    weight = torch.randn(512, dtype=torch.bfloat16)
    out, residual_out = peers.native(x, residual, weight)
    expected, expected_residual = reference.fused_add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual_out, expected_residual)
    assert check.difference(out, expected).max_ulp <= 2


def test_one_line():
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line("x" * 300, 20) == "x" * 17 + "..."
