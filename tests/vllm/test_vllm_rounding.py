"""Which rounding order is nearest to what a user has without us: measured, not assumed."""

import pytest
import torch

from hp_norm_plugin import ops

ir = pytest.importorskip("vllm.ir", reason="this vLLM has no IR")


def distances(device):
    """Share of elements that differ from Inductor's code for vLLM's native formula, by order."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(torch.bfloat16).to(device)

    x, residual, weight = draw(512, 4096), draw(512, 4096), draw(4096)
    native = ir.ops.fused_add_rms_norm.impls["native"].impl_fn
    want, want_residual = torch.compile(native)(x, residual, weight, 1e-5)
    shares = {}
    for before in (False, True):
        out, summed = ops.fused_add_rms_norm(x, residual, weight, 1e-5, round_before_weight=before)
        assert torch.equal(summed, want_residual)
        shares[before] = (out != want).float().mean().item()
    return shares


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["cpu", "cuda"]
)
def test_the_adapters_round_as_inductor_does(device):
    from hp_norm_plugin.vllm import ir_provider, layer, policy

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    shares = distances(device)
    nearest = min(shares, key=shares.get)
    print(f"{device}: once {shares[False]:.3%}, before the weight {shares[True]:.3%} differ")
    assert policy.round_before_weight() is nearest
    assert ir_provider._round_before_weight is layer._round_before_weight is nearest
    # Not merely nearer: the same order, up to the order of the sum.
    assert shares[nearest] < 0.002
