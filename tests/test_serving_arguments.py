"""The command line of examples/serve_llama.py: what it takes, and what it refuses."""

import pytest

pytest.importorskip("rich", reason="examples need rich")
import serve_llama  # noqa: E402
from serving import arguments  # noqa: E402


def test_variants_are_named_environments(capsys):
    words = "--variant no-pdl HP_NORM_PDL=0 --variant b HP_NORM_PLUGIN=layer HP_NORM_SCOPE=all"
    assert serve_llama.parse(words.split(), gpu=True).variants == {
        "no-pdl": {"HP_NORM_PDL": "0"},
        "b": {"HP_NORM_PLUGIN": "layer", "HP_NORM_SCOPE": "all"},
    }
    for wrong, text in (
        ("--variant no-pdl", "must be NAME VARIABLE=VALUE [VARIABLE=VALUE ...], got no-pdl"),
        ("--variant a =0", "must be NAME VARIABLE=VALUE [VARIABLE=VALUE ...], got a =0"),
        ("--variant a HP_NORM_PDL", "must be NAME VARIABLE=VALUE [VARIABLE=VALUE ...], got a HP_"),
        ("--variant off HP_NORM_PDL=0", "the name must be new, got off"),
        ("--variant on-2 HP_NORM_PDL=0", "the name must be new, got on-2"),
        ("--variant a A=1 --variant a A=2", "the name must be new, got a"),
    ):
        with pytest.raises(SystemExit):
            serve_llama.parse(wrong.split(), gpu=True)
        assert f"--variant: {text}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output-len", "1"], "--output-len: must be at least 2, got 1"),
        (["--batch-sizes", "1", "0"], "--batch-sizes: must be at least 1, got 0"),
        (["--repeats", "0"], "--repeats: must be at least 1, got 0"),
        (["--warmup", "-1"], "--warmup: must be at least 0, got -1"),
        (["--engines", "0"], "--engines: must be at least 1, got 0"),
        (["--input-len", "0"], "--input-len: must be at least 1, got 0"),
        (["--prefill-len", "0"], "--prefill-len: must be at least 1, got 0"),
        (["--prefill-batch", "-1"], "--prefill-batch: must be at least 0, got -1"),
        (["--max-model-len", "0"], "--max-model-len: must be at least 1, got 0"),
        (["--max-model-len", "128"], "--max-model-len: must be at least 129, the tokens of the"),
        (["--prefill-batch", "0", "--max-model-len", "32"], "--max-model-len: must be at least 33"),
        (["server", "--max-model-len", "32"], "--max-model-len: must be at least 33"),
        (["--seed", "-1"], "--seed: must be 0 to 4294967295, got -1"),
        (["--seed", "4294967296"], "--seed: must be 0 to 4294967295, got 4294967296"),
        (["--num-prompts", "0"], "--num-prompts: must be at least 1, got 0"),
        (["--seeds", "0"], "--seeds: must be at least 1, got 0"),
        (["--port", "99999"], "--port: must be 1 to 65534, got 99999"),
        (["--port", "65535"], "--port: must be 1 to 65534, got 65535"),
        (["--port", "0"], "--port: must be 1 to 65534, got 0"),
        (["--starts", "1"], "--starts: must be 2 to 5, got 1"),
        (["--starts", "6"], "--starts: must be 2 to 5, got 6"),
        (["--memory", "0"], "--memory: must be above 0 and at most 1, got 0.0"),
        (["--memory", "1.1"], "--memory: must be above 0 and at most 1, got 1.1"),
        (["--memory", "nan"], "--memory: must be above 0 and at most 1, got nan"),
        (["--kv-cache-gib", "0"], "--kv-cache-gib: must be above 0 and at most 1024, got 0.0"),
        (["--kv-cache-gib", "inf"], "--kv-cache-gib: must be above 0 and at most 1024, got inf"),
        (["--request-rates", "1", "0"], "--request-rates: must be above 0, got 0.0"),
        (["server", "--request-rates"], "--request-rates: expected at least one argument"),
        (["swap", "--plugin", "layer"], "swap: needs the IR adapter and compilation"),
        (["swap", "--enforce-eager"], "swap: needs the IR adapter and compilation"),
        (["swap", "--variant", "a", "B=1"], "swap: needs the IR adapter and compilation"),
        (["swap", "--output-len", "3"], "swap: --output-len: must be at least 4"),
        (["server", "--engines", "2"], "--engines: is for offline and swap, got mode server"),
        (["tokens", "--variant", "a", "B=1"], "--variant: is for offline, got mode tokens"),
        (["cache", "--one-cache"], "--one-cache: is for offline and swap, got mode cache"),
        (["--request-rates", "2"], "--request-rates: is for server, got mode offline"),
        (["swap", "--quantization", "awq"], "swap: --quantization: must be one that the plugin"),
    ],
)
def test_bad_arguments(words, message, capsys):
    with pytest.raises(SystemExit):
        serve_llama.parse(words, gpu=False)
    assert message in capsys.readouterr().err


def test_the_limits_themselves_are_allowed():
    words = (
        "--batch-sizes 1 --repeats 1 --warmup 0 --engines 1 --input-len 1 --output-len 2 --seeds 1 "
        "--prefill-len 1 --prefill-batch 0 --max-model-len 3 --num-prompts 1 --memory 1 --starts "
    )
    for starts, port in (("2", "1"), ("5", "65534")):
        args = serve_llama.parse([*words.split(), starts, "--port", port], gpu=True)
        assert (args.starts, args.port) == (int(starts), int(port))
    for words in ("--max-model-len 129", "server --max-model-len 33", "swap --output-len 4"):
        serve_llama.parse(words.split(), gpu=False)


def test_every_option_says_what_it_is():
    assert [action.dest for action in arguments._parser(gpu=True)._actions if not action.help] == []
