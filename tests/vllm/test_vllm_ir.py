"""The IR adapter: vLLM's IR ops dispatch to the operator, with its numbers."""

import pytest
import torch

from hp_norm_plugin import ops

ir = pytest.importorskip("vllm.ir", reason="this vLLM has no IR")

BF16 = torch.bfloat16


@pytest.fixture
def on_ir(clean):
    clean.register()
    assert clean.registration().adapter == "ir"


def inputs(hidden_size=1024):
    generator = torch.Generator().manual_seed(2)
    x, residual = (torch.randn(3, hidden_size, generator=generator).to(BF16) for _ in range(2))
    return x, residual, torch.randn(hidden_size, generator=generator).to(BF16)


@pytest.mark.parametrize("provider", ["hp_norm", "hp_norm_eager"])
def test_both_ops_give_the_operators_bits(on_ir, provider):
    x, residual, weight = inputs()
    with (
        ir.ops.rms_norm.set_priority([provider, "native"]),
        ir.ops.fused_add_rms_norm.set_priority([provider, "native"]),
    ):
        assert ir.ops.rms_norm.dispatch(x, weight, 1e-5).provider == provider
        assert torch.equal(ir.ops.rms_norm(x, weight, 1e-5), ops.rms_norm(x, weight, 1e-5))
        want = ops.fused_add_rms_norm(x, residual, weight, 1e-5)
        kept = x.clone(), residual.clone()
        got = ir.ops.fused_add_rms_norm(x, residual, weight, 1e-5)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
        # The default overload is functional, whatever the provider does.
        assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])
        got = ir.ops.fused_add_rms_norm.maybe_inplace(x, residual, weight, 1e-5)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_the_rounding_is_one_at_the_end(on_ir):
    """vLLM's native formula as Inductor compiles it keeps float32 up to the weight."""
    x, _, weight = inputs()
    with ir.ops.rms_norm.set_priority(["hp_norm", "native"]):
        out = ir.ops.rms_norm(x, weight, 1e-5)
    before = ops.rms_norm(x, weight, 1e-5, round_before_weight=True)
    assert not torch.equal(out, before)


@pytest.mark.parametrize(
    ("x", "weight", "size", "provider"),
    [
        (torch.empty(2, 4096, dtype=BF16), torch.empty(4096, dtype=BF16), None, "hp_norm"),
        (torch.empty(2, 32, 128, dtype=BF16), torch.empty(128, dtype=BF16), None, "native"),
        (torch.empty(2, 4096, dtype=BF16), torch.empty(4096), None, "native"),
        (torch.empty(2, 4096, dtype=BF16), torch.empty(4096, dtype=BF16), 2048, "native"),
    ],
)
def test_a_call_that_is_better_elsewhere_goes_there(on_ir, x, weight, size, provider):
    with ir.ops.rms_norm.set_priority(["hp_norm", "native"]):
        assert ir.ops.rms_norm.dispatch(x, weight, 1e-5, size).provider == provider


def default_priority(vllm_config):
    from vllm.platforms import current_platform

    return current_platform.get_default_ir_op_priority(vllm_config)


def test_eager_models_get_the_provider_that_takes_all(on_ir, make_config):
    assert default_priority(make_config(eager=True)).fused_add_rms_norm[0] == "hp_norm_eager"
    assert default_priority(make_config()).fused_add_rms_norm[0] == "hp_norm"


@pytest.mark.parametrize(
    "kwargs", [{"quantization": "fp8"}, {"custom_ops": ["all", "-rms_norm"]}], ids=str
)
def test_a_model_that_stands_aside_keeps_its_priority(on_ir, make_config, kwargs):
    priority = default_priority(make_config(**kwargs))
    assert "hp_norm" not in priority.rms_norm + priority.fused_add_rms_norm


def test_tensor_parallel_models_keep_their_all_reduce_fusion_and_us(on_ir, make_config):
    """Lowering runs after the fusion passes, so the IR adapter need not stand aside."""
    assert default_priority(make_config(tp=8, fuse_allreduce=True)).rms_norm[0] == "hp_norm"


