"""The launch rules of csrc/cuda/launch_rules.h, seen from Python: which serves a size, and why.

Nothing here needs a GPU but `forced`, which makes this thread's CUDA calls use one configuration.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass

import torch

from hp_norm_plugin import MAX_HIDDEN_SIZE, library
from hp_norm_plugin.gpu import FIRST_WITH_CLUSTERS

OPTIONS = {
    "trigger_early": 1,
    "prefetch_residual": 2,
    "prefetch_ahead": 4,
    "narrow": 8,
    "reread": 16,
    "staged": 32,
    "trigger_at_end": 64,
    "cached": 256,
    "keep_output": 512,
    "fill_gpu": 1024,
    "pair_ctas": 2048,
    "lean": 4096,
    "read_once": 8192,
    "keep_ahead": 16384,
    "two_per_sm": 32768,
}
# Options that pick the kernel; the others change how one is launched.
PATHS = ("narrow", "reread", "staged", "cached", "keep_output", "lean", "read_once")
NARROW_VECS = 2
OPS = ("any", "add", "plain")


class _Config(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("vec_bytes", "vecs_per_thread", "rows_per_cta", "ctas_per_row", "options")
    ]


class _Rule(ctypes.Structure):
    _fields_ = [
        ("min_sm", ctypes.c_int32),
        ("max_sm", ctypes.c_int32),
        ("op", ctypes.c_int32),
        ("max_row_bytes", ctypes.c_int64),
        ("max_tokens", ctypes.c_int64),
        ("config", _Config),
        ("evidence", ctypes.c_char_p),
    ]


class _Choice(ctypes.Structure):
    _fields_ = [("rule", ctypes.c_int32), ("config", _Config)]


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("vecs_per_row", "threads_per_row", "threads_per_cta", "chunks_per_row")
    ]


@dataclass(frozen=True)
class Config:
    """A launch configuration: how a row is laid over threads. See csrc/cuda/launch_rules.h."""

    vec_bytes: int
    vecs_per_thread: int
    rows_per_cta: int = 1
    ctas_per_row: int = 1
    options: int = 0

    def native(self) -> _Config:
        """The C structure."""
        return _Config(*astuple(self))

    def is_valid(self, row_bytes: int) -> bool:
        """Whether a kernel exists that holds rows of `row_bytes` this way."""
        return bool(_library().hp_norm_is_valid(ctypes.byref(self.native()), row_bytes))

    def option_names(self) -> list[str]:
        """The options that are set, by name."""
        return [name for name, bit in OPTIONS.items() if self.options & bit]


@dataclass(frozen=True)
class Rule:
    """The rule that serves a call, and the launch that follows from it."""

    index: int  # in the table; -1: no table rule, a narrow or re-reading kernel
    sm: int
    config: Config
    threads_per_row: int
    threads_per_cta: int
    num_ctas: int  # those with a row
    evidence: str

    def describe(self) -> str:
        """One line, for tables and logs."""
        c = self.config
        name = f"rule {self.index}" if self.index >= 0 else "fallback"
        parts = [
            f"{name}: {c.vec_bytes}-byte vectors",
            f"{c.vecs_per_thread} a thread",
            f"{self.threads_per_row} threads a row",
        ]
        if c.rows_per_cta > 1:
            parts.append(f"{c.rows_per_cta} rows a CTA")
        if c.ctas_per_row > 1:
            parts.append(f"cluster of {c.ctas_per_row}")
        return ", ".join([*parts, *c.option_names()])


@functools.cache
def _library() -> ctypes.CDLL:
    native = library.native_library(library.CPU_LIBRARY)
    native.hp_norm_rule.restype = ctypes.c_char_p
    native.hp_norm_choose_launch.argtypes = [
        ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32,
        ctypes.c_void_p,
    ]  # fmt: skip
    native.hp_norm_is_valid.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    native.hp_norm_launch_shape.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    return native


@dataclass(frozen=True)
class TableRule:
    """One line of the table: what it applies to, the configuration, and where that comes from."""

    min_sm: int
    max_sm: int
    op: str  # any, add or plain
    max_row_bytes: int
    max_tokens: int
    config: Config
    evidence: str


@functools.cache
def table() -> tuple[TableRule, ...]:
    """Every rule in match order."""
    rules = []
    for index in range(_library().hp_norm_num_rules()):
        rule = _Rule()
        evidence = _library().hp_norm_rule(index, ctypes.byref(rule)).decode()
        limits = rule.min_sm, rule.max_sm, OPS[rule.op], rule.max_row_bytes, rule.max_tokens
        rules.append(TableRule(*limits, _config_of(rule.config), evidence))
    return tuple(rules)


def _config_of(native: _Config) -> Config:
    return Config(*(getattr(native, name) for name, _ in _Config._fields_))


def sm_of(device: torch.device | str | int) -> int:
    """Return 10 x major + minor of a CUDA device, or of a name such as "sm_90".

    Raises
    ------
    ValueError
        For another device or name.
    RuntimeError
        Torch's, for a CUDA device that is not there.

    """
    if isinstance(device, str) and (named := re.fullmatch(r"sm_(\d+)", device)):
        return int(named[1])
    if str(device).startswith("sm_") or torch.device(device).type != "cuda":
        raise ValueError(f"explain: device: must be a CUDA device or such as sm_90, got {device}")
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def explain(
    num_tokens: int,
    hidden_size: int,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str | int = "cuda",
    *,
    add: bool = True,
) -> Rule:
    """The rule that a call with aligned rows takes.

    Calls without a weight, or that round before it, take a narrow kernel instead.

    Parameters
    ----------
    num_tokens, hidden_size : int
        Rows, and elements a row.
    dtype : torch.dtype
        Of x: bfloat16, float16 or float32.
    device : torch.device, str or int
        A CUDA device, or an architecture such as "sm_90", for which no GPU is needed.
    add : bool
        Whether the call adds a residual.

    Returns
    -------
    Rule
        The rule, the launch that follows from it, and where the rule comes from.

    Raises
    ------
    ValueError
        For sizes that no call has, and as `sm_of`.

    """
    if num_tokens < 0:
        raise ValueError(f"explain: num_tokens: must be at least 0, got {num_tokens}")
    if not 1 <= hidden_size <= MAX_HIDDEN_SIZE:
        rule = f"must be from 1 to {MAX_HIDDEN_SIZE}"
        raise ValueError(f"explain: hidden_size: {rule}, got {hidden_size}")
    sm = sm_of(device)
    row_bytes = hidden_size * dtype.itemsize
    choice = _Choice()
    access_bytes = min(32, row_bytes & -row_bytes)
    op = OPS.index("add" if add else "plain")
    _library().hp_norm_choose_launch(
        sm, op, row_bytes, num_tokens, access_bytes, ctypes.byref(choice)
    )
    index, config = choice.rule, _config_of(choice.config)
    evidence = "no rule: accesses below 16 bytes, or a row too long for a CTA"
    if index >= 0:
        evidence = table()[index].evidence
    shape = _Shape()
    _library().hp_norm_launch_shape(ctypes.byref(config.native()), row_bytes, ctypes.byref(shape))
    num_ctas = -(-num_tokens // config.rows_per_cta) * config.ctas_per_row
    return Rule(index, sm, config, shape.threads_per_row, shape.threads_per_cta, num_ctas, evidence)


def candidates(hidden_size: int, dtype: torch.dtype, sm: int) -> list[Config]:
    """Every kernel that can hold such rows, as a configuration without options of a launch."""
    row_bytes = hidden_size * dtype.itemsize
    splits = (1, 2, 4, 8) if sm >= FIRST_WITH_CLUSTERS else (1,)
    found = [
        Config(vec_bytes, vecs, rows, ctas)
        for vec_bytes in (16, 32)
        for vecs in (1, 2, 4)
        for ctas in splits
        for rows in ((1, 2, 4, 8) if ctas == 1 else (1,))
        if row_bytes % vec_bytes == 0
    ]
    found += [
        Config(16, NARROW_VECS, rows, ctas, OPTIONS["narrow"])
        for ctas in splits
        for rows in ((1, 2) if ctas == 1 else (1,))
    ]
    if row_bytes % 16 == 0:
        keep = OPTIONS["keep_output"]
        found += [Config(16, vecs, options=OPTIONS["staged"]) for vecs in (4, 8)]
        found += [Config(16, vecs, options=OPTIONS["cached"]) for vecs in (2, 4)]
        found.append(Config(16, 4, options=OPTIONS["staged"] | keep))
        found.append(Config(16, 8, options=OPTIONS["staged"] | OPTIONS["read_once"]))
        found += [
            Config(16, vecs, 1, ctas, options)
            for options in (keep, keep | OPTIONS["lean"])
            for vecs in (2, 4)
            for ctas in splits
        ]
    found.append(Config(16, 1, options=OPTIONS["reread"]))
    return [config for config in found if config.is_valid(row_bytes)]


@contextlib.contextmanager
def forced(config: Config) -> Iterator[None]:
    """Within it, this thread's CUDA calls of the operators use `config` instead of the rules.

    A call whose rows it cannot take raises RuntimeError. For tests and tuning.
    """
    native = library.native_library(library.CUDA_LIBRARY)
    native.hp_norm_force_config(ctypes.byref(config.native()))
    try:
        yield
    finally:
        native.hp_norm_force_config(None)


def limit_dependent_launch(max_tokens: int) -> None:
    """Launch this process's CUDA calls of more tokens without programmatic dependent launch.

    For tests and measurements: a dependent launch hides the start of a kernel behind the end of
    the one before, and benchmarks.context shows what that is worth. Users have `HP_NORM_PDL=0`.
    What a CUDA graph has captured stays as it is.
    """
    native = library.native_library(library.CUDA_LIBRARY)
    native.hp_norm_limit_dependent_launch(ctypes.c_int64(max_tokens))
