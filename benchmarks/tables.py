"""The tables of README.md and docs/, in Markdown, each made from the CSVs alone."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from benchmarks import analysis, stats
from benchmarks.providers import COPY, CPU_PEERS, EMPTY, OURS, PEERS
from benchmarks.results import Results, of_device
from benchmarks.shapes import BANDS, FOUNDING_HIDDEN_SIZES, FOUNDING_NUM_TOKENS

IMAGES = "docs/img"
NOT_MEASURED = "not measured here"
FOUNDING_DEVICES = ("H100", "H200", "B200", "H20")
FLASHINFER = ("flashinfer_cute", "flashinfer_cuda")
FLOOR_TOKENS = (1, 8, 64, 512, 1024, 4096, 16384)
FLOOR_HIDDEN_SIZES = (4096, 8192, 16384)

# Of the results by device, and the device's name: the Markdown.
Table = Callable[[dict[str, Results], str], str]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table, the first column to the left and the others to the right."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def us(value: float) -> str:
    """Microseconds to three significant digits; a dash for none."""
    if value != value:
        return "-"
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:.0f}"


def ratio(value: float, decimals: int = 2) -> str:
    """A ratio to so many decimals; a dash for none."""
    return "-" if value != value else f"{value:.{decimals}f}"


def environment(all_results: dict[str, Results], device: str) -> str:
    """Where and of what the tables were measured."""
    found = of_device(all_results, device)
    if found.rows.empty:
        return f"{device}: {NOT_MEASURED}; `make bench` measures it."
    rows = pd.concat([found.rows, found.dtypes])

    def listed(column: str, of: pd.DataFrame = rows) -> str:
        values = of[column].dropna().astype(str)
        return ", ".join(sorted(value for value in values.unique() if value))

    used = rows[rows["status"] == "ok"]
    versions = "; ".join(
        f"{name}: {listed('provider_version', part)}"
        for name, part in used.groupby("provider", sort=False)
        if name not in (COPY, EMPTY)
    )
    clocks = "".join(
        f", {what} clock {rows[column].min():.0f} to {rows[column].max():.0f} MHz"
        for what, column in (("SM", "sm_clock_mhz"), ("memory", "mem_clock_mhz"))
        if rows[column].notna().any()
    )
    cuda = f", driver {listed('driver')}, CUDA {listed('cuda')}" if listed("cuda") else ""
    dates = ", ".join(sorted(rows["date"].str[:10].unique()))
    return (
        f"{listed('device')}{cuda}, torch {listed('torch')}{clocks}. "
        f"Commit {listed('commit')}, {dates}. {versions}."
    )


def bounds(all_results: dict[str, Results], device: str) -> str:
    """Every bound, what was reached and whether that meets it."""
    rows = []
    found = of_device(all_results, device)
    for bound in analysis.all_bounds(found.cells, found.dtypes):
        sign = "at most" if bound.at_most else "at least"
        # One more than the bound has: 1.035 misses 1.03.
        reached = ratio(bound.reached, 3) + (f" ({bound.where})" if bound.where else "")
        rows.append([bound.name, f"{sign} {bound.bound:.2f}", reached, bound.verdict])
    return markdown(["bf16, ratio of times", "bound", "reached", ""], rows)


def founding(all_results: dict[str, Results], _device: str) -> str:
    """4096 tokens by hidden size: FlashInfer, ours and the speed-up, one group per device."""
    header, times = ["hidden size"], {}
    for device in FOUNDING_DEVICES:
        found = of_device(all_results, device).times("fused_add", "bf16")
        if found.empty or FOUNDING_NUM_TOKENS not in found.index.get_level_values(0):
            header.append(device)
            continue
        times[device] = found.reindex(columns=[*FLASHINFER, OURS]).loc[FOUNDING_NUM_TOKENS]
        header += [f"{device} FlashInfer, us", f"{device} hp_norm, us", "speed-up"]
    rows = []
    for hidden_size in FOUNDING_HIDDEN_SIZES:
        row = [str(hidden_size)]
        for device in FOUNDING_DEVICES:
            if device not in times:
                row.append(NOT_MEASURED)
                continue
            one = times[device].reindex([hidden_size]).iloc[0]
            best = one[list(FLASHINFER)].min()
            row += [us(best), us(one[OURS]), ratio(best / one[OURS])]
        rows.append(row)
    note = (
        f"{FOUNDING_NUM_TOKENS} tokens, bf16, fused add + RMSNorm; FlashInfer is the faster of its "
        "two backends. A column is filled by running, on that GPU, "
        "`python -m benchmarks.run --founding && make bench-report`."
    )
    return markdown(header, rows) + "\n\n" + note


def _grid(op: str, dtype: str) -> Table:
    def grid(all_results: dict[str, Results], device: str) -> str:
        found = of_device(all_results, device)
        cells, what = found.part(op, dtype), "us (ratio to the best peer)"
        if cells.empty:
            cells, what = found.without_peers(op, dtype), "us, in a process without the peers"
        if cells.empty:
            return f"{device}, {op} {dtype}: {NOT_MEASURED}."
        texts = [
            us(cell.us) + (f" ({ratio(cell.ratio_to_peer)})" if cell.ratio_to_peer > 0 else "")
            for cell in cells.itertuples()
        ]
        table = cells.assign(text=texts).pivot(
            index="hidden_size", columns="num_tokens", values="text"
        )
        rows = [[str(row[0]), *row[1:]] for row in table.fillna("-").itertuples()]
        note = f"{what}, hidden size by number of tokens."
        return markdown(["", *map(str, table.columns)], rows) + "\n\n" + note

    return grid


def peers(all_results: dict[str, Results], device: str) -> str:
    """Geometric mean of each peer's time over ours, by band: above 1 we are faster."""
    times = of_device(all_results, device).times("fused_add", "bf16")
    times = times.reindex(columns=[OURS, *PEERS])
    rows = []
    for peer in PEERS:
        row = [peer]
        for band in BANDS:
            tokens = times.index.get_level_values("num_tokens")
            part = times[(tokens >= band.first) & (tokens <= band.last)]
            both = part[[OURS, peer]].dropna()
            row.append(ratio(stats.geometric_mean(both[peer] / both[OURS])))
        rows.append(row)
    return markdown(["peer, mean ratio to ours", *(band.name for band in BANDS)], rows)


