"""The CPU kernel of every instruction set that this processor has, not the chosen one alone."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch
from helpers import DTYPES, assert_same_bits, make_case, make_denormal_case
from test_ops import check

import hp_norm_plugin as hp
from hp_norm_plugin import library, reference

KERNELS = ("avx512bf16", "avx512", "avx2", "baseline")
# Below a vector, around a cache line and a chunk of each width, widths of models.
HIDDEN_SIZES = (1, 15, 16, 17, 31, 33, 64, 100, 255, 256, 257, 511, 513, 1000, 4096, 4097, 8200)


def force(name: str | None) -> bool:
    native = library.native_library(library.CPU_LIBRARY)
    native.hp_norm_force_row_kernel.restype = ctypes.c_bool
    return native.hp_norm_force_row_kernel(None if name is None else name.encode())


@pytest.fixture(params=KERNELS)
def kernel(request):
    """One kernel after the other, and the chosen one again."""
    if not force(request.param):
        pytest.skip(f"this processor has no {request.param}, or the library none for it")
    yield request.param
    assert force(None)


def test_the_plain_kernel_is_always_there_and_an_unknown_name_is_refused():
    assert force("baseline") and not force("sse9") and force(None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_gives_the_bits_of_the_contract(kernel, dtype):
    orders = [{}, {"round_before_weight": True}, {"weight_offset": 1.0}]
    weights = ["same", torch.float32, None]
    for hidden_size, weight, options in itertools.product(HIDDEN_SIZES, weights, orders):
        if weight is not None or not options:
            check(make_case(6, hidden_size, dtype, weight, **options), "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_come_from_memory(kernel, dtype):
    """2 MiB and more of x: the next row is asked for meanwhile."""
    for hidden_size in (4096, 4099):
        check(make_case(300, hidden_size, dtype), "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormals_infinity_and_not_a_number(kernel, dtype):
    case = make_denormal_case(7, 4096 + 5, dtype)
    case.x[3, 17], case.x[4, 4095], case.residual[5, 0] = float("nan"), float("inf"), -float("inf")
    check(case, "cpu")


def test_rows_of_any_stride(kernel):
    case = make_case(9, 1000, torch.bfloat16)
    wide = torch.zeros(9, 2006, dtype=torch.bfloat16)
    x = wide[:, 3:1003]
    x.copy_(case.x)
    got = hp.fused_add_rms_norm(x, case.residual, case.weight, case.eps)
    expected = reference.fused_add_rms_norm(case.x, case.residual, case.weight, case.eps)
    for actual, wanted in zip(got, expected, strict=True):
        assert_same_bits(actual, wanted)
