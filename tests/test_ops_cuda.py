"""What only a GPU shows: streams, CUDA graphs, dependent launches, large tensors, the sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_same_bits, find_nvcc, make_case

import hp_norm_plugin as hp
from hp_norm_plugin import first_gpc, reference

pytestmark = pytest.mark.gpu
HERE = Path(__file__).parent
# <T, W, kElems, kVecs, kAdd, kCluster, kPath>: the last flag is set.
CLUSTER_KERNEL = re.compile(r"rms_norm_kernel<[^>]*\(bool\)1, \(hp_norm::RowPath\)\d>")


def test_runs_on_the_current_stream():
    """A long kernel is ahead on a side stream: a call on another stream would read too early."""
    stream = torch.cuda.Stream()
    case = make_case(64, 4096, torch.bfloat16)
    expected, _ = reference.fused_add_rms_norm(case.x, case.residual, case.weight, case.eps)
    moved = case.to("cuda")
    x = torch.zeros_like(moved.x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.copy_(moved.x)
        out, _ = hp.fused_add_rms_norm(x, moved.residual, moved.weight, case.eps)
    stream.synchronize()
    assert_same_bits(out, expected)


@pytest.mark.parametrize("hidden_size", [3840, 4096, 8192])
def test_where_the_next_grid_begins_changes_no_bit(hidden_size):
    case = make_case(32, hidden_size, torch.bfloat16)
    want, want_residual = reference.fused_add_rms_norm(case.x, case.residual, case.weight, case.eps)
    moved = case.to("cuda")
    device = moved.x.device
    try:
        for gpc in range(first_gpc.GPCS):
            first_gpc.set_first_gpc(gpc, device)
            out, residual = hp.fused_add_rms_norm(moved.x, moved.residual, moved.weight, case.eps)
            assert_same_bits(out, want)
            assert_same_bits(residual, want_residual)
    finally:
        first_gpc.set_first_gpc(0, device)


def test_each_number_is_timed_by_itself():
    one, two, four = first_gpc.graph_times(lambda n: torch.cuda._sleep(n * 200_000), [1, 2, 4])
    assert 50 < one < 1000 and two / one == pytest.approx(2, rel=0.2)
    assert four / two == pytest.approx(2, rel=0.2)


def test_steps_of_products_are_timed_from_each_gpc():
    x = torch.randn(8, 4096, dtype=torch.bfloat16, device="cuda")
    matrices = [torch.randn(4096, 4096, dtype=x.dtype, device="cuda") for _ in range(2)]
    steps = [first_gpc.Step(lambda m=m: x @ m, lambda out, m=m: out @ m) for m in matrices]
    times = first_gpc.times(steps, x)
    assert list(times) == list(first_gpc.CANDIDATES)
    assert all(10 < us < 1000 for us in times.values()), times


@pytest.mark.parametrize("num_tokens", [1, 8, 64, 2048])
@pytest.mark.parametrize("hidden_size", [1024, 4096, 16384])
def test_captured_and_replayed_between_matrix_products(num_tokens, hidden_size):
    """GEMM -> norm -> norm -> GEMM in one graph: each call waits for what the one before wrote."""
    if num_tokens * hidden_size > 1 << 24:
        pytest.skip("the product alone would take seconds")
    dtype = torch.bfloat16
    case = make_case(num_tokens, hidden_size, dtype).to("cuda")
    matrix = torch.randn(hidden_size, hidden_size, dtype=dtype, device="cuda") / hidden_size**0.5
    x, residual = case.x.clone(), case.residual.clone()
    result = torch.empty_like(x)

    def run():
        y = x @ matrix
        r = residual.clone()
        hp.fused_add_rms_norm_(y, r, case.weight, case.eps)
        z, r = hp.fused_add_rms_norm(y, r, case.weight, case.eps)
        torch.mm(hp.rms_norm(z, case.weight, case.eps), matrix, out=result)

    def expect():
        y, r = reference.fused_add_rms_norm(x @ matrix, residual, case.weight, case.eps)
        z, _ = reference.fused_add_rms_norm(y, r, case.weight, case.eps)
        return reference.rms_norm(z, case.weight, case.eps) @ matrix

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(5):
        x.normal_()
        residual.normal_()
        result.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_same_bits(result, expect())


def test_a_long_chain_of_dependent_launches():
    """Each call reads what the one before wrote, weight too: a missing wait shows as a race."""
    case = make_case(8, 4096, torch.float32, eps=1e-3)
    x, residual = case.x / case.x.abs().max(), case.residual / case.residual.abs().max()
    weight = torch.rand(4096)
    moved = x.cuda(), residual.cuda(), weight.cuda()
    graph = torch.cuda.CUDAGraph()
    state = [t.clone() for t in moved]
    for _ in range(2):
        hp.rms_norm(state[0], state[2], case.eps)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(40):
            hp.fused_add_rms_norm_(state[0], state[1], state[2], case.eps)
            state[2].copy_(hp.rms_norm(state[0][0], None, case.eps))
    for _ in range(3):
        for target, source in zip(state, moved, strict=True):
            target.copy_(source)
        graph.replay()
    torch.cuda.synchronize()
    for _ in range(40):
        hp.fused_add_rms_norm_(x, residual, weight, case.eps)
        weight = hp.rms_norm(x[0], None, case.eps)
    assert_same_bits(state[0], x)
    assert_same_bits(state[2], weight)


@pytest.mark.parametrize("hidden_size", [1024, 4096])
def test_norms_with_nothing_between_them(hidden_size):
    """Every call starts while the one before runs, and works in place on what that one writes."""
    case = make_case(64, hidden_size, torch.float32, eps=1e-3)
    first = case.to("cuda")
    state = case.to("cuda")

    def chain(c):
        for _ in range(60):
            hp.fused_add_rms_norm_(c.x, c.residual, c.weight, c.eps)

    chain(state)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain(state)
    chain(case)
    for _ in range(3):
        state.x.copy_(first.x)
        state.residual.copy_(first.residual)
        graph.replay()
        assert_same_bits(state.x, case.x, "x")
        assert_same_bits(state.residual, case.residual, "residual")


def test_more_elements_than_32_bits_count():
    num_tokens, hidden_size = (1 << 31) // 4096 + 5, 4096
    needed = 3 * 2 * num_tokens * hidden_size
    if torch.cuda.mem_get_info()[0] < needed + (1 << 30):
        pytest.skip(f"needs {needed >> 30} GiB of free GPU memory")
    x = torch.zeros(num_tokens, hidden_size, dtype=torch.bfloat16, device="cuda")
    case = make_case(4, hidden_size, torch.bfloat16)
    x[-4:] = case.x.cuda()
    x[:4] = case.x.cuda()
    residual = torch.zeros_like(x)
    residual[-4:] = case.residual.cuda()
    weight = case.weight.cuda()
    expected, summed = reference.fused_add_rms_norm(case.x, case.residual, case.weight, 1e-6)
    hp.fused_add_rms_norm_(x, residual, weight, 1e-6)
    assert_same_bits(x[-4:], expected)
    assert_same_bits(residual[-4:], summed)
    assert_same_bits(x[:4], reference.rms_norm(case.x, case.weight, 1e-6))
    assert not x[4:-4].any()


@pytest.mark.parametrize("bits", [30, 31, 32])
def test_a_row_stride_beyond_32_bits(bits):
    """32 bits count the bytes of the first and the elements of the second, not those of two rows;
    the third goes to the narrow kernel."""
    stride = (1 << bits) + 64
    if torch.cuda.mem_get_info()[0] < 2 * 3 * stride + (1 << 30):
        pytest.skip("needs 8, 14 or 27 GiB of free GPU memory")
    case = make_case(3, 512, torch.float16)
    buffer = torch.zeros(2 * stride + 512, dtype=torch.float16, device="cuda")
    x = buffer.as_strided((3, 512), (stride, 1))
    x.copy_(case.x)
    out = hp.rms_norm(x, case.weight.cuda(), 1e-6)
    assert_same_bits(out, reference.rms_norm(case.x, case.weight, 1e-6))


def test_the_device_of_the_tensors_is_used_and_restored():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = make_case(4, 1024, torch.bfloat16).to("cuda:1")
    torch.cuda.set_device(0)
    out = hp.rms_norm(case.x, case.weight, 1e-6)
    assert out.device.index == 1 and torch.cuda.current_device() == 0
    assert_same_bits(out, reference.rms_norm(case.x.cpu(), case.weight.cpu(), 1e-6))


def test_reciprocal_square_root_is_correctly_rounded_for_every_float(tmp_path):
    if find_nvcc() is None:
        pytest.skip("nvcc is not here")
    program = tmp_path / "rsqrt"
    source = HERE / "gpu" / "rsqrt.cu"
    subprocess.run([find_nvcc(), "-std=c++20", "-arch=native", "-o", program, source], check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["0", "0"]


@pytest.mark.sanitizer
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).is_file():
        pytest.skip("compute-sanitizer is not here")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable,
               str(HERE / "gpu" / "every_kernel.py")]  # fmt: skip
    # The script is not a module of this process: it finds the package where pytest did.
    path = os.pathsep.join([str(HERE.parent), *sys.path])
    env = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    output = result.stdout + result.stderr
    assert "kernels launched: " in output, output[-4000:]
    if tool == "racecheck":
        # The tool takes a thread's mbarrier.init and its own arrive.expect_tx, one after the other,
        # for a race, in every cluster kernel and as a warning; there is nothing else to forgive.
        assert re.search(r"RACECHECK SUMMARY: \d+ hazards? displayed \(0 errors", output), output[
            -4000:
        ]
        for line in re.findall(r"Race reported .*", output):
            assert CLUSTER_KERNEL.search(line), line
    else:
        assert result.returncode == 0 and "ERROR SUMMARY: 0 errors" in output, output[-4000:]
