"""The CUDA launcher without a GPU, and with a second one that is not there: tests/launcher.cu."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from helpers import find_nvcc
from torch.utils import cpp_extension

from hp_norm_plugin import rules

SOURCE = Path(__file__).with_name("launcher.cu")

pytestmark = pytest.mark.xdist_group("launcher")


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    if find_nvcc() is None:
        pytest.skip("nvcc is not here")
    program = tmp_path_factory.mktemp("launcher") / "launcher"
    lib = Path(torch.__file__).parent / "lib"
    includes = [part for path in cpp_extension.include_paths() for part in ("-isystem", path)]
    # The source's own functions come before those of the CUDA runtime that it replaces.
    subprocess.run(
        [find_nvcc(), "-std=c++20", "-arch=sm_90", "-Xlinker", "--allow-multiple-definition",
         "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL", *includes, "-o", program,
         SOURCE, f"-L{lib}", "-ltorch_cpu", "-lc10", "-Xlinker", f"-rpath={lib}"],
        check=True,
    )  # fmt: skip

    def run(*arguments: str) -> list[str]:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return run


def test_the_device_of_the_tensors_is_guarded_and_restored(launcher):
    rule = rules.explain(3, 4096, torch.bfloat16, "sm_90", add=False)
    assert launcher() == [
        "guard: device 1",
        "stream: of device 1",
        *["attribute: of device 1"] * 4,
        f"launch: on device 1, stream of device 1, {rule.num_ctas} CTAs of "
        f"{rule.threads_per_row} threads, clusters of {rule.config.ctas_per_row}, 128 bytes, "
        f"{1 + (rule.config.ctas_per_row > 1)} attributes",
        "guard gone: device 0",
    ]


def test_a_filled_launch_has_4_ctas_on_each_of_132_sms(launcher):
    rule = rules.explain(3, 4096, torch.bfloat16, "sm_90")
    assert "fill_gpu" in rule.config.option_names() and rule.num_ctas == 12
    launch = launcher("add")[-2]
    assert f" {132 * 4} CTAs of {rule.threads_per_row} threads" in launch
    assert launch.endswith(" 3 attributes"), "programmatic, cluster, shared memory's share"


@pytest.mark.parametrize("hidden_size", [4096, 8192])
def test_a_filled_launch_has_a_cluster_more_for_each_gpc_up_to_the_first(launcher, hidden_size):
    assert rules.explain(3, hidden_size, torch.bfloat16, "sm_90").config.ctas_per_row == 4
    launch = launcher("add", "3", str(hidden_size), "5")[-2]
    assert f" {132 * 4 + 5 * 4} CTAs" in launch and "clusters of 4" in launch


def test_a_launch_that_is_not_filled_is_the_same_whatever_the_first_gpc(launcher):
    assert launcher("add", "3", "2048", "5") == launcher("add", "3", "2048", "0")


@pytest.mark.parametrize(("num_tokens", "cluster"), [(256, 2), (255, 1)])
def test_ctas_with_a_row_each_are_launched_in_pairs_where_all_have_one(
    launcher, num_tokens, cluster
):
    rule = rules.explain(num_tokens, 8192, torch.bfloat16, "sm_90")
    assert "pair_ctas" in rule.config.option_names() and rule.config.ctas_per_row == 1
    launch = launcher("add", str(num_tokens), "8192")[-2]
    assert f" {num_tokens} CTAs of {rule.threads_per_row} threads, clusters of {cluster}," in launch


@pytest.mark.parametrize("hidden_size", [28672, 32768])
def test_every_long_staged_row_asks_for_the_same_shared_memory(launcher, hidden_size):
    """The limit is the kernel's, for all threads: another one could come before a launch."""
    assert "staged" in rules.explain(
        256, hidden_size, torch.bfloat16, "sm_90", add=False
    ).config.option_names()  # fmt: skip
    *_, limit, launch, _ = launcher("plain", "256", str(hidden_size))
    assert limit == f"limit: {227 << 10} bytes"
    assert f" {hidden_size * 2 + 512} bytes" in launch


@pytest.mark.parametrize(
    ("op", "num_tokens", "hidden_size", "mib", "policy"),
    [
        ("add", 4096, 4096, 3, "14f0000000000000"),  # evict_last
        ("add", 1024, 4096, 4, "1000000000000000"),  # evict_normal
        ("plain", 4096, 16384, 3, "14f0000000000000"),
    ],
)
def test_lines_asked_for_ahead_are_kept_where_the_rule_says_so(
    launcher, op, num_tokens, hidden_size, mib, policy
):
    options = rules.explain(
        num_tokens, hidden_size, torch.bfloat16, "sm_90", add=op == "add"
    ).config.option_names()  # fmt: skip
    assert "prefetch_ahead" in options
    assert ("keep_ahead" in options) == (policy == "14f0000000000000")
    *_, requests, _, _ = launcher(op, str(num_tokens), str(hidden_size))
    of_x = (mib << 20) // (2 if op == "add" else 1)
    assert requests == f"requests for x: {of_x} bytes ahead, policy {policy}"


def test_two_ctas_an_sm_take_more_than_a_third_of_its_shared_memory(launcher):
    options = rules.explain(512, 24576, torch.bfloat16, "sm_90", add=False).config.option_names()
    assert "two_per_sm" in options
    launch = launcher("plain", "512", "24576")[-2]
    assert f" {80 << 10} bytes" in launch and 3 * (80 << 10) > 228 << 10


def test_a_short_row_sets_no_limit(launcher):
    assert not [line for line in launcher("add", "256", "8192") if line.startswith("limit")]


def test_a_library_with_old_code_alone_launches_no_clusters(launcher):
    """What the driver compiles for it from PTX of sm_80 neither knows them nor waits."""
    launch = launcher("old")[-2]
    assert "clusters of 1" in launch and launch.endswith(" 0 attributes")


def test_more_rows_than_a_launch_takes_are_refused(launcher):
    rule = "x: must have fewer rows: a CUDA launch takes 2147483647 CTAs"
    assert launcher("plain", "2147483648", "4096")[-1] == (
        f"error: hp_norm::rms_norm: {rule}, got 2147483648"
    )


def test_a_launch_that_fails_is_an_error_and_restores_the_device(launcher):
    *_, launch, gone, error = launcher("fail")
    assert launch.startswith("launch: on device 1")
    assert gone == "guard gone: device 0"
    assert error == "error: hp_norm: kernel launch: as arranged"
