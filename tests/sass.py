"""Reads the machine code of the CUDA library: registers, spills, access widths, instruction counts.

`python -m tests.sass` records them in tests/sass_facts.json; tests/test_sass.py compares with it.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from hp_norm_plugin import library

FACTS = Path(__file__).with_name("sass_facts.json")
KERNEL = re.compile(r"Function : \S*?(rms_norm_(?:reread_)?kernel)I(\S+?)EvNS_10NormParamsE")
BRANCH = re.compile(r"/\*([0-9a-f]+)\*/.*\bBRA\b.*?0x([0-9a-f]+)")
INSTRUCTION_BYTES = 16
GLOBAL = re.compile(r"\b(LDG|STG|LDGSTS)\.E(?:\.[A-Z0-9]+)*")  # LDGSTS: cp.async
# Of RowPath, in its order.
PATHS = (
    "wide", "rows", "cached", "kept", "narrow", "staged", "staged kept", "kept lean", "staged once"
)  # fmt: skip
DTYPES = {"f": "float32", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}


@dataclass
class Kernel:
    """What the machine code of one instantiation on one architecture says of itself."""

    name: str
    registers: int = 0
    stack: int = 0
    instructions: int = 0
    loop: int = 0  # instructions of the longest loop
    local_accesses: int = 0  # spills
    divergence: int = 0  # instructions for a warp that may not be whole
    gpu_fences: int = 0  # that wait for all of the GPU's memory
    widths: Counter = field(default_factory=Counter)  # of global accesses, by "LDG 128"

    def facts(self) -> dict:
        """What is recorded, and of loops and spills where there are any.

        A row's elements are in registers and the code is straight, so the whole kernel is what a
        row runs. The re-reading kernel has loops over them; others' loops are waits of a cluster.
        """
        loop = {"loop": self.loop} if "reread" in self.name else {}
        spills = {"spills": self.local_accesses} if self.local_accesses else {}
        return {"registers": self.registers, "instructions": self.instructions, **loop, **spills,
                "widths": dict(sorted(self.widths.items()))}  # fmt: skip


def drift(kernel: Kernel, recorded: dict) -> list[str]:
    """What got worse since the facts were recorded: 5 % more instructions are none of it."""
    now = {"loop": 0, "spills": 0, **kernel.facts()}
    before = {"loop": 0, "spills": 0, **recorded}
    allowed = {"registers": 1.0, "spills": 1.0, "instructions": 1.05, "loop": 1.05}
    found = [what for what, factor in allowed.items() if now[what] > factor * before[what]]
    found += ["widths"] if now["widths"] != before["widths"] else []
    return [f"{kernel.name}: {what} {now[what]}, recorded {before[what]}" for what in found]


@cache
def cuobjdump() -> str | None:
    """The disassembler's driver of the CUDA toolkit, or the one in Triton's wheel."""
    if found := shutil.which("cuobjdump"):
        return found
    if spec := importlib.util.find_spec("triton"):
        bundled = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if bundled.is_file():
            return str(bundled)
    return None


def _dump(*options: str) -> str:
    command = [cuobjdump(), *options, str(library.CUDA_LIBRARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def readable(kind: str, arguments: str) -> str:
    """ "rms_norm_kernel<bfloat16, float32, 8, 2, add, cluster>" from a mangled template list."""
    types, rest = [], arguments
    while len(types) < 2:
        if rest.startswith("S"):  # a substitution: the type before
            types.append(types[-1])
            rest = rest.split("_", 1)[1]
            continue
        key = next(k for k in DTYPES if rest.startswith(k))
        types.append(DTYPES[key])
        rest = rest.removeprefix(key)
    numbers = re.findall(r"Li(\d+)E", rest)
    flags = [flag == "1" for flag in re.findall(r"Lb([01])E", rest + "E")]
    names = ["add" if flags[0] else "plain"]
    names += ["cluster"] if flags[1:] == [True] else []
    if path := re.search(r"RowPathE(\d)E", rest):
        names += [PATHS[int(path[1])]] if path[1] != "0" else []
    return f"{kind}<{', '.join([*types, *numbers, *names])}>"


@cache
def kernels(arch: str) -> dict[str, Kernel]:
    """Every kernel compiled for sm_`arch`, by readable name."""
    found: dict[str, Kernel] = {}
    current = Kernel("")
    for line in _dump("-sass", "-arch", f"sm_{arch}").splitlines():
        if match := KERNEL.search(line):
            current = found.setdefault(readable(*match.groups()), Kernel(readable(*match.groups())))
        elif re.match(r"\s+/\*[0-9a-f]{4,5}\*/", line):
            current.instructions += "NOP" not in line
            current.local_accesses += bool(re.search(r"\b(LDL|STL)\b", line))
            current.divergence += bool(re.search(r"BRA\.DIV|WARPSYNC\.COLLECTIVE", line))
            current.gpu_fences += bool(re.search(r"MEMBAR\.[A-Z]+\.(GPU|SYS)", line))
            if branch := BRANCH.search(line):
                here, target = (int(address, 16) for address in branch.groups())
                back = (here - target) // INSTRUCTION_BYTES + 1 if target < here else 0
                current.loop = max(current.loop, back)
            if access := GLOBAL.search(line):
                text = access.group(0)
                width = next((w for w in ("256", "128", "64", "U16") if w in text), "32")
                current.widths[f"{access.group(1)} {width}"] += 1
            elif re.search(r"\bLD\.E", line):
                current.widths["LD 128" if ".128" in line else "LD narrow"] += 1
    name = ""
    for line in _dump("--dump-resource-usage", "-arch", f"sm_{arch}").splitlines():
        if match := re.search(r"Function \S*?(rms_norm_(?:reread_)?kernel)I(\S+?)EvNS_", line):
            name = readable(*match.groups())
        elif name and (match := re.search(r"REG:(\d+) STACK:(\d+)", line)):
            found[name].registers, found[name].stack = int(match[1]), int(match[2])
            name = ""
    return found


def record() -> None:
    """Write the facts of this build."""
    archs = [arch for arch in library.library_status().cuda_archs if arch.isdigit()]
    facts = {
        arch: {name: kernel.facts() for name, kernel in sorted(kernels(arch).items())}
        for arch in archs
    }
    lines = []
    for arch, by_name in facts.items():
        rows = ",\n".join(f"  {json.dumps(n)}: {json.dumps(f)}" for n, f in by_name.items())
        lines.append(f"{json.dumps(arch)}: {{\n{rows}\n}}")
    FACTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{FACTS.name}: {sum(map(len, facts.values()))} kernels of sm_{', sm_'.join(archs)}")


if __name__ == "__main__":
    record()
