"""``make bench-report``: rebuild the tables and charts of README.md and docs/ from the CSVs.

A table stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``; a name may carry a
device, as in ``bench:grid@H100``, and means the H200 without one.  ``--check`` writes nothing and
fails where a document says something else than the CSVs.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import analysis, records, results, terminal
from benchmarks.environment import ROOT
from benchmarks.tables import IMAGES, TABLES

_BLOCK = re.compile(r"<!-- bench:(?P<name>\S+) -->\n(?P<body>.*?)<!-- /bench:(?P=name) -->", re.S)
_OPENING = re.compile(r"<!-- bench:(\S+) -->")


class DocumentError(ValueError):
    """A document has a marker that cannot be filled."""


def documents(root: Path) -> list[Path]:
    """The Markdown files that may hold tables."""
    return [path for path in (root / "README.md", *sorted((root / "docs").rglob("*.md")))
            if path.exists()]  # fmt: skip


def render(text: str, found: dict[str, results.Results], name: str = "README.md") -> str:
    """Fill every block of a document; ``name`` is its path from the root of the repository.

    Raises
    ------
    DocumentError
        For a marker that is not closed, or a table that does not exist.

    """
    images = os.path.relpath(IMAGES, Path(name).parent)
    closed = [match["name"] for match in _BLOCK.finditer(text)]
    opened = _OPENING.findall(text)
    if closed != opened:
        unclosed = next(marker for marker in opened if marker not in closed)
        raise DocumentError(f"{name}: <!-- bench:{unclosed} --> is not closed")

    def fill(match: re.Match) -> str:
        table, _, device = match["name"].partition("@")
        if table not in TABLES:
            raise DocumentError(f"{name}: no table {table!r}, known are {', '.join(TABLES)}")
        body = TABLES[table](found, device or results.DEFAULT_DEVICE)
        body = body.replace(f"({IMAGES}/", f"({images}/")
        return f"<!-- bench:{match['name']} -->\n{body}\n<!-- /bench:{match['name']} -->"

    return _BLOCK.sub(fill, text)


def rewritten(root: Path, fill: Callable[[str, str], str]) -> dict[Path, str]:
    """The documents that ``fill``, given text and path from the root, changes, and their text."""
    changed = {}
    for path in documents(root):
        text = path.read_text()
        wanted = fill(text, str(path.relative_to(root)))
        if wanted != text:
            changed[path] = wanted
    return changed


def stale(root: Path, found: dict[str, results.Results]) -> dict[Path, str]:
    """The documents that say something else than the results, with what they should say."""
    return rewritten(root, lambda text, name: render(text, found, name))


def draw(found: dict[str, results.Results], folder: Path) -> list[Path]:
    """Draw the charts of every GPU that has results."""
    from benchmarks import charts

    drawn = []
    for device, one in found.items():
        if device == "CPU":
            continue
        for kind, chart in (("ratio", charts.heat_map), ("bandwidth", charts.bandwidth)):
            path = folder / f"bench-{kind}-{device.lower()}.png"
            if chart(one, path):
                drawn.append(path)
    return drawn


def print_bounds(console: Console, found: dict[str, results.Results]) -> None:
    """Print every bound of every GPU, met or not."""
    for device, one in found.items():
        if device == "CPU":
            continue
        table = Table(title=f"bounds on {device}")
        for column in ("", "bound", "reached", "where", ""):
            table.add_column(column)
        for bound in analysis.all_bounds(one.cells, one.dtypes):
            style = "green" if bound.is_met else "red"
            sign = "<=" if bound.at_most else ">="
            table.add_row(
                bound.name,
                f"{sign} {bound.bound:.2f}",
                f"{bound.reached:.3f}",
                bound.where,
                f"[{style}]{bound.verdict}[/]",
            )
        console.print(table)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Entry point; 1 when ``--check`` finds a stale document, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("csv", nargs="*", type=Path, help="default: all of benchmarks/results")
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    args = parser.parse_args(arguments)
    console = terminal.console()
    try:
        paths = args.csv or sorted(results.RESULTS.glob("*.csv"))
        found = results.load(paths, [] if args.csv else sorted(results.DTYPES.glob("*.csv")))
        left_out = len(records.read(paths)) - sum(len(one.rows) for one in found.values())
        changed = stale(root, found)
    except (DocumentError, ValueError, OSError) as error:
        console.print(str(error), style="red", markup=False)
        return 2
    if not found:
        console.print(f"no results in {results.RESULTS}: `make bench` writes them", markup=False)
    if left_out:
        reasons = "of an older commit, of another machine of the name, or of a forced protocol"
        console.print(f"{left_out} rows left out: {reasons}")
    print_bounds(console, found)
    for path, text in changed.items():
        console.print(f"{'stale' if args.check else 'rewritten'}: {path.relative_to(root)}")
        if not args.check:
            path.write_text(text)
    if not args.check:
        for path in draw(found, root / IMAGES):
            console.print(f"drawn: {path.relative_to(root)}")
    return 1 if args.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
