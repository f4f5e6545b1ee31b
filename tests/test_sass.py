"""The compiled kernels, without a GPU: full-width accesses, no spills, no drift."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import sass

from hp_norm_plugin import library, rules

ARCHS = [arch for arch in library.library_status().cuda_archs if arch.isdigit()]
pytestmark = pytest.mark.skipif(
    not ARCHS or sass.cuobjdump() is None, reason="no CUDA library, or no cuobjdump to read it with"
)
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4}


def wide_kernels(arch):
    """(kernel, vector bytes) of the kernels that rules choose for aligned rows."""
    for name, kernel in sass.kernels(arch).items():
        kind, arguments = name.rstrip(">").split("<")
        dtype, _, elems, *_ = arguments.split(", ")
        if kind == "rms_norm_kernel" and "narrow" not in arguments:
            yield kernel, int(elems) * SIZES[dtype]


def test_every_instantiation_is_compiled_for_every_architecture():
    names = {arch: set(sass.kernels(arch)) for arch in ARCHS}
    assert all(found == names[ARCHS[0]] for found in names.values())
    # 3 dtypes and their weights, with and without add: 3 + 2 wide kernels for one row a CTA, for
    # several, and for clusters; 2 narrow, 2 staged, 1 re-reading; and, beside weights of x's dtype,
    # 2 cached, and 4 that keep their output in L2, 1 of them staged; and for the plain norm alone
    # a lean one and one that reads once.
    assert len(names[ARCHS[0]]) == 5 * 2 * (3 * 5 + 5) + 3 * 2 * (2 + 4) + 3 * 2


@pytest.mark.parametrize("arch", ARCHS)
def test_aligned_rows_are_accessed_at_full_width(arch):
    for kernel, vec_bytes in wide_kernels(arch):
        width = "256" if vec_bytes == 32 and int(arch) >= 100 else "128"
        loads = "LDGSTS" if "staged" in kernel.name else "LDG"
        narrower = [w for w in kernel.widths if w.split()[1] not in ("128", width)]
        assert not narrower, (kernel.name, kernel.widths)
        add = "add" in kernel.name
        vecs = int(kernel.name.split(", ")[3])
        halves = vec_bytes * 8 // int(width)
        assert kernel.widths[f"{loads} {width}"] >= vecs * halves * (2 if add else 1), kernel
        assert kernel.widths[f"STG {width}"] >= vecs * halves * (2 if add else 1), kernel


@pytest.mark.parametrize("arch", [arch for arch in ARCHS if int(arch) >= 90])
def test_no_kernel_that_a_rule_chooses_spills(arch):
    chosen = {
        (
            op,
            rule.config.vec_bytes,
            rule.config.vecs_per_thread,
            rule.config.ctas_per_row > 1,
            *(
                path in rule.config.option_names()
                for path in ("staged", "cached", "keep_output", "lean", "read_once")
            ),
        )
        for rule in rules.table()
        for op in (("add", "plain") if rule.op == "any" else (rule.op,))
        if rule.min_sm <= int(arch) <= rule.max_sm
    }
    checked = 0
    for kernel, vec_bytes in wide_kernels(arch):
        vecs = int(kernel.name.split(", ")[3])
        op = "add" if "add" in kernel.name else "plain"
        kinds = ("cluster", "staged", "cached", "kept", "lean", "once")
        key = (op, vec_bytes, vecs, *(kind in kernel.name for kind in kinds))
        if key in chosen:
            assert kernel.local_accesses == 0 and kernel.stack == 0, kernel
            checked += 1
    assert checked >= 10


@pytest.mark.parametrize("arch", ARCHS)
def test_registers_leave_room_for_the_largest_cta(arch):
    for kernel in sass.kernels(arch).values():
        assert 0 < kernel.registers <= 65536 // 1024, kernel


@pytest.mark.skipif("90" not in ARCHS, reason="no code for sm_90")
def test_registers_leave_room_for_the_ctas_that_decode_rules_count_on():
    """Three CTAs of 512 threads an SM: 48 registers instead of 40 made 32 x 32768 28 % slower.

    H200, 2026-11-24: clusters of 8 then need two waves.
    """
    checked = 0
    for kernel, vec_bytes in wide_kernels("90"):
        dtype, weight, _, vecs, *_ = kernel.name.split("<")[1].split(", ")
        if vec_bytes == 16 and vecs == "1" and weight.rstrip(">") == dtype:
            assert kernel.registers <= 40, kernel
            checked += 1
    assert checked == 3 * 6


@pytest.mark.skipif("90" not in ARCHS, reason="no code for sm_90")
def test_a_filled_launch_fits_beside_a_reduction_of_1024_threads_an_sm():
    """With 36 registers and more the CTAs' order, and the next product's speed, was chance.

    H200, 2026-11-26: docs/notes/2026-11-26-first-gpc.md. Rows above 8 KiB did not need it.
    """
    filled = {
        (rule.config.vec_bytes, rule.config.vecs_per_thread)
        for rule in rules.table()
        if "fill_gpu" in rule.config.option_names() and rule.max_row_bytes <= 8192
    }
    checked = 0
    for kernel, vec_bytes in wide_kernels("90"):
        dtype, weight, _, vecs, *kind = kernel.name.rstrip(">").split("<")[1].split(", ")
        if (vec_bytes, int(vecs)) in filled and kind == ["add", "cluster"] and weight == dtype:
            assert kernel.registers <= 32, kernel
            checked += 1
    assert checked == 3, "one of each dtype"


@pytest.mark.skipif("90" not in ARCHS, reason="no code for sm_90")
def test_ptxas_takes_every_warp_for_whole():
    """A branch of a few threads early in the kernel costs every access and shuffle behind it.

    H200, 2026-11-26: a trap that is never taken was 73 of 455 instructions, and 8 % at 512 x 6144.
    """
    kernels = [kernel for kernel in sass.kernels("90").values() if "reread" not in kernel.name]
    assert len(kernels) > 200
    assert not [kernel for kernel in kernels if kernel.divergence]


@pytest.mark.parametrize("arch", ARCHS)
def test_nothing_waits_for_all_of_the_gpus_memory(arch):
    """As a release at the cluster's barrier does: 12 % at 16 tokens (H200, 2026-11-26)."""
    assert not [kernel for kernel in sass.kernels(arch).values() if kernel.gpu_fences]


