"""The mutations: what is broken in csrc/, and the tests that must see it.

An edit is (file below csrc/, text that it holds exactly once, what replaces it). After a change of
the sources tests/test_mutations.py names the edits that need new text. A race shows by chance, so
its tests repeat, or the mutation slows the side that must be waited for; a control, the same
sources with the slow side and nothing broken, must stay green.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZES = "tests/test_ops.py::test_every_size_and_weight_matches_the_contract"
OPTIONS = "tests/test_ops.py::test_weight_offset_and_rounding_order"
EPS = "tests/test_ops.py::test_eps_is_added_inside_the_root"
LANES = "tests/test_ops.py::test_spike_rows_reach_every_lane"
BATCHES = "tests/test_ops.py::test_a_row_has_the_same_bits_in_every_batch"
OVERLAP = "tests/test_bad_input.py::test_memory_that_overlaps"
CONFIGS = "tests/test_rules.py::test_every_configuration_gives_the_same_bits"
LAST_ROW = "tests/test_rules.py::test_no_configuration_touches_what_follows_the_last_row"
STRIDES = "tests/test_ops_cuda.py::test_a_row_stride_beyond_32_bits"
FIRST_GPC = (
    "tests/benchmarks/test_placement.py::test_the_grid_behind_a_norm_begins_at_the_gpc_that_was_set"
)
CHAIN = "tests/test_ops_cuda.py::test_norms_with_nothing_between_them"
LONG_CHAIN = "tests/test_ops_cuda.py::test_a_long_chain_of_dependent_launches"

Edit = tuple[str, str, str]

# Thread 0 of a cluster's second CTA comes 0.1 ms late, and who waits for it in vain gives up after
# 10 ms instead of never.
SLOW_SECOND_CTA: tuple[Edit, ...] = (
    ("cuda/cluster.cuh", 'asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;"',
     'if (cluster_rank() == 1) __nanosleep(100000);\n'
     'asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;"'),
    ("cuda/cluster.cuh", "while (!complete) {",
     "for (const auto start = clock64(); !complete && clock64() - start < 20000000;) {"),
)  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """Edits, and the tests that run against them; a `control` must leave them green."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    control: bool = False

    @property
    def device(self) -> str:
        """Which library the edits change: the one for cuda, or the one for cpu."""
        return "cuda" if self.edits[0][0].startswith("cuda/") else "cpu"


def mutation(name: str, file: str, find: str, replacement: str, *tests: str) -> Mutation:
    """A mutation of one edit."""
    return Mutation(name, ((file, find, replacement),), tests)


