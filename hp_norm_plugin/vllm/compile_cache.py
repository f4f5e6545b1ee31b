"""Our part of vLLM's compile-cache key.

vLLM loads a compiled graph before it traces anything, by a key made of its configuration and of
the environment variables that it knows. A graph with our nodes must not be taken by a process
that runs without them, nor one compiled against another build of the library. A provider of
vLLM's IR is in the key of the models that may run on it, with its `uuid`; what comes into a graph
by a layer is not, so there the state becomes a variable that vLLM knows. Without such layers
whatever has none of our nodes, off and models that stand aside, has the key that it would have
without the plugin.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from hp_norm_plugin import settings

STATE = "HP_NORM_STATE"


def source_digest() -> str:
    """Return a short digest of the Python files that decide what goes into a graph."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    above = [
        package.parent / f"{name}.py"
        for name in ("__init__", "ops", "dispatch", "library", "checks", "settings")
    ]
    for path in sorted([*package.glob("*.py"), *above]):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def graph_state() -> str:
    """Return all of ours that shapes a graph, in one string: two digests, and the flags.

    Raises
    ------
    ImportError, LibraryError
        As `hp_norm_plugin.library.load_libraries` does.

    """
    from hp_norm_plugin import library

    flags = [settings.read_flag(flag).value for flag in settings.FLAGS if flag.shapes_graph]
    return "-".join([library.library_status().digest, source_digest(), *flags])


def register_in_key(state: str) -> None:
    """Add `state` to the variables that vLLM hashes, as `HP_NORM_STATE`, which nobody sets.

    Parameters
    ----------
    state
        The adapter, the digests of the library and the sources, and the flags.

    Raises
    ------
    AttributeError
        This vLLM has no such table; the caller must then leave the plugin off, because a toggle
        could run the other setting's graph.

    """
    from vllm import envs

    envs.environment_variables[STATE] = lambda: state


def remove_from_key() -> None:
    """Take back what `register_in_key` did, if anything."""
    from vllm import envs

    getattr(envs, "environment_variables", {}).pop(STATE, None)
