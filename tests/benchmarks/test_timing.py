import pytest
import torch

from benchmarks import timing
from benchmarks.shapes import HIDDEN_SIZES, NUM_TOKENS, Case
from benchmarks.timing import CACHED, COLD, InputSets, Plan

CPU = torch.device("cpu")
H200_L2 = 60 * 2**20


def case(num_tokens=2, hidden_size=8, op="fused_add", dtype="bf16"):
    return Case(op, dtype, num_tokens, hidden_size)


def test_protocol_changes_at_512_tokens():
    assert timing.protocol_for(511) == CACHED
    assert timing.protocol_for(512) == COLD


def test_cached_plan_is_64_calls_over_4_sets():
    assert timing.plan(case(1, 4096), CACHED, H200_L2) == Plan(CACHED, 4, 64)


def test_cached_sets_fit_the_l2():
    for num_tokens in NUM_TOKENS:
        for hidden_size in HIDDEN_SIZES:
            shape = case(num_tokens, hidden_size)
            plan = timing.plan(shape, CACHED, H200_L2)
            assert plan.num_sets == 1 or plan.num_sets * shape.input_bytes <= H200_L2


@pytest.mark.parametrize("num_tokens", [n for n in NUM_TOKENS if n >= 512])
@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
def test_cold_plan_rotates_past_the_l2(num_tokens, hidden_size):
    shape = case(num_tokens, hidden_size)
    plan = timing.plan(shape, COLD, H200_L2)
    assert plan.num_sets >= 2
    assert plan.num_sets * shape.input_bytes >= 4 * H200_L2
    assert plan.calls % plan.num_sets == 0
    assert plan.calls <= 1.5 * timing.COLD_MAX_CALLS
    assert plan.evict_bytes == 0


def test_cold_plan_of_a_tiny_case_evicts_instead_of_rotating_over_thousands_of_sets():
    plan = timing.plan(case(1, 1024), COLD, H200_L2)
    assert plan.num_sets == plan.calls == timing.COLD_MAX_CALLS
    assert plan.evict_bytes == 4 * H200_L2


def test_outputs_get_memory_of_their_own_only_when_cold():
    assert Plan(COLD, 2, 2).keep_outputs
    assert not Plan(CACHED, 4, 64).keep_outputs


def test_bytes_needed_covers_the_sets_and_grows_with_kept_outputs():
    shape = case(512, 1024)
    cached, cold = Plan(CACHED, 4, 64), Plan(COLD, 4, 64)
    assert cached.bytes_needed(shape) > 5 * shape.input_bytes
    assert cold.bytes_needed(shape) > cached.bytes_needed(shape) + 63 * shape.input_bytes


def test_every_provider_of_the_plain_norm_writes_to_new_memory():
    """Ours, the five peers and the copy, where the fused add has three that do: room for each."""
    plain, fused = (case(512, 1024, op=op) for op in ("plain", "fused_add"))
    plan = Plan(COLD, 2, 64)
    assert plan.bytes_needed(plain) > (2 + 7 * 64) * plain.input_bytes
    assert plan.bytes_needed(fused) > (2 + 3 * 64) * fused.input_bytes


def test_sets_start_equal_and_apart_and_take_turns():
    sets = InputSets(case(), Plan(CACHED, 3, 6), CPU)
    seen = [
        sets.call(lambda x, residual, _: (x.data_ptr(), residual.data_ptr()), index)
        for index in range(6)
    ]
    assert len(set(seen[:3])) == 3
    assert seen[:3] == seen[3:]
    assert torch.equal(sets.x[2], sets.x0) and torch.equal(sets.residual[1], sets.residual0)
    assert not torch.equal(sets.x0, sets.residual0)


def test_reset_undoes_what_calls_did_in_place():
    sets = InputSets(case(), Plan(CACHED, 2, 2), CPU)
    sets.call(lambda x, residual, _: (x.zero_(), residual.fill_(7)), 1)
    sets.reset()
    assert torch.equal(sets.x[1], sets.x0) and torch.equal(sets.residual[1], sets.residual0)


def test_plain_sets_have_no_residual():
    sets = InputSets(case(op="plain"), Plan(CACHED, 2, 2), CPU)
    assert sets.residual is None
    assert sets.call(lambda x, residual, weight: residual, 0) is None


def test_the_weight_is_not_all_ones():
    weight = InputSets(case(hidden_size=64), Plan(CACHED, 1, 1), CPU).weight
    assert weight.unique().numel() > 16


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_in_place_calls_stay_finite_and_normal_between_resets(dtype):
    """Two replays of 64 calls on one set, the most that any plan makes between two resets."""
    from hp_norm_plugin import reference

    sets = InputSets(case(8, 1024, dtype=dtype), Plan(CACHED, 1, 64), CPU)

    def in_place(x, residual, weight):
        out, residual_out = reference.fused_add_rms_norm(x, residual, weight, 1e-6)
        x.copy_(out)
        residual.copy_(residual_out)

    for index in range(2 * 64):
        sets.call(in_place, index)
    for tensor in (sets.x, sets.residual):
        assert tensor.isfinite().all()
        tiny = torch.finfo(tensor.dtype).tiny
        assert ((tensor.abs() < tiny) & (tensor != 0)).float().mean() < 1e-3
