"""The operators against their contract, on a CPU and, marked gpu, on a GPU: every bit."""

from __future__ import annotations

import pytest
import torch
from helpers import DTYPES, Case, assert_same_bits, make_case, make_denormal_case
from hypothesis import given, settings
from hypothesis import strategies as st

import hp_norm_plugin as hp
from hp_norm_plugin import reference

# Sizes around a vector, a warp's chunk, a CTA, and the largest; widths of real models; odd ones.
HIDDEN_SIZES = [1, 2, 7, 8, 15, 17, 64, 127, 128, 255, 256, 257, 768, 1000, 1024, 2048, 2880, 3584]
HIDDEN_SIZES += [4096, 4097, 5120, 7168, 8192, 12288, 12345, 14336, 16384, 24576, 32768, 65536]
WEIGHTS = ["same", torch.float32, None]


def run_all(case: Case) -> dict[str, torch.Tensor]:
    """Every result that the three operators give for a case, by name."""
    plain = hp.rms_norm(case.x, case.weight, case.eps, **case.options)
    fused, summed = hp.fused_add_rms_norm(
        case.x, case.residual, case.weight, case.eps, **case.options
    )
    x, residual = case.x.clone(), case.residual.clone()
    hp.fused_add_rms_norm_(x, residual, case.weight, case.eps, **case.options)
    return {"rms_norm": plain, "out": fused, "residual_out": summed, "x": x, "residual": residual}


def expect_all(case: Case) -> dict[str, torch.Tensor]:
    plain = reference.rms_norm(case.x, case.weight, case.eps, **case.options)
    fused, summed = reference.fused_add_rms_norm(
        case.x, case.residual, case.weight, case.eps, **case.options
    )
    return {
        "rms_norm": plain, "out": fused, "residual_out": summed, "x": fused, "residual": summed
    }  # fmt: skip


def check(case: Case, device: str) -> None:
    expected = expect_all(case)
    for name, actual in run_all(case.to(device)).items():
        assert_same_bits(actual, expected[name], name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_comparison_sees_every_bit_but_which_nan_it_is(dtype):
    values = torch.tensor([0.0, 1.0, float("nan")], dtype=dtype)
    assert_same_bits(-values[2:], values[2:].clone())
    for index, other in enumerate([-0.0, 1.0 + torch.finfo(dtype).eps, 0.0]):
        wrong = values.clone()
        wrong[index] = other
        with pytest.raises(AssertionError, match="1 of 3 elements differ"):
            assert_same_bits(wrong, values)


@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size_and_weight_matches_the_contract(device, dtype, hidden_size):
    for weight_dtype in WEIGHTS:
        check(make_case(3, hidden_size, dtype, weight_dtype), device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", ["same", torch.float32])
@pytest.mark.parametrize("round_before_weight", [False, True])
@pytest.mark.parametrize("weight_offset", [0.0, 1.0, -0.5])
def test_weight_offset_and_rounding_order(
    device, dtype, weight_dtype, round_before_weight, weight_offset
):
    options = {"weight_offset": weight_offset, "round_before_weight": round_before_weight}
    for hidden_size in (100, 4096):
        case = make_case(5, hidden_size, dtype, weight_dtype, **options)
        case.weight[::7] = -0.0  # which an offset of 0 must not make +0
        check(case, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e-5, 1.0])
def test_eps_is_added_inside_the_root(device, dtype, eps):
    case = make_case(4, 512, dtype, eps=eps)
    case.x[0] = 0
    case.residual[0] = 0
    check(case, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [9, 256, 1000, 4096])
def test_spike_rows_reach_every_lane(device, dtype, hidden_size):
    """One large element a row, a row for every column: a lost lane shows at any tolerance."""
    x = torch.full((hidden_size, hidden_size), 2.0**-10, dtype=dtype)
    x.fill_diagonal_(64.0)
    weight = torch.ones(hidden_size, dtype=dtype)
    out = hp.rms_norm(x.to(device), weight.to(device), 0.0).cpu().double()
    exact = reference.oracle(x, None, weight, 0.0)
    assert (out - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [129, 4096, 16384])
def test_within_a_rounding_of_the_float64_oracle(device, dtype, hidden_size):
    case = make_case(8, hidden_size, dtype).to(device)
    out, _ = hp.fused_add_rms_norm(case.x, case.residual, case.weight, case.eps)
    exact = reference.oracle(case.x, case.residual, case.weight, case.eps)
    # Half a unit for the last rounding, and the float32 steps before it.
    slack = 0.5 + (4.0 if dtype == torch.float32 else 1e-3)
    unit = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
    assert ((out.double() - exact).abs() <= slack * unit).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_not_a_number_and_infinity_stay_in_their_row(device, dtype):
    case = make_case(6, 1024, dtype)
    case.x[1, 17] = float("nan")
    case.x[3, 1023] = float("inf")
    case.residual[4, 0] = -float("inf")
    check(case, device)
    out = hp.rms_norm(case.x.to(device), case.weight.to(device), case.eps)
    assert out[1].isnan().all() and not out[[0, 2, 5]].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [100, 4096])
