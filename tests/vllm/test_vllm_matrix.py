"""What `make test-matrix` runs, without its other versions of vLLM."""

import subprocess
import sys
from pathlib import Path

from matrix import ROOT, TESTS


def test_its_tests_need_no_sources_beside_them():
    """As the matrix runs them: a pytest for which the package is the installed one."""
    pytest = Path(sys.executable).with_name("pytest")
    done = subprocess.run(
        [pytest, "--collect-only", "-q", *TESTS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
