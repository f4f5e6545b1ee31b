"""The launch rules: complete, legal, and the same bits whichever is chosen."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import DTYPES, assert_same_bits, make_case

import hp_norm_plugin as hp
from hp_norm_plugin import rules

ARCHITECTURES = [80, 86, 89, 90, 100, 103, 110, 120, 121]
TOKENS = [1, 2, 4, 5, 8, 16, 17, 32, 33, 64, 128, 256, 512, 1024, 2048, 4096, 1 << 20]
# Every width at which a rule of the table ends, one vector to each side, and small and odd ones.
EDGES = sorted(
    {
        width
        for rule in rules.table()
        for width in (
            rule.max_row_bytes // 2 - 16,
            rule.max_row_bytes // 2,
            rule.max_row_bytes // 2 + 16,
        )
        if 1 <= width <= 65536
    }
    | {1, 2, 7, 8, 100, 4097, 16384, 65528, 65535, 65536}
)


def with_every_option(config):
    """The configuration with all options of a launch that may be had together."""
    left_out = {"pair_ctas"} if config.ctas_per_row * config.rows_per_cta > 1 else {"fill_gpu"}
    if not config.options & rules.OPTIONS["staged"]:
        left_out.add("two_per_sm")
    names = rules.OPTIONS.keys() - {*rules.PATHS} - left_out
    return dataclasses.replace(
        config, options=config.options | sum(rules.OPTIONS[name] for name in names)
    )


def explained(sm):
    for dtype in DTYPES:
        for hidden_size in EDGES:
            for num_tokens in TOKENS:
                for add in (True, False):
                    yield (
                        dtype,
                        hidden_size,
                        rules.explain(num_tokens, hidden_size, dtype, f"sm_{sm}", add=add),
                    )


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_every_size_has_a_launch_that_holds_it(sm):
    for dtype, hidden_size, rule in explained(sm):
        row_bytes = hidden_size * dtype.itemsize
        config = rule.config
        assert config.is_valid(row_bytes), (sm, hidden_size, rule.describe())
        assert rule.threads_per_cta <= 1024 and rule.threads_per_row % 32 == 0
        options = config.option_names()
        if "reread" in options:
            assert sm < 90, "from sm_90 on no row is read twice"
            continue
        held = rule.threads_per_row * config.vecs_per_thread * config.ctas_per_row
        assert held * config.vec_bytes >= row_bytes
        if config.ctas_per_row > 1:
            assert sm >= 90, "clusters start with sm_90"
        if "narrow" not in options:
            assert row_bytes % config.vec_bytes == 0
        if config.vec_bytes == 32:
            assert sm >= 100, "256-bit accesses start with sm_100"


@pytest.mark.parametrize("sm", [90, 100, 120])
def test_aligned_rows_take_full_width(sm):
    for dtype, hidden_size, rule in explained(sm):
        row_bytes = hidden_size * dtype.itemsize
        expected = 32 if sm >= 100 and row_bytes % 32 == 0 else 16
        if row_bytes % 16 == 0:
            assert rule.config.vec_bytes == expected and rule.index >= 0, rule.describe()


def test_table_is_ordered_and_every_line_can_match():
    """A line that an earlier one always shadows is dead data."""
    for index, rule in enumerate(rules.table()):
        assert rule.evidence
        for earlier in rules.table()[:index]:
            shadows = (
                earlier.min_sm <= rule.min_sm
                and earlier.max_sm >= rule.max_sm
                and earlier.op in ("any", rule.op)
                and earlier.max_row_bytes >= rule.max_row_bytes
                and earlier.max_tokens >= rule.max_tokens
                and earlier.config.is_valid(rule.max_row_bytes)
            )
            assert not shadows, (earlier, rule)


def test_measured_clusters_do_not_trigger_behind_their_loads():
    """On some cards, and in some runs of one, such a launch takes 10 to 60 % longer."""
    late = [
        (rule.op, rule.max_row_bytes, rule.max_tokens)
        for rule in rules.table()
        if rule.config.ctas_per_row > 1
        and not rule.evidence.startswith("not measured")
        and not {"trigger_early", "trigger_at_end"} & {*rule.config.option_names()}
    ]
    assert not late, "docs/notes/2026-11-26-another-card.md"


def test_a_filled_gpu_has_room_beside_the_reduction_before_it():
    """Half the threads of an SM are the reduction's, and 32 registers each leave room for both."""
    filled = [rule for rule in rules.table() if "fill_gpu" in rule.config.option_names()]
    assert filled
    for rule in filled:
        assert rule.op == "add" and rule.config.ctas_per_row > 1, "others cannot be without a row"
        for hidden_size in (rule.max_row_bytes // 4, rule.max_row_bytes // 2):
            explained = rules.explain(1, hidden_size, torch.bfloat16, "sm_90", add=True)
            assert 4 * explained.threads_per_cta <= 1024


@pytest.mark.parametrize("path", [path for path in rules.PATHS if path != "cached"])
@pytest.mark.parametrize("vecs", [1, 2, 4, 8])
def test_a_cached_row_takes_no_other_path(path, vecs):
    options = rules.OPTIONS["cached"] + rules.OPTIONS[path]
    assert not rules.Config(16, vecs, options=options).is_valid(8192)


@pytest.mark.parametrize(
    ("vecs", "ctas", "path", "may"),
    [
        (2, 2, "keep_output", True),
        (4, 2, "keep_output", False),
        (2, 1, "keep_output", False),
        (2, 2, "cached", False),
    ],
)
def test_lean_rows_are_of_two_vectors_in_a_cluster(vecs, ctas, path, may):
    """No kernel is compiled for others."""
    options = rules.OPTIONS["lean"] + rules.OPTIONS[path]
    assert rules.Config(16, vecs, 1, ctas, options).is_valid(16384) == may


@pytest.mark.parametrize(
    ("vecs", "path", "may"), [(8, "staged", True), (4, "staged", False), (4, "keep_output", False)]
)
def test_rows_read_once_are_staged_with_eight_vectors(vecs, path, may):
    """No kernel is compiled for others."""
    options = rules.OPTIONS["read_once"] + rules.OPTIONS[path]
    assert rules.Config(16, vecs, options=options).is_valid(16384) == may


def test_lines_are_kept_where_some_are_asked_for():
    keep, ahead = (rules.OPTIONS[name] for name in ("keep_ahead", "prefetch_ahead"))
    assert rules.Config(16, 2, options=keep | ahead).is_valid(8192)
    assert not rules.Config(16, 2, options=keep).is_valid(8192)


@pytest.mark.parametrize(("path", "may"), [("staged", True), ("cached", False), ("reread", False)])
def test_two_ctas_an_sm_are_of_staged_rows(path, may):
    """Kernels of clusters have shared memory of their own, and could not ask for that much."""
    options = rules.OPTIONS["two_per_sm"] + rules.OPTIONS[path]
    assert rules.Config(16, 4, options=options).is_valid(16384) == may


@pytest.mark.parametrize(
    ("rows", "ctas", "others", "may"),
    [(1, 1, 0, True), (2, 1, 0, False), (1, 2, 0, False), (1, 1, rules.OPTIONS["fill_gpu"], False)],
)
def test_pairs_are_of_ctas_with_a_row_each(rows, ctas, others, may):
    """A filled launch of them would have CTAs past the last row that do not know it."""
    options = rules.OPTIONS["pair_ctas"] + others
    assert rules.Config(16, 1, rows, ctas, options).is_valid(4096) == may


def test_every_kernel_is_used_by_a_rule():
    """What no rule takes is compiled for nothing. A 32-byte rule serves 16-byte rows, too."""

    def kernel(config):
        paths = set(rules.PATHS) & set(config.option_names())
        paths |= {"rows"} if config.rows_per_cta > 1 else set()
        paths |= {"cluster"} if config.ctas_per_row > 1 else set()
        return config.vec_bytes, config.vecs_per_thread, *sorted(paths)

    used = set()
    for rule in rules.table():
        used.add(kernel(rule.config))
        if rule.config.vec_bytes == 32:
            vecs = 2 * rule.config.vecs_per_thread
            used.add(kernel(dataclasses.replace(rule.config, vec_bytes=16, vecs_per_thread=vecs)))
    compiled = {
        kernel(config)
        for hidden_size in (512, 2048, 16384)
        for config in rules.candidates(hidden_size, torch.bfloat16, 100)
        if not {"narrow", "reread"} & set(config.option_names())
    }
    assert compiled == used


def test_thresholds_are_inclusive():
    def name(num_tokens, hidden_size):
        return rules.explain(num_tokens, hidden_size, torch.bfloat16, "sm_90").index

    assert name(1, 2048) != name(1, 2056), "4096 bytes and one vector more"
    assert name(8, 12288) != name(9, 12288)
    assert name(8, 12288) == name(5, 12288)


def test_explain_describes_and_refuses():
    rule = hp.explain(1, 16384, torch.bfloat16, "sm_90")
    assert rule.describe().startswith(
        f"rule {rule.index}: 16-byte vectors, 1 a thread, 256 threads"
    )
    assert "cluster of 8" in rule.describe()
    assert hp.explain(1, 7, torch.bfloat16, "sm_90").describe().startswith("fallback: ")
    with pytest.raises(ValueError, match="explain: device: must be a CUDA device or such as sm_90"):
        hp.explain(1, 4096, torch.bfloat16, "cpu")
    with pytest.raises(ValueError, match="must be a CUDA device or such as sm_90, got sm_90a"):
        hp.explain(1, 4096, torch.bfloat16, "sm_90a")
    with pytest.raises(ValueError, match="explain: num_tokens: must be at least 0, got -1"):
        hp.explain(-1, 4096, torch.bfloat16, "sm_90")
    for hidden_size in (0, 65537):
        rule = f"explain: hidden_size: must be from 1 to 65536, got {hidden_size}"
        with pytest.raises(ValueError, match=rule):
            hp.explain(1, hidden_size, torch.bfloat16, "sm_90")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [64, 1000, 2880, 4096, 8192, 16384, 24576, 65536])
