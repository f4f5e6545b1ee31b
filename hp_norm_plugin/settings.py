"""The environment flags of hp_norm_plugin, in one table.

Only flags that are read at run time live here; those of the build (`HP_NORM_CUDA`,
`HP_NORM_CUDA_ARCHS`) belong to setup.py. Reading a flag never raises and never logs: the caller
gets the value to use and, where the variable held something unknown, one sentence that says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Flag:
    """One environment variable: its values, its default, and what an unknown value becomes."""

    name: str
    values: tuple[str, ...]
    default: str
    on_unknown: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    shapes_graph: bool = True  # whether a compiled graph depends on it


@dataclass(frozen=True)
class Reading:
    """A flag's effective value, whether the user set it, and a warning for an unknown value."""

    value: str
    is_set: bool
    warning: str | None = None


# Which vLLM adapter runs: auto takes what the installed vLLM has, 0 is off.
PLUGIN = Flag(
    name="HP_NORM_PLUGIN",
    values=("auto", "ir", "layer", "0"),
    default="auto",
    # Whoever sets the flag to a word we do not know was most likely turning something off or
    # down; vLLM's own norm is the state that cannot surprise anyone.
    on_unknown="0",
    shapes_graph=False,  # the adapter does
    aliases={"1": "auto", "on": "auto", "true": "auto", "off": "0", "false": "0", "no": "0"},
)

# When the normalised value is rounded: once, after the weight, or before it too, as Hugging Face's
# Llama does. auto is what is nearest to a vLLM without the plugin.
ROUNDING = Flag(
    name="HP_NORM_ROUNDING",
    values=("auto", "once", "before_weight"),
    default="auto",
    on_unknown="auto",
)

# Which norms of a compiled graph run on the operator: auto follows the measured rules, fused takes
# only those with a residual, all every norm that the kernel can take.
SCOPE = Flag(
    name="HP_NORM_SCOPE",
    values=("auto", "fused", "all"),
    default="auto",
    on_unknown="auto",
)

# At which GPC of an H100 or H200 the product behind a norm of up to 32 tokens begins: auto times
# the loaded model's own products from all but 0.
FIRST_GPC = Flag(
    name="HP_NORM_FIRST_GPC",
    values=("auto", *map(str, range(8))),
    default="auto",
    on_unknown="auto",
    shapes_graph=False,
)

# Whether kernels may start before the one before has ended (programmatic dependent launch).
PDL = Flag(
    name="HP_NORM_PDL",
    values=("1", "0"),
    default="1",
    on_unknown="1",
    aliases={"on": "1", "true": "1", "off": "0", "false": "0", "no": "0"},
    shapes_graph=False,
)

FLAGS: tuple[Flag, ...] = (PLUGIN, ROUNDING, SCOPE, FIRST_GPC, PDL)

# vLLM's own variables that decide whether it runs the operator, with what they are when unset. What
# they mean is for vLLM to say (`hp_norm_plugin.vllm`): here they are only shown.
VLLM_VARIABLES = {"VLLM_PLUGINS": "all", "VLLM_BATCH_INVARIANT": "0"}


def read_flag(flag: Flag, environ: Mapping[str, str] | None = None) -> Reading:
    """Return the effective value of one flag.

    Parameters
    ----------
    flag
        One of `FLAGS`.
    environ
        Where to look; `os.environ` if None.

    Returns
    -------
    Reading
        `value` is one of `flag.values`. `warning` is None, or one sentence when the variable
        holds a value that is not in the table and `flag.on_unknown` was taken instead.

    """
    raw = (os.environ if environ is None else environ).get(flag.name)
    if raw is None or not raw.strip():
        return Reading(flag.default, is_set=False)
    word = raw.strip().lower()
    word = flag.aliases.get(word, word)
    if word in flag.values:
        return Reading(word, is_set=True)
    known = ", ".join([*flag.values, *flag.aliases])
    return Reading(
        flag.on_unknown,
        is_set=True,
        warning=f"{flag.name}={raw!r} is not one of {known}; using {flag.on_unknown}",
    )


def read_all(environ: Mapping[str, str] | None = None) -> dict[str, Reading]:
    """Return every flag's reading by its name."""
    return {flag.name: read_flag(flag, environ) for flag in FLAGS}


def read_vllm(environ: Mapping[str, str] | None = None) -> dict[str, Reading]:
    """Return vLLM's own variables by name, as they are set."""
    environ = os.environ if environ is None else environ
    return {
        name: Reading(environ.get(name, unset), is_set=name in environ)
        for name, unset in VLLM_VARIABLES.items()
    }