def losses(all_results: dict[str, Results], device: str) -> str:
    """Every cell in which a peer is faster than we are."""
    cells = of_device(all_results, device).cells
    if cells.empty:
        return f"{device}: {NOT_MEASURED}."
    lost = cells[cells["ratio_to_peer"] < 1].sort_values("ratio_to_peer")
    if lost.empty:
        return f"None of the {len(cells)} cells measured on {device}."
    rows = [
        [
            f"{cell.op} {cell.dtype} {cell.num_tokens} x {cell.hidden_size}",
            us(cell.us),
            f"{us(cell.best_peer_us)} ({cell.best_peer})",
            ratio(cell.ratio_to_peer, 3),
            f"{cell.us_spread:.1%}",
        ]
        for cell in lost.itertuples()
    ]
    head = f"{len(lost)} of the {len(cells)} cells measured on {device}."
    header = ["cell", "hp_norm, us", "best peer, us", "ratio", "our spread"]
    return head + "\n\n" + markdown(header, rows)


def floor(all_results: dict[str, Results], device: str) -> str:
    """What bounds the time, the launch and the copy, and how much of it is reached."""
    times = of_device(all_results, device).times("fused_add", "bf16")
    wanted = [OURS, COPY, EMPTY]
    times = times.reindex(columns=wanted)
    rows = []
    for count in FLOOR_TOKENS:
        for hidden_size in FLOOR_HIDDEN_SIZES:
            if (count, hidden_size) not in times.index:
                continue
            ours, copy, empty = times.loc[(count, hidden_size), wanted]
            cell = f"{count} x {hidden_size}"
            rows.append([cell, us(ours), us(empty), us(copy), ratio(copy / ours)])
    if not rows:
        return f"{device}: {NOT_MEASURED}."
    header = ["tokens x hidden size", "hp_norm, us", "empty kernel, us", "copy, us", "of the copy"]
    return markdown(header, rows)


def missing(all_results: dict[str, Results], device: str) -> str:
    """Rows that have no time: how many, where the first is, and why."""
    rows = of_device(all_results, device).rows
    if rows.empty:
        return f"{device}: {NOT_MEASURED}."
    untimed = rows[rows["status"] != "ok"]
    if untimed.empty:
        return f"None: every provider was timed in every cell on {device}."
    lines = []
    for (provider, status, reason), part in untimed.groupby(
        ["provider", "status", "reason"], sort=True
    ):
        first = part.iloc[0]
        cell = f"{first['op']} {first['dtype']} {first['num_tokens']} x {first['hidden_size']}"
        lines.append([provider, status, str(len(part)), cell, reason])
    return markdown(["provider", "status", "rows", "first", "reason"], lines)


def cpu(all_results: dict[str, Results], _device: str) -> str:
    """The CPU operator against vLLM's, Inductor's and torch's own."""
    results = of_device(all_results, "CPU")
    times = results.times("fused_add", "bf16")
    if times.empty:
        return (
            f"CPU: {NOT_MEASURED}; `python -m benchmarks.run --device cpu --threads 1` measures it."
        )
    columns = [OURS, *CPU_PEERS]
    times = times.reindex(columns=columns)
    rows = []
    for (count, hidden_size), row in times.iterrows():
        best = row[list(CPU_PEERS)].min()
        texts = [us(row[name]) for name in columns]
        rows.append([f"{count} x {hidden_size}", *texts, ratio(best / row[OURS])])
    return markdown(["tokens x hidden size, us", *columns, "best peer over ours"], rows)


def _chart(kind: str, title: str) -> Table:
    """An image, by its path from the root of the repository; drawn by `benchmarks.charts`."""

    def chart(all_results: dict[str, Results], device: str) -> str:
        if of_device(all_results, device).part("fused_add", "bf16").empty:
            return f"{device}, chart of the {title}: {NOT_MEASURED}."
        return f"![{device}: {title}]({IMAGES}/bench-{kind}-{device.lower()}.png)"

    return chart


TABLES: dict[str, Table] = {
    "environment": environment,
    "bounds": bounds,
    "founding": founding,
    "grid": _grid("fused_add", "bf16"),
    "grid-fp16": _grid("fused_add", "fp16"),
    "grid-plain": _grid("plain", "bf16"),
    "peers": peers,
    "losses": losses,
    "missing": missing,
    "floor": floor,
    "chart-ratio": _chart("ratio", "time of the best peer over ours"),
    "chart-bandwidth": _chart("bandwidth", "bandwidth against the copy"),
    "cpu": cpu,
}