@pytest.mark.gpu
def test_every_configuration_gives_the_same_bits(dtype, hidden_size):
    sm = rules.sm_of("cuda")
    found = rules.candidates(hidden_size, dtype, sm)
    staged = rules.OPTIONS["staged"]
    found += [with_every_option(one) for one in found if one.options in (0, staged)]
    assert len(found) >= 5
    for weight_dtype in ("same", torch.float32):
        case = make_case(7, hidden_size, dtype, weight_dtype)
        expected = hp.fused_add_rms_norm(case.x, case.residual, case.weight, case.eps)
        plain = hp.rms_norm(case.x, case.weight, case.eps)
        moved = case.to("cuda")
        for config in found:
            with rules.forced(config):
                out, summed = hp.fused_add_rms_norm(moved.x, moved.residual, moved.weight, case.eps)
                out_plain = hp.rms_norm(moved.x, moved.weight, case.eps)
            assert_same_bits(out, expected[0], f"out of {config}")
            assert_same_bits(summed, expected[1], f"residual_out of {config}")
            assert_same_bits(out_plain, plain, f"rms_norm of {config}")


@pytest.mark.gpu
@pytest.mark.parametrize("hidden_size", [64, 1000, 4096])
def test_no_configuration_touches_what_follows_the_last_row(hidden_size):
    """Seven rows: no pairs, CTAs of several rows are not full, filled ones have CTAs without."""
    case = make_case(7, hidden_size, torch.bfloat16).to("cuda")
    found = rules.candidates(hidden_size, torch.bfloat16, rules.sm_of("cuda"))
    assert {config.rows_per_cta for config in found} >= {1, 2}
    found += [with_every_option(config) for config in found]
    for config in found:
        x, residual = torch.full((2, 15, hidden_size), 7.0, dtype=torch.bfloat16, device="cuda")
        x[:7], residual[:7] = case.x, case.residual
        with rules.forced(config):
            hp.fused_add_rms_norm_(x[:7], residual[:7], case.weight, case.eps)
        assert (x[7:] == 7).all() and (residual[7:] == 7).all(), config


@pytest.mark.gpu
def test_a_forced_configuration_that_cannot_hold_the_row_is_refused():
    x = torch.ones(2, 16384, dtype=torch.bfloat16, device="cuda")
    with (
        rules.forced(rules.Config(16, 1)),
        pytest.raises(RuntimeError, match="forced launch configuration cannot take these rows"),
    ):
        hp.rms_norm(x, None, 1e-6)
    hp.rms_norm(x, None, 1e-6)
