"""The models of examples/models, and a checkpoint: what vLLM is handed."""

import json
import re

import pytest
from serving import models


def test_architectures_are_complete():
    assert {"tiny-llama", "Llama-3.2-1B", "Llama-3.1-8B", "Qwen3-8B", "Gemma-3-4B-text"} <= set(
        models.architecture_names()
    )
    for name in models.architecture_names():
        config = json.loads((models.ARCHITECTURES / f"{name}.json").read_text())
        assert config["architectures"] and config["rms_norm_eps"] > 0
        assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


def test_directory_without_a_config(tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        models.resolve(str(tmp_path))


def test_a_directory_has_a_name(tmp_path, monkeypatch):
    """Above a table, and where it is given as the one that the user is in."""
    (tmp_path / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    assert models.resolve(".") == models.Model(tmp_path.name, ".", "auto", None)


def test_local_tokenizer_keeps_any_ids(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    models.write_tokenizer(tmp_path, 300, 2)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = [299, 0, 2, 17, 17]
    assert tokenizer.encode(tokenizer.decode(ids)).ids == ids


def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setenv("HP_NORM_EXAMPLES_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    where = re.escape(str(tmp_path / "file" / "tiny-llama"))
    words = rf"^HP_NORM_EXAMPLES_CACHE: {where} cannot be written to \(Not a directory\)$"
    with pytest.raises(ValueError, match=words):
        models.resolve("tiny-llama")


def test_a_model_that_was_not_written_to_its_end_is_written_again(tmp_path, monkeypatch):
    """Also where an older one of its name is in its place, whose weights are not its own."""
    monkeypatch.setenv("HP_NORM_EXAMPLES_CACHE", str(tmp_path))
    target = tmp_path / "tiny-llama"
    target.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (target / name).write_text("{}")
    written = []

    def write(target, source):
        written.append(target)
        if len(written) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(models, "write_tokenizer", lambda *_: None)
    monkeypatch.setattr(models, "write_checkpoint", write)
    with pytest.raises(KeyboardInterrupt):
        models.resolve("tiny-llama")
    for _ in range(2):
        assert models.resolve("tiny-llama").path == str(target)
    assert len(written) == 2, "again, and once"
