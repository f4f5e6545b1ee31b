"""Models to serve: a checkpoint by path or hub name, or an architecture with random weights.

Architectures are the config files in examples/models. Nothing is downloaded for them: the
tokenizer is made here, and the weights are vLLM's dummy ones, filled by the worker probe (or, for
a model small enough to write, a checkpoint on disk).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = Path(__file__).resolve().parent.parent / "models"

# A checkpoint is written below this hidden size: there the file is small, and vLLM's CPU backend
# packs its weights while loading, so they cannot be filled afterwards.
WRITE_BELOW_HIDDEN_SIZE = 2048


@dataclass(frozen=True)
class Model:
    """What to hand to vLLM."""

    name: str
    path: str
    load_format: str  # "auto" or "dummy"
    num_layers: int | None

    @property
    def random_weights(self) -> bool:
        """Whether the weights are filled after loading."""
        return self.load_format == "dummy"


def architecture_names() -> list[str]:
    """Return the names of the config files in examples/models."""
    return sorted(path.stem for path in ARCHITECTURES.glob("*.json"))


def resolve(name: str) -> Model:
    """Turn `--model` into something that vLLM loads.

    Parameters
    ----------
    name
        One of `architecture_names()`, a directory with a checkpoint, or a hub name (org/name).

    Raises
    ------
    ValueError
        None of the three.

    """
    if name in architecture_names():
        return _prepare(name)
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"--model {name}: the directory has no config.json")
        return Model(path.absolute().name, str(path), "auto", None)  # of ".", too
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return Model(name, name, "auto", None)
    known = ", ".join(architecture_names())
    raise ValueError(
        f"--model {name}: neither one of {known}, nor a directory with a checkpoint, "
        "nor a hub name such as meta-llama/Llama-3.1-8B"
    )


def cache_dir() -> Path:
    """Where prepared models live: `HP_NORM_EXAMPLES_CACHE`, or the user's cache directory."""
    base = os.environ.get("HP_NORM_EXAMPLES_CACHE")
    if base:
        return Path(base)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "hp_norm_plugin" / "models"


def _prepare(name: str) -> Model:
    source = ARCHITECTURES / f"{name}.json"
    config = json.loads(source.read_text())
    target = cache_dir() / name
    write_weights = config["hidden_size"] < WRITE_BELOW_HIDDEN_SIZE
    if not _is_current(target, source, write_weights):
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            rule = f"{target} cannot be written to ({error.strerror})"
            raise ValueError(f"HP_NORM_EXAMPLES_CACHE: {rule}") from None
        write_tokenizer(target, config["vocab_size"], config["eos_token_id"])
        if write_weights:
            write_checkpoint(target, source)
        # The last, in place of transformers' version of it: with it all is taken for complete.
        shutil.copyfile(source, target / "config.json")
    load_format = "auto" if write_weights else "dummy"
    return Model(name, str(target), load_format, config["num_hidden_layers"])


def _is_current(target: Path, source: Path, with_weights: bool) -> bool:
    config = target / "config.json"
    wanted = [target / "tokenizer.json", *([target / "model.safetensors"] if with_weights else [])]
    return (
        config.is_file()
        and json.loads(config.read_text()) == json.loads(source.read_text())
        and all(path.is_file() for path in wanted)
    )


def write_tokenizer(target: Path, vocab_size: int, eos_token_id: int) -> None:
    """Write a tokenizer whose token i is the word "wi": any ids survive decoding and encoding.

    A benchmark client that draws random token ids needs just that, and no vocabulary of anyone's.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    vocab = {f"w{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": f"w{eos_token_id}",
        "unk_token": "w0",
        "model_max_length": 1 << 20,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def write_checkpoint(target: Path, source: Path, seed: int = 0) -> None:
    """Write random weights of a trained model's size for the config file `source`.

    Norm weights are spread around one, so that a norm that dropped its weight would show.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(source)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.1)
    model.save_pretrained(target)
