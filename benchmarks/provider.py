"""What a provider is: a named, versioned implementation that can be bound to a case.

Binding returns ``call(x, residual, weight)``.  A call that works in place (FlashInfer, vLLM and
our ``fused_add_rms_norm_``) returns None, a functional one returns ``(out, residual_out)``, or
``out`` alone for the plain norm, whose residual is None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmarks.shapes import Case

EPS = 1e-6

Outputs = Tensor | tuple[Tensor, ...] | None
Call = Callable[[Tensor, Tensor | None, Tensor], Outputs]


class UnavailableError(RuntimeError):
    """A provider cannot be used here; the message is the one-line reason."""


@dataclass(frozen=True)
class Provider:
    """A named, versioned implementation of the operators.

    ``compiles_per`` says what one compilation serves: ``"install"`` (nothing is compiled at run
    time), ``"process"``, ``"hidden_size"`` or ``"shape"``.  ``disk_cache`` is true when what one
    process compiled is loaded by the next.  ``is_norm`` is false for the yardsticks (the copy,
    the empty kernel), whose results are not compared with anything.
    """

    name: str
    version: str
    bind: Callable[[Case], Call]
    compiles_per: str = "install"
    disk_cache: bool = False
    is_norm: bool = True


def one_line(text: str, limit: int = 200) -> str:
    """The text with its white space collapsed, cut to a length that fits a table."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
