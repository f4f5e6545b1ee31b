"""What the operators refuse: the same exact text on CPU, CUDA and fake tensors, nothing written."""

from __future__ import annotations

import pytest
import torch
from helpers import HAS_GPU
from torch._subclasses.fake_tensor import FakeTensorMode

import hp_norm_plugin as hp

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def rows(*shape, dtype=BF16):
    return lambda device: torch.ones(shape, dtype=dtype, device=device)


def strided(shape, strides, dtype=BF16):
    size = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return lambda device: torch.ones(max(size, 1), dtype=dtype, device=device).as_strided(
        shape, strides
    )


X, W = rows(4, 64), rows(64)
ADD, ADD_, PLAIN = "fused_add_rms_norm", "fused_add_rms_norm_", "rms_norm"
SHAPE_RULE = "leading dimensions must flatten to rows without a copy"

# (operator, x, residual, weight, options, message after the operator's name)
CASES = [
    (PLAIN, rows(4, 64, dtype=torch.int32), None, W, {},
     "x: dtype must be bfloat16, float16 or float32, got int32"),
    (PLAIN, rows(4, 64, dtype=F64), None, W, {},
     "x: dtype must be bfloat16, float16 or float32, got float64"),
    (PLAIN, rows(4, 64, dtype=torch.bool), None, W, {},
     "x: dtype must be bfloat16, float16 or float32, got bool"),
    (PLAIN, rows(4, 64, dtype=torch.uint8), None, None, {},
     "x: dtype must be bfloat16, float16 or float32, got uint8"),
    (PLAIN, rows(4, 64, dtype=torch.complex64), None, None, {},
     "x: dtype must be bfloat16, float16 or float32, got complex64"),
    (PLAIN, rows(4, 64, dtype=torch.float8_e4m3fn), None, None, {},
     "x: dtype must be bfloat16, float16 or float32, got float8_e4m3fn"),
    (PLAIN, rows(), None, None, {}, "x: must have at least 1 dimension, got 0"),
    (PLAIN, rows(4, 0), None, None, {}, "x: hidden_size must be from 1 to 65536, got 0"),
    (PLAIN, rows(1, 65537), None, None, {}, "x: hidden_size must be from 1 to 65536, got 65537"),
    (PLAIN, strided((4, 64), (128, 2)), None, W, {}, "x: inner stride must be 1, got 2"),
    (PLAIN, strided((4, 64), (1, 4)), None, W, {}, "x: inner stride must be 1, got 4"),
    (PLAIN, strided((4, 64), (64, 0)), None, W, {}, "x: inner stride must be 1, got 0"),
    (PLAIN, strided((2, 3, 64), (64, 128, 1)), None, W, {},
     f"x: {SHAPE_RULE}, got shape [2, 3, 64] with strides [64, 128, 1]"),
    (PLAIN, strided((2, 2, 3, 64), (1000, 192, 64, 1)), None, W, {},
     f"x: {SHAPE_RULE}, got shape [2, 2, 3, 64] with strides [1000, 192, 64, 1]"),
    (PLAIN, X, None, rows(63), {}, "weight: shape must be [64], got [63]"),
    (PLAIN, X, None, rows(65), {}, "weight: shape must be [64], got [65]"),
    (PLAIN, X, None, rows(1, 64), {}, "weight: shape must be [64], got [1, 64]"),
    (PLAIN, X, None, rows(), {}, "weight: shape must be [64], got []"),
    (PLAIN, X, None, rows(64, dtype=F16), {},
     "weight: dtype must be bfloat16 like x or float32, got float16"),
    (PLAIN, X, None, rows(64, dtype=F64), {},
     "weight: dtype must be bfloat16 like x or float32, got float64"),
    (PLAIN, rows(4, 64, dtype=F32), None, rows(64), {},
     "weight: dtype must be float32 like x or float32, got bfloat16"),
    (PLAIN, rows(4, 64, dtype=F16), None, rows(64), {},
     "weight: dtype must be float16 like x or float32, got bfloat16"),
    (PLAIN, X, None, strided((64,), (2,)), {}, "weight: inner stride must be 1, got 2"),
    (PLAIN, X, None, strided((64,), (0,)), {}, "weight: inner stride must be 1, got 0"),
    (PLAIN, X, None, W, {"eps": -1e-6},
     "eps: must be finite as a float32 and at least 0, got -1e-06"),
    (PLAIN, X, None, W, {"eps": float("nan")},
     "eps: must be finite as a float32 and at least 0, got nan"),
    (PLAIN, X, None, W, {"eps": 1e39},
     "eps: must be finite as a float32 and at least 0, got 1e+39"),
    (PLAIN, X, None, W, {"weight_offset": -1e39},
     "weight_offset: must be finite as a float32, got -1e+39"),
    (PLAIN, X, None, W, {"eps": float("inf")},
     "eps: must be finite as a float32 and at least 0, got inf"),
    (PLAIN, X, None, W, {"weight_offset": float("inf")},
     "weight_offset: must be finite as a float32, got inf"),
    (PLAIN, X, None, W, {"weight_offset": float("nan")},
     "weight_offset: must be finite as a float32, got nan"),
    (PLAIN, X, None, None, {"weight_offset": 1.0},
     "weight_offset: must be 0 without a weight, got 1"),
    (ADD, X, rows(4, 64, dtype=F16), W, {},
     "residual: dtype must be bfloat16 like x, got float16"),
    (ADD, X, rows(4, 64, dtype=F32), W, {},
     "residual: dtype must be bfloat16 like x, got float32"),
    (ADD, X, rows(4, 63), W, {}, "residual: shape must be [4, 64] like x, got [4, 63]"),
    (ADD, X, rows(5, 64), W, {}, "residual: shape must be [4, 64] like x, got [5, 64]"),
    (ADD, X, rows(1, 4, 64), W, {}, "residual: shape must be [4, 64] like x, got [1, 4, 64]"),
    (ADD, X, rows(64), W, {}, "residual: shape must be [4, 64] like x, got [64]"),
    (ADD, X, strided((4, 64), (128, 2)), W, {}, "residual: inner stride must be 1, got 2"),
    (ADD, rows(2, 3, 64), strided((2, 3, 64), (64, 128, 1)), W, {},
     f"residual: {SHAPE_RULE}, got shape [2, 3, 64] with strides [64, 128, 1]"),
    (ADD, X, X, rows(32), {}, "weight: shape must be [64], got [32]"),
    (ADD, X, X, W, {"eps": -1.0},
     "eps: must be finite as a float32 and at least 0, got -1"),
    (ADD, X, X, None, {"weight_offset": -0.5},
     "weight_offset: must be 0 without a weight, got -0.5"),
    (ADD_, X, rows(4, 63), W, {}, "residual: shape must be [4, 64] like x, got [4, 63]"),
    (ADD_, X, rows(4, 64, dtype=F16), W, {},
     "residual: dtype must be bfloat16 like x, got float16"),
    (ADD_, strided((4, 64), (0, 1)), X, W, {},
     "x: rows must not overlap when written in place, got row stride 0"),
    (ADD_, strided((4, 64), (32, 1)), X, W, {},
     "x: rows must not overlap when written in place, got row stride 32"),
    (ADD_, X, strided((4, 64), (0, 1)), W, {},
     "residual: rows must not overlap when written in place, got row stride 0"),
]  # fmt: skip