def test_compiled_by_dynamo_it_is_one_node(on_ir):
    """As on the CPU engine: no torch wrap, so Dynamo traces dispatch and rules."""
    from vllm.ir import enable_torch_wrap

    graphs = []

    def backend(graph, example_inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    x, residual, weight = inputs()
    with (
        enable_torch_wrap(False),
        ir.ops.fused_add_rms_norm.set_priority(["hp_norm", "native"]),
    ):
        compiled = torch.compile(
            lambda x, r, w: ir.ops.fused_add_rms_norm(x, r, w, 1e-5), backend=backend,
            fullgraph=True,
        )  # fmt: skip
        out, _ = compiled(x, residual, weight)
    assert sum("hp_norm.fused_add_rms_norm" in target for target in graphs[0]) == 1
    assert torch.equal(out, ops.fused_add_rms_norm(x, residual, weight, 1e-5)[0])


def test_a_call_that_is_declined_is_traced_by_dynamo_too(on_ir):
    """The words of a reason are made while the graph is traced."""
    from vllm.ir import enable_torch_wrap

    x, weight = torch.randn(3, 8, 128).to(BF16), torch.randn(128).to(BF16)
    native = ir.ops.rms_norm.impls["native"].impl_fn
    with enable_torch_wrap(False), ir.ops.rms_norm.set_priority(["hp_norm", "native"]):
        compiled = torch.compile(
            lambda x, w: ir.ops.rms_norm(x, w, 1e-5), backend="eager", fullgraph=True, dynamic=True
        )
        for rows in (x, x[:2]):
            assert torch.equal(compiled(rows, weight), native(rows, weight, 1e-5))


def lowered(function, arguments, donated=()):
    """Trace a function and run the passes of a GPU engine on its graph, here on a CPU."""
    lowering = pytest.importorskip("vllm.compilation.passes.ir.lowering_pass")
    elimination = pytest.importorskip("vllm.compilation.passes.ir.clone_elimination")
    inductor_pass = pytest.importorskip("vllm.compilation.passes.inductor_pass")
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.config.utils import Range

    with (
        set_current_vllm_config(VllmConfig()),
        ir.ops.rms_norm.set_priority(["hp_norm", "native"]),
        ir.ops.fused_add_rms_norm.set_priority(["hp_norm", "native"]),
        inductor_pass.pass_context(Range(1, 8)),
    ):
        inductor_pass.get_pass_context().donated_input_ids = set(donated)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            graph = make_fx(function)(*[mode.from_tensor(tensor) for tensor in arguments])
            lowering.VllmIRLoweringPass(VllmConfig())(graph.graph)
            elimination.UnsafeCloneEliminationPass(VllmConfig())(graph.graph)
        graph.recompile()
    return graph, [str(node.target) for node in graph.graph.nodes]


def test_lowering_replaces_the_node_of_a_cuda_graph(on_ir):
    def block(x, residual, weight, head_weight):
        out, residual = ir.ops.fused_add_rms_norm(x, residual, weight, 1e-5)
        heads = ir.ops.rms_norm(out.view(3, 8, 128), head_weight, 1e-5)
        return heads, ir.ops.rms_norm(residual, weight, 1e-5)

    x, residual, weight = inputs()
    arguments = (x, residual, weight, weight[:128].clone())
    graph, targets = lowered(block, arguments)
    assert not any("vllm_ir" in target for target in targets)
    # One fused, one plain; the per-head norm stays, as formulas that Inductor fuses.
    assert targets.count("hp_norm.fused_add_rms_norm_.default") == 1
    assert targets.count("hp_norm.rms_norm.default") == 1
    assert any("rsqrt" in target for target in targets)
    _, last = graph(*arguments)
    _, summed = ops.fused_add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(last, ops.rms_norm(summed, weight, 1e-5))


@pytest.mark.parametrize("donated", [(), (0, 1)])
def test_a_layers_norms_work_in_place(on_ir, donated):
    """No copy of what the graph makes itself, nor of its inputs if it may overwrite them."""

    def layer(x, residual, weight):
        for _ in range(2):
            x, residual = ir.ops.fused_add_rms_norm(x * 2, residual, weight, 1e-5)
        return x, residual

    x, residual, weight = inputs()
    want_x, want_residual = x, residual
    for _ in range(2):
        want_x, want_residual = ops.fused_add_rms_norm(want_x * 2, want_residual, weight, 1e-5)
    graph, targets = lowered(layer, (x, residual, weight), donated)
    assert targets.count("hp_norm.fused_add_rms_norm_.default") == 2
    assert targets.count("aten.clone.default") == (0 if donated else 1)
    before = residual.clone()
    out, residual_out = graph(x, residual, weight)
    assert torch.equal(out, want_x)
    assert torch.equal(residual_out, want_residual)
    assert torch.equal(residual, want_residual if donated else before)
