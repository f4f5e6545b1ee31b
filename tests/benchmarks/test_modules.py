import re
from pathlib import Path

import benchmarks

COMMAND = 'if __name__ == "__main__":'


def test_every_module_is_listed_with_its_job():
    folder = Path(benchmarks.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    sources = {path.name for pattern in ("*.cu", "*.cuh") for path in folder.glob(pattern)}
    listed = set(re.findall(r"``([\w.]+)``", benchmarks.__doc__)) - {"python"}
    assert listed == modules | sources


def test_every_command_is_listed_as_one():
    commands = benchmarks.__doc__.split("How a cell is measured")[0]
    folder = Path(benchmarks.__file__).parent
    started = {path.stem for path in folder.glob("*.py") if COMMAND in path.read_text()}
    assert set(re.findall(r"``(\w+)``", commands)) == started
