import pytest
import torch

from benchmarks import check
from benchmarks.shapes import Case
from benchmarks.timing import CACHED, InputSets, Plan
from hp_norm_plugin import reference


@pytest.fixture(params=["fused_add", "plain"])
def sets(request):
    case = Case(request.param, "bf16", 16, 256)
    return InputSets(case, Plan(CACHED, 1, 1), torch.device("cpu"))


def contract(x, residual, weight):
    if residual is None:
        return reference.rms_norm(x, weight, check.EPS)
    return reference.fused_add_rms_norm(x, residual, weight, check.EPS)


def in_place(x, residual, weight):
    if residual is None:
        return contract(x, residual, weight)
    out, residual_out = contract(x, residual, weight)
    x.copy_(out)
    residual.copy_(residual_out)
    return None


def vllm_order(x, residual, weight):
    h = x if residual is None else x + residual
    y = h.float() * torch.rsqrt(h.float().pow(2).mean(-1, keepdim=True) + check.EPS)
    y = (y.to(x.dtype) * weight).to(x.dtype)
    return y if residual is None else (y, h)


def without_weight(x, residual, weight):
    return contract(x, residual, torch.ones_like(weight))


def lost_lane(x, residual, weight):
    shorter = x.clone()
    shorter[:, -8:] = 0
    y = contract(shorter, None, weight)
    if residual is None:
        return y
    return y, contract(x, residual, weight)[1]


def leaks_nan(x, residual, weight):
    outputs = contract(x, residual, weight)
    out = outputs if residual is None else outputs[0]
    out[3, 5] = float("nan")
    return outputs


@pytest.mark.parametrize("call", [contract, in_place])
def test_the_contract_passes_strictly(sets, call):
    assert check.failure("hp_norm", call, sets) == ""


def test_another_rounding_order_passes_for_a_peer_only(sets):
    assert check.failure("vllm_c", vllm_order, sets) == ""
    assert "wrong output" in check.failure("hp_norm", vllm_order, sets)
    assert "wrong output" in check.failure("candidate:a", vllm_order, sets)


@pytest.mark.parametrize("provider", ["hp_norm", "quack"])
@pytest.mark.parametrize("call", [without_weight, lost_lane, leaks_nan])
def test_wrong_results_fail_for_everyone(sets, provider, call):
    assert "ULP" in check.failure(provider, call, sets)


def test_a_wrong_residual_fails():
    case = Case("fused_add", "bf16", 4, 64)
    sets = InputSets(case, Plan(CACHED, 1, 1), torch.device("cpu"))

    def call(x, residual, weight):
        return contract(x, residual, weight)[0], residual

    assert "wrong residual" in check.failure("quack", call, sets)


def test_the_check_leaves_the_pristine_inputs_alone(sets):
    before = sets.x0.clone()
    check.failure("hp_norm", in_place, sets)
    assert torch.equal(sets.x0, before)


def test_rows_are_compared_in_chunks_to_the_last(sets, monkeypatch):
    monkeypatch.setattr(check, "CHUNK_ELEMENTS", 3 * 256)
    out, _ = check.against_contract(contract, sets)
    assert out.total == 16 * 256

    def last_row_wrong(x, residual, weight):
        outputs = contract(x, residual, weight)
        (outputs if residual is None else outputs[0])[-1] += 1
        return outputs

    assert "wrong output" in check.failure("hp_norm", last_row_wrong, sets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_ulp_distance(dtype):
    values = torch.tensor([1.0, -1.0, 0.0, 2.0], dtype=dtype)
    up = torch.tensor([torch.inf] * 4, dtype=dtype)
    assert check.ulp_distance(values, values).tolist() == [0, 0, 0, 0]
    assert check.ulp_distance(torch.nextafter(values, up), values).tolist() == [1, 1, 1, 1]
    zeros = torch.tensor([0.0, -0.0], dtype=dtype)
    assert check.ulp_distance(zeros, zeros.flip(0)).tolist() == [0, 0]
    smallest = torch.nextafter(zeros[:1], up[:1])
    assert check.ulp_distance(smallest, -smallest).tolist() == [2]


def test_nan_is_far_from_every_number():
    nan, one = torch.tensor([float("nan")]), torch.tensor([3e38])
    assert check.ulp_distance(nan, one).item() > 1000
