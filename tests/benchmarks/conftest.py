"""Shared pieces of the benchmark tests: the repository on the path, rows and results to judge."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.records import Row  # noqa: E402

A_ROW = Row(
    commit="abc123",
    date="2026-01-02T03:04:05+00:00",
    device="NVIDIA H200",
    sm_clock_mhz=1980,
    mem_clock_mhz=3201,
    driver="580.1",
    cuda="13.0",
    torch="2.11.0+cu130",
    provider="hp_norm",
    provider_version="0.1.0",
    op="fused_add",
    dtype="bf16",
    num_tokens=1,
    hidden_size=4096,
    protocol="cached",
    us=1.25,
    us_spread=0.01,
    gb_per_s=30.0,
    ratio_to_copy=1.5,
    rule="one row per CTA",
    status="ok",
    reason="",
)


@pytest.fixture
def a_row() -> Row:
    return A_ROW


@pytest.fixture
def cell_rows():
    """Return a function that makes the rows of one cell from times by provider."""

    def make(num_tokens: int, hidden_size: int, times: dict[str, float], **changes) -> list[Row]:
        cell = replace(
            A_ROW,
            num_tokens=num_tokens,
            hidden_size=hidden_size,
            protocol="cached" if num_tokens < 512 else "cold",
            **changes,
        )
        copy = times.get("copy")
        return [
            replace(
                cell,
                provider=name,
                us=us,
                ratio_to_copy=copy / us if copy else None,
                rule=cell.rule if name == "hp_norm" else "",
            )
            for name, us in times.items()
        ]

    return make
