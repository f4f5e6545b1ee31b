"""Whether a model and its requests fit into memory, as examples/serve_llama.py reckons."""

import json

import pytest

pytest.importorskip("rich", reason="examples need rich")
import serve_llama  # noqa: E402
from serving import memory, models  # noqa: E402


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Llama-3.1-8B", 8_030_261_248),
        ("Llama-3.2-1B", 1_235_814_400),
        ("Qwen3-8B", 8_190_735_360),
        ("Gemma-3-4B-text", 3_880_263_168),
    ],
)
def test_the_bytes_of_weights(name, parameters):
    """The parameters that transformers counts, the norms' among them."""
    config = json.loads((models.ARCHITECTURES / f"{name}.json").read_text())
    assert memory.weight_bytes(config) == pytest.approx(2 * parameters, rel=1e-3)
    assert 2**28 < memory.available_bytes() < 2**50


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ("offline", "2 engines must fit into the 20.0 GiB of memory available, got 29.9 GiB"),
        ("server", "2 engines must fit into the 20.0 GiB of memory available, got 29.9 GiB"),
        ("tokens", "3 engines must fit into the 20.0 GiB of memory available, got 44.9 GiB"),
        ("offline --engines 2 --variant a A=1", "5 engines must fit into the 20.0 GiB"),
        ("swap", None),
        ("cache", None),
        ("offline --model org/Llama-3.1-8B", None),
    ],
)
def test_what_does_not_fit_into_memory_is_not_started(words, fits, monkeypatch, capsys):
    class Resolved(Exception):
        pass

    def resolve(name):
        raise Resolved

    monkeypatch.setattr(models, "resolve", resolve)
    monkeypatch.setattr(memory, "available_bytes", lambda: 20 * 2**30)
    monkeypatch.setattr(serve_llama, "has_gpu", lambda: False)
    arguments = ["--model", "Llama-3.1-8B", *words.split()]
    if fits is None:
        with pytest.raises(Resolved):
            serve_llama.main(arguments)
    else:
        assert serve_llama.main(arguments) == 2
    seen = capsys.readouterr()
    assert seen.out.startswith("no GPU: comparing on the CPU")
    if fits:
        (line,) = seen.err.splitlines()
        assert line.startswith(f"--model Llama-3.1-8B: the weights of {fits}")
    monkeypatch.setattr(serve_llama, "has_gpu", lambda: True)
    with pytest.raises(Resolved):
        serve_llama.main(arguments)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("gpu", "words", "got"),
    [
        # 128 requests of 257 tokens: 17 blocks of 16 each and one more, of 32 layers with 8 heads
        # of 128 for keys and values.
        (True, "--kv-cache-gib 4", "128 requests of 257 tokens, 4.252 GiB of Llama-3.1-8B, got 4"),
        (True, "swap --kv-cache-gib 4.25", "128 requests of 257 tokens, 4.252 GiB"),
        (True, "swap --kv-cache-gib 4.26", None),
        (True, "cache --kv-cache-gib 4", None),
        (True, "server --kv-cache-gib 4", "128 requests of 257 tokens, 4.252 GiB"),
        (True, "--kv-cache-gib 4 --batch-sizes 1 32", None),
        (True, "--kv-cache-gib 4 --model org/Llama-3.1-8B", None),
        (True, "--kv-cache-gib 0.01 --batch-sizes 1 --prefill-batch 0",
         "1 request of 257 tokens, 0.036 GiB"),
        (True, "--kv-cache-gib 1 --batch-sizes 1", "8 requests of 1025 tokens, 1.018 GiB"),
        (True, "server --kv-cache-gib 1 --batch-sizes 1", None),
        (False, "--model tiny-llama --kv-cache-gib 0.001", "4 requests of 33 tokens, 0.002 GiB"),
        (False, "--model tiny-llama", None),
    ],
)  # fmt: skip
def test_the_requests_of_a_batch_fit_into_the_cache(gpu, words, got, monkeypatch):
    """One that waits for a block decodes alone when the others are done."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**50)
    args = serve_llama.parse(["--model", "Llama-3.1-8B", *words.split()], gpu=gpu)
    if got is None:
        memory.check(args)
    else:
        with pytest.raises(ValueError, match=f"^--kv-cache-gib: must hold {got}"):
            memory.check(args)


def test_the_bytes_of_keys_and_values():
    config = {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 64}
    of_a_token = 3 * 2 * 64 * 2 * 2
    for tokens, blocks in ((16, 5 + 1), (17, 2 * 5 + 1)):
        assert memory.kv_cache_bytes(config, 5, tokens, 16) == blocks * 16 * of_a_token