def test_denormal_inputs_and_results_are_not_flushed(device, dtype, hidden_size):
    tiny = torch.finfo(dtype).tiny
    case = make_denormal_case(6, hidden_size, dtype)
    check(case, device)
    x, residual = case.x.to(device), case.residual.to(device)
    out, summed = hp.fused_add_rms_norm(x, residual, case.weight.to(device), 1e-6)
    assert (summed[2, ::33].cpu() == torch.tensor(tiny * 3 / 8, dtype=dtype)).all()
    assert ((out[0] != 0) & (out[0].abs() < tiny)).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_tokens_and_leading_dimensions(device, dtype):
    weight = torch.rand(64).to(dtype).to(device)
    for shape in ((0, 64), (2, 0, 64), (64,), (3, 5, 64), (2, 3, 4, 64)):
        x = torch.randn(shape).to(dtype).to(device)
        out, summed = hp.fused_add_rms_norm(x, x.clone(), weight, 1e-6)
        assert out.shape == summed.shape == x.shape
        expected, _ = reference.fused_add_rms_norm(x.cpu(), x.cpu(), weight.cpu(), 1e-6)
        assert_same_bits(out, expected)


def strided(rows: torch.Tensor, row_stride: int, offset: int, device: str):
    """The rows inside a larger buffer of guard values: (view, whole buffer, copy of the buffer)."""
    num_tokens, hidden_size = rows.shape
    buffer = torch.full((offset + num_tokens * row_stride + 64,), 7.0, dtype=rows.dtype)
    view = buffer.as_strided(rows.shape, (row_stride, 1), offset)
    view.copy_(rows)
    moved = buffer.to(device)
    return moved.as_strided(rows.shape, (row_stride, 1), offset), moved, buffer


@settings(max_examples=60, deadline=None)
@given(
    num_tokens=st.integers(1, 9),
    hidden_size=st.one_of(st.integers(1, 700), st.sampled_from([1024, 4096, 5120])),
    gaps=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    offsets=st.tuples(st.integers(0, 17), st.integers(0, 17), st.integers(0, 9)),
    dtype=st.sampled_from(DTYPES),
    weight_dtype=st.sampled_from(WEIGHTS),
)
def check_strides(device, num_tokens, hidden_size, gaps, offsets, dtype, weight_dtype):
    case = make_case(num_tokens, hidden_size, dtype, weight_dtype)
    expected = expect_all(case)
    x, x_buffer, x_before = strided(case.x, hidden_size + gaps[0], offsets[0], device)
    residual, r_buffer, r_before = strided(case.residual, hidden_size + gaps[1], offsets[1], device)
    weight = case.weight
    if weight is not None:
        buffer = torch.empty(hidden_size + offsets[2], dtype=weight.dtype, device=device)
        buffer[offsets[2] :] = weight.to(device)
        weight = buffer[offsets[2] :]
    out, summed = hp.fused_add_rms_norm(x, residual, weight, case.eps)
    assert_same_bits(out, expected["out"])
    assert_same_bits(summed, expected["residual_out"])
    assert torch.equal(x_buffer.cpu(), x_before) and torch.equal(r_buffer.cpu(), r_before)
    hp.fused_add_rms_norm_(x, residual, weight, case.eps)
    assert_same_bits(x, expected["out"], "x")
    assert_same_bits(residual, expected["residual_out"], "residual")
    for view, buffer, before in ((x, x_buffer, x_before), (residual, r_buffer, r_before)):
        view.fill_(0)
        before.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(0)
        assert torch.equal(buffer.cpu(), before), "written outside the rows"


def test_any_stride_and_alignment_without_touching_what_lies_between(device):
    check_strides(device)


def test_expanded_rows_and_column_slices(device):
    buffer = torch.randn(5, 3 * 128, dtype=torch.bfloat16)
    q, k = buffer[:, :128], buffer[:, 128:256]
    row = torch.randn(128, dtype=torch.bfloat16)
    expected, _ = reference.fused_add_rms_norm(q, row.expand(5, 128), None, 1e-6)
    moved = buffer.to(device)
    out, _ = hp.fused_add_rms_norm(moved[:, :128], row.to(device).expand(5, 128), None, 1e-6)
    assert_same_bits(out, expected)
    expected, summed = reference.fused_add_rms_norm(q, k, None, 1e-6)
    hp.fused_add_rms_norm_(moved[:, :128], moved[:, 128:256], None, 1e-6)
    assert_same_bits(moved[:, :128], expected)
    assert_same_bits(moved[:, 128:256], summed)
    assert torch.equal(moved[:, 256:].cpu(), buffer[:, 256:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [128, 1000, 4096, 16384])
def test_a_row_has_the_same_bits_in_every_batch(device, dtype, hidden_size):
    many = 300 if device == "cpu" else 4096
    case = make_case(many, hidden_size, dtype).to(device)
    out, summed = hp.fused_add_rms_norm(case.x, case.residual, case.weight, case.eps)
    for first, last in ((0, 1), (1, 3), (5, 22), (many - 100, many)):
        rows = slice(first, last)
        part = hp.fused_add_rms_norm(
            case.x[rows].clone(), case.residual[rows].clone(), case.weight, case.eps
        )
        assert_same_bits(part[0], out[rows])
        assert_same_bits(part[1], summed[rows])


def test_results_are_the_callers_own_memory(device):
    case = make_case(2, 64, torch.float16).to(device)
    results = hp.fused_add_rms_norm(case.x, case.residual, case.weight, case.eps)
    storages = {t.untyped_storage().data_ptr() for t in (*results, case.x, case.residual)}
    assert len(storages) == 4
    assert all(t.is_contiguous() for t in results)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_autograd_is_told_of_what_is_written(device, offset):
    """A product that has kept x for its gradient must not take what was written over it."""
    case = make_case(3, 64, torch.float32).to(device)
    start = torch.ones_like(case.x, requires_grad=True)
    x = start * 1
    product = (x * x).sum()
    with torch.no_grad():
        hp.fused_add_rms_norm_(x, case.residual, case.weight, 1e-6, weight_offset=offset)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