def call(op, x, residual, weight, eps=1e-6, **options):
    tensors = (x,) if residual is None else (x, residual)
    return getattr(hp, op)(*tensors, weight, eps, **options)


def same(a, b) -> bool:
    return a is b is None or torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[5]}")
def test_refused_with_the_exact_text_and_nothing_written(device, case):
    op, *makers, options, message = case
    tensors = [None if make is None else make(device) for make in makers]
    storages = [None if t is None else t.untyped_storage().tolist() for t in tensors]
    with pytest.raises(RuntimeError) as refused:
        call(op, *tensors, **options)
    assert str(refused.value).splitlines()[0] == f"hp_norm::{op}: {message}"
    after = [None if t is None else t.untyped_storage().tolist() for t in tensors]
    assert after == storages


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[5]}")
def test_fake_tensors_are_refused_with_the_same_text(case):
    op, *makers, options, message = case
    with FakeTensorMode():
        tensors = [None if make is None else make("cpu") for make in makers]
        with pytest.raises(RuntimeError) as refused:
            call(op, *tensors, **options)
    assert str(refused.value).splitlines()[0] == f"hp_norm::{op}: {message}"


def test_there_are_at_least_forty_cases_and_no_text_twice():
    assert len(CASES) >= 40
    assert len({(case[0], case[5]) for case in CASES}) >= 40


