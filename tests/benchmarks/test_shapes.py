import pytest

from benchmarks import shapes
from benchmarks.shapes import Case


def test_grid_holds_every_combination_once():
    cases = list(shapes.grid(["plain", "fused_add"], ["bf16"], [4, 1, 4], [2048, 1024]))
    assert len(cases) == len(set(cases)) == 8
    assert cases[:3] == [
        Case("plain", "bf16", 1, 1024),
        Case("plain", "bf16", 4, 1024),
        Case("plain", "bf16", 1, 2048),
    ]


def test_dtypes_of_a_shape_follow_each_other():
    cases = list(shapes.grid(["plain"], ["bf16", "fp16"], [1, 4], [1024, 2048]))
    assert cases[:3] == [
        Case("plain", "bf16", 1, 1024),
        Case("plain", "fp16", 1, 1024),
        Case("plain", "bf16", 4, 1024),
    ]


def test_default_grid_covers_what_the_issue_names():
    assert {2**n for n in range(10, 16)} <= set(shapes.HIDDEN_SIZES)
    models = {2560, 2880, 3072, 3584, 5120, 6144, 7168, 12288, 14336, 18432}
    assert models <= set(shapes.HIDDEN_SIZES)
    assert set(shapes.NUM_TOKENS) == {2**n for n in range(15)}


def test_founding_widths_are_the_sixteen_and_the_four_wide_ones():
    assert len(shapes.FOUNDING_HIDDEN_SIZES) == 20
    assert shapes.FOUNDING_HIDDEN_SIZES[:2] == (1024, 2048)
    assert shapes.FOUNDING_HIDDEN_SIZES[15:] == (16384, 20480, 24576, 28672, 32768)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        # x and residual, read and written, and the weight once
        (Case("fused_add", "bf16", 3, 8), 2 * (3 * 8 * 2 + 3 * 8 * 2) + 8 * 2),
        (Case("plain", "bf16", 3, 8), 2 * (3 * 8 * 2) + 8 * 2),
        (Case("fused_add", "fp32", 3, 8), 2 * (3 * 8 * 4 + 3 * 8 * 4) + 8 * 4),
    ],
)
def test_traffic_counts_every_byte_once(case, expected):
    assert case.traffic_bytes == expected


def test_every_token_count_of_the_grid_is_in_exactly_one_band():
    for count in shapes.NUM_TOKENS:
        assert sum(band.first <= count <= band.last for band in shapes.BANDS) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_shards_partition_the_hidden_sizes(count):
    parts = [shapes.shard(shapes.HIDDEN_SIZES, k, count) for k in range(1, count + 1)]
    assert sorted(size for part in parts for size in part) == sorted(shapes.HIDDEN_SIZES)


def test_parse_shard():
    assert shapes.parse_shard("2/3") == (2, 3)
    for text in ("0/3", "4/3", "1", "a/b", "1/", "-1/2"):
        with pytest.raises(ValueError, match="shard: must be K/N with 1 <= K <= N, got"):
            shapes.parse_shard(text)
