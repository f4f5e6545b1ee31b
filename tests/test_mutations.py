"""The table of mutations fits the sources and the tests, and the tool tells red from green."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import mutations
from gpu.mutations import MUTATIONS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_edit_has_one_place(mutation):
    for file, find, replacement in mutation.edits:
        assert (ROOT / "csrc" / file).read_text().count(find) == 1, (file, find)
        assert replacement != find
    assert len({file.startswith("cuda/") for file, _, _ in mutation.edits}) == 1


def test_names_differ_and_every_test_exists():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    assert mutations.UNMUTATED not in {mutation.name for mutation in MUTATIONS}
    tests = sorted({test for mutation in MUTATIONS for test in mutation.tests})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *tests]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert sorted(line for line in result.stdout.splitlines() if "::" in line) == tests


@pytest.mark.parametrize(
    ("code", "output", "state"),
    [
        (0, "loaded d\n3 passed in 1s", "green"),
        (0, "loaded d\n3 passed, 1 skipped in 1s", "broken"),
        (1, "loaded d\nFAILED tests/a.py::test[x y] - AssertionError: z", "red"),
        (1, "loaded other\nFAILED tests/a.py::test", "broken"),
        (1, "loaded d\nTraceback", "broken"),
        (4, "loaded d\nERROR: not found: tests/a.py::test", "broken"),
        (-6, "loaded d\n", "red"),
        (-6, "", "broken"),
        (None, "loaded d\n", "red"),
    ],
)
def test_only_a_test_that_ran_is_red_or_green(code, output, state):
    outcome = mutations.judge(code, output, "loaded d")
    assert outcome.state == state
    if "FAILED" in output and state == "red":
        assert outcome.detail == "tests/a.py::test[x y]"


def test_a_mutation_is_seen_and_an_unmutated_library_is_told(tmp_path, capsys):
    seen, unseen = "cpu-no-weight-offset", "cpu-no-weight"
    assert mutations.main(["build", str(tmp_path), seen]) == 0
    shutil.copytree(tmp_path / mutations.UNMUTATED, tmp_path / unseen)
    assert mutations.main(["run", str(tmp_path), seen, unseen]) == 1
    said = capsys.readouterr().out
    assert f"{seen}: red, as it must" in said and f"{unseen}: STILL GREEN" in said