def test_memory_that_overlaps(device):
    buffer = torch.ones(8 * 64, dtype=BF16, device=device)
    before = buffer.clone()
    x, weight = buffer[: 4 * 64].view(4, 64), torch.ones(64, dtype=BF16, device=device)
    rule = "hp_norm::fused_add_rms_norm_: residual: must not overlap x, got overlapping memory"
    for residual in (x, buffer[64 : 5 * 64].view(4, 64), buffer[32 : 32 + 256].view(4, 64)):
        with pytest.raises(RuntimeError, match="^" + rule):
            hp.fused_add_rms_norm_(x, residual, weight, 1e-6)
    residual = buffer[256:].view(4, 64)
    rule = rule.replace("residual: must not overlap x", "weight: must not overlap x or residual")
    for inside in (buffer[:64], buffer[300:364]):
        with pytest.raises(RuntimeError, match="^" + rule):
            hp.fused_add_rms_norm_(x, residual, inside, 1e-6)
    assert torch.equal(buffer, before)
    hp.fused_add_rms_norm_(x, residual, weight, 1e-6)
    assert not torch.equal(buffer, before)


@pytest.mark.parametrize("argument", ["x", "residual", "weight"])
@pytest.mark.parametrize("op", [PLAIN, ADD, ADD_])
def test_inference_only(device, op, argument):
    if (op, argument) == (PLAIN, "residual"):
        pytest.skip("rms_norm has no residual")
    tensors = {"x": X(device), "residual": X(device), "weight": W(device)}
    tensors[argument].requires_grad_()
    if op == PLAIN:
        del tensors["residual"]
    message = (
        f"hp_norm::{op}: {argument}: must not require grad (inference only: call it under "
        "torch.inference_mode() or torch.no_grad()), got requires_grad=True"
    )
    with pytest.raises(RuntimeError) as refused:
        getattr(hp, op)(**tensors, eps=1e-6)
    assert str(refused.value) == message
    with torch.no_grad():
        getattr(hp, op)(**tensors, eps=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("op", [ADD, ADD_])
def test_tensors_on_different_devices(op):
    here, there = X("cuda"), X("cpu")
    weight = W("cuda")
    refuse = "^hp_norm::{}: {}: device must be {} like x, got {}"
    with pytest.raises(RuntimeError, match=refuse.format(op, "residual", "cuda:0", "cpu")):
        getattr(hp, op)(here, there, weight, 1e-6)
    with pytest.raises(RuntimeError, match=refuse.format(op, "residual", "cpu", "cuda:0")):
        getattr(hp, op)(there, here, weight, 1e-6)
    with pytest.raises(RuntimeError, match=refuse.format(op, "weight", "cuda:0", "cpu")):
        getattr(hp, op)(here, here.clone(), weight.cpu(), 1e-6)


def test_fake_tensors_on_different_devices():
    with FakeTensorMode():
        x, weight = X("cuda"), W("cpu")
        message = "hp_norm::rms_norm: weight: device must be cuda:0 like x, got cpu"
        with pytest.raises(RuntimeError, match="^" + message):
            hp.rms_norm(x, weight, 1e-6)


def test_supports_says_the_same_without_data():
    x, weight = X("cpu"), W("cpu")
    assert hp.supports(x, None, weight) is None
    assert hp.supports(x, x, weight) is None
    with pytest.raises(ValueError, match="supports: in_place: needs a residual, got None"):
        hp.supports(x, None, weight, in_place=True)
    refused = hp.supports(x, x[:, :63], weight)
    assert refused == (
        "hp_norm::fused_add_rms_norm: residual: shape must be [4, 64] like x, got [4, 63]"
    )
    assert HAS_GPU or hp.library_status().cuda_error


def test_an_output_that_does_not_fit_in_memory():
    x = torch.ones(1, 4096, dtype=torch.bfloat16).expand(2**35, 4096)  # 256 TiB
    message = r"hp_norm::rms_norm: x: its output must fit in memory \(out of memory\), got"
    with pytest.raises(RuntimeError, match=message):
        hp.rms_norm(x, None, 1e-6)