@pytest.mark.parametrize("arch", ARCHS)
def test_code_is_what_was_recorded(arch):
    """A change that costs registers or instructions shows here before it shows on a GPU.

    After a change that was measured: `python -m tests.sass` and commit the file.
    """
    recorded = json.loads(sass.FACTS.read_text()).get(arch)
    if recorded is None:
        pytest.skip(f"sm_{arch} is not among the recorded architectures")
    found = [
        line
        for name, kernel in sass.kernels(arch).items()
        for line in sass.drift(kernel, recorded[name])
    ]
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize(
    ("worse", "words"),
    [
        ({"registers": 33}, "registers 33, recorded 32"),
        ({"instructions": 211}, "instructions 211, recorded 200"),
        ({"loop": 106}, "loop 106, recorded 100"),
        ({"local_accesses": 1}, "spills 1, recorded 0"),
        ({"widths": Counter({"LDG 64": 4})}, "widths {'LDG 64': 4}, recorded {'LDG 128': 2}"),
    ],
)
def test_what_counts_as_drift(worse, words):
    as_recorded = {
        "name": "rms_norm_reread_kernel<>", "registers": 32, "instructions": 210, "loop": 105,
        "widths": Counter({"LDG 128": 2}),
    }  # fmt: skip
    recorded = {"registers": 32, "instructions": 200, "loop": 100, "widths": {"LDG 128": 2}}
    assert sass.drift(sass.Kernel(**as_recorded), recorded) == []
    found = sass.drift(sass.Kernel(**{**as_recorded, **worse}), recorded)
    assert found == [f"rms_norm_reread_kernel<>: {words}"]