MUTATIONS = (
    # The sum.
    mutation("lost-lane", "cuda/reduce.cuh", "for (; bit < 32; bit *= 2)",
             "for (; bit < 16; bit *= 2)", f"{LANES}[cuda-256-dtype0]",
             f"{CONFIGS}[4096-dtype0]"),
    mutation("lost-last-vector", "cuda/launch_plan.h", "p.vecs_per_row = shape.vecs_per_row;",
             "p.vecs_per_row = shape.vecs_per_row - 1;", f"{SIZES}[cuda-dtype0-1000]"),
    mutation("unused-slots-not-cleared", "cuda/rms_norm.cuh", "chunk_sums[slot] = 0.0f;",
             "static_cast<void>(chunk_sums[slot]);",
             f"{CONFIGS}[65536-dtype0]", f"{CONFIGS}[2880-dtype0]"),
    mutation("no-zeros-past-the-row", "cuda/access.cuh", "bytes = valid ? 16 : 0;", "bytes = 16;",
             f"{CONFIGS}[2880-dtype0]"),
    mutation("sum-over-rounded", "cuda/row_steps.cuh", "h[i] = __fadd_rn(h[i], values[i]);",
             "h[i] = __fadd_rn(h[i], values[i]);\n  round_to<T>(h);", f"{SIZES}[cuda-dtype0-4096]"),
    # Waits.
    mutation("no-row-barrier", "cuda/rms_norm.cuh", "row_barrier(row_in_cta, blockDim.x);", "",
             f"{CONFIGS}[4096-dtype0]"),
    mutation("no-cta-barrier", "cuda/rms_norm.cuh", "__syncthreads();", "",
             f"{CONFIGS}[4096-dtype0]", f"{BATCHES}[cuda-16384-dtype0]"),
    mutation("no-reread-barrier", "cuda/reread.cuh", "__syncthreads();", "",
             f"{CONFIGS}[65536-dtype0]"),
    mutation("no-cluster-wait", "cuda/rms_norm.cuh", "cluster_sums_wait();", "",
             f"{CONFIGS}[4096-dtype0]"),
    Mutation("slow-second-cta", SLOW_SECOND_CTA, (f"{CONFIGS}[4096-dtype0]",), control=True),
    # CTAs of a cluster start together: without the slow one the missing wait would stay unseen.
    Mutation("no-cluster-start-wait", (*SLOW_SECOND_CTA, (
        "cuda/cluster.cuh", 'asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");',
        "")), (f"{CONFIGS}[4096-dtype0]",)),
    mutation("no-wait-for-staged-rows", "cuda/access.cuh",
             'asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");', "",
             f"{CONFIGS}[24576-dtype0]"),
    mutation("no-wait-for-the-grid-before", "cuda/row_steps.cuh",
             'asm volatile("griddepcontrol.wait;" ::: "memory");', "",
             f"{CHAIN}[1024]", f"{CHAIN}[4096]", LONG_CHAIN),
    # The weight and the options.
    mutation("no-weight", "cuda/row_steps.cuh", "h[i] = __fmul_rn(h[i], factor[i]);",
             "h[i] = __fmul_rn(h[i], 1.0f);", f"{SIZES}[cuda-dtype0-4096]"),
    mutation("no-weight-offset", "cuda/row_steps.cuh", "__fadd_rn(p.weight_offset, factor[i])",
             "__fadd_rn(0.0f, factor[i])", f"{OPTIONS}[cuda-1.0-False-same-dtype0]"),
    mutation("offset-left-out", "cuda/rms_norm.cuh", "p.weight_offset != 0.0f)", "false)",
             f"{OPTIONS}[cuda-1.0-False-same-dtype0]"),
    mutation("one-rounding-order", "cuda/rms_norm.cu",
             "p.round_before_weight = call.round_before_weight;", "p.round_before_weight = false;",
             f"{OPTIONS}[cuda-0.0-True-same-dtype0]"),
    mutation("no-eps", "cuda/rms_norm.cu", "p.eps = call.eps;", "p.eps = 0.0f;",
             f"{EPS}[cuda-1.0-dtype0]"),
    # Addresses.
    mutation("32-bit-offset", "cuda/row_steps.cuh", "static_cast<uint64_t>(row) * low",
             "row * low", f"{STRIDES}[30]"),
    mutation("32-bit-narrow-offset", "cuda/rms_norm.cuh",
             "std::conditional_t<kNarrow, int64_t, uint32_t>", "uint32_t", f"{STRIDES}[32]"),
    mutation("wide-kernel-for-any-stride", "cuda/rms_norm.cu", "counts && alignment.weight >= 16",
             "(counts || true) && alignment.weight >= 16", f"{STRIDES}[32]"),
    # It goes to the place of the output, which is written later.
    mutation("no-residual-store", "cuda/rms_norm.cuh", "(residual_out, ",
             "(p.num_tokens < 0 ? residual_out : out, ", f"{SIZES}[cuda-dtype0-4096]"),
    mutation("rows-past-the-last", "cuda/rms_norm.cuh",
             "row >= static_cast<Index>(p.num_tokens)) return;", "p.num_tokens < 0) return;",
             f"{LAST_ROW}[4096]"),
    mutation("clusters-past-the-last", "cuda/rms_norm.cuh",
             "kCluster && kAdd && row >= static_cast<Index>(p.num_tokens)",
             "kCluster && kAdd && p.num_tokens < 0",
             f"{LAST_ROW}[4096]"),
    # Where the next grid begins.
    mutation("no-clusters-more", "cuda/launch_plan.h", "/ ctas_per_row + first_gpc",
             "/ ctas_per_row + 0 * first_gpc", f"{FIRST_GPC}[3]"),
    # The CPU implementation.
    mutation("cpu-lost-element", "cpu/row_kernel.cpp", "input.load_group(i, hidden_size - i)",
             "input.load_group(i, hidden_size - 1 - i)", f"{SIZES}[cpu-dtype0-257]"),
    mutation("cpu-no-weight", "cpu/row_kernel.cpp", "part += weight_offset;",
             "part = 0.0f * part + 1.0f + weight_offset;", f"{SIZES}[cpu-dtype0-64]"),
    mutation("cpu-no-weight-offset", "cpu/row_kernel.cpp", "part += weight_offset;",
             "part += 0.0f * weight_offset;", f"{OPTIONS}[cpu-1.0-False-same-dtype0]"),
    mutation("cpu-offset-of-zero-added", "norm_call.h", "call.weight_offset = -0.0f;",
             "call.weight_offset = 0.0f;",
             f"{OPTIONS}[cpu-0.0-False-same-dtype0]"),
    mutation("cpu-no-residual-store", "cpu/row_kernel.cpp",
             "if constexpr (kAdd) store(residual_out",
             "if (kAdd && call.num_tokens < 0) store(residual_out", f"{SIZES}[cpu-dtype0-4096]"),
    mutation("cpu-no-overlap-check", "tensor_checks.h",
             "if (may_overlap(x_bytes, residual_bytes)) {",
             "if (may_overlap(x_bytes, residual_bytes) && x.num_tokens < 0) {", f"{OVERLAP}[cpu]"),
)  # fmt: skip
