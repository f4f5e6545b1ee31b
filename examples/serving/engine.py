"""One vLLM engine, in a process of its own (`serving.worker`).

Two engines, plugin off and on, can then be alive at once and be measured in turn.
"""

from __future__ import annotations

import time
from typing import Any

from serving import kernel_profile


class Engine:
    """An `LLM` and the measurements on it."""

    def __init__(self, config: dict[str, Any]) -> None:
        from vllm import LLM

        started = time.perf_counter()
        self.requests = 0
        self.llm = LLM(**config["llm"])
        self.vocab_size = self.llm.llm_engine.vllm_config.model_config.get_vocab_size()
        if config["fill_weights"]:
            self.llm.collective_rpc("hp_norm_fill_weights", args=(config["seed"],))
        self.start_seconds = time.perf_counter() - started

    def state(self) -> dict[str, Any]:
        """Versions, and what the worker says about the plugin and its graph."""
        import torch
        import vllm

        worker = self.llm.collective_rpc("hp_norm_state")[0]
        return {
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "start_seconds": self.start_seconds,
            **worker,
        }

    def keep(self, name: str) -> None:
        """Keep the engine's compilation under a name (`serving.swap_worker`)."""
        self.llm.collective_rpc("hp_norm_keep", args=(name,))

    def compile(self, name: str, with_plugin: bool, cache_root: str, new_pool: bool) -> None:
        """Compile the model once more, and keep that under a name."""
        arguments = (name, with_plugin, cache_root, new_pool)
        self.llm.collective_rpc("hp_norm_compile", args=arguments)

    def use(self, name: str) -> None:
        """Run a compilation that was kept."""
        self.llm.collective_rpc("hp_norm_use", args=(name,))

    def watch(self, batch: int) -> None:
        """Time the CUDA graphs of decode steps of so many requests from here on."""
        self.llm.collective_rpc("hp_norm_watch", args=(batch,))

    def watched(self) -> Any:
        """Seconds of those graphs, and of what was between them."""
        return self.llm.collective_rpc("hp_norm_watched")[0]

    def replay(
        self,
        names: list[str],
        batch: int,
        input_len: int,
        output_len: int,
        seed: int,
        rounds: int,
        replays: int,
    ) -> Any:
        """Seconds of a decode step's CUDA graph, of each compilation.

        The graphs repeat the engine's last step, so they do it while `batch` requests run, in the
        middle: attention then does what it does in the median step.
        """
        tokens = self._begin(self._prompts(batch, input_len, seed), output_len)
        while self._step(tokens) < output_len // 2:
            pass
        arguments = (names, batch, rounds, replays)
        try:
            return self.llm.collective_rpc("hp_norm_replay", args=arguments)[0]
        finally:
            self.llm.llm_engine.abort_request(list(tokens))
            while self.llm.llm_engine.has_unfinished_requests():
                self.llm.llm_engine.step()

    def measure(
        self,
        batch: int,
        input_len: int,
        output_len: int,
        seed: int,
        queued: int = 1,
    ) -> dict[str, Any]:
        """Time one batch: greedy, eos ignored.

        Seconds until every request has its first token, and until all have all of theirs; and
        the tokens.

        `queued` batches wait in line, and the seconds are those of one of them: the engine starts
        with the request that arrives first, so that how one batch alone falls into steps is chance.
        """
        prompts = self._prompts(batch * queued, input_len, seed)
        arrivals, tokens = self._generate(prompts, output_len)
        return {
            "first_token_s": arrivals[0] / queued,
            "all_tokens_s": arrivals[-1] / queued,
            "tokens": tokens,
        }

    def profile(self, batch: int, input_len: int, output_len: int, seed: int) -> dict[str, Any]:
        """Kernels (on a CPU: operators) as `kernel_profile.take` returns them."""
        prompts = self._prompts(batch, input_len, seed)
        return kernel_profile.take(
            start=lambda: self.llm.collective_rpc("hp_norm_profile_start"),
            generate=lambda tokens: self._generate(prompts, tokens),
            stop=lambda: self.llm.collective_rpc("hp_norm_profile_stop")[0],
            output_len=output_len,
        )

    def score(self, tokens: list[int]) -> dict[str, Any]:
        """The most likely token at every position of a given text, and its log-probability.

        Unlike generated text, one different token does not change all that follow.
        """
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=1, detokenize=False)
        out = self.llm.generate([{"prompt_token_ids": tokens}], params, use_tqdm=False)[0]
        best, logprobs = [], []
        for position in out.prompt_logprobs[1:]:
            token, entry = max(position.items(), key=lambda item: item[1].logprob)
            best.append(int(token))
            logprobs.append(float(entry.logprob))
        return {"best": best, "logprobs": logprobs}

    def _prompts(self, batch: int, length: int, seed: int) -> list[dict[str, list[int]]]:
        import random

        draw = random.Random(seed)
        return [
            {"prompt_token_ids": [draw.randrange(3, self.vocab_size) for _ in range(length)]}
            for _ in range(batch)
        ]

    def _generate(self, prompts: list[Any], max_tokens: int) -> tuple[list[float], list[list[int]]]:
        """Step the engine to the end: when every request had its n-th token, and the tokens."""
        arrivals: list[float] = []
        started = time.perf_counter()
        tokens = self._begin(prompts, max_tokens)
        while self.llm.llm_engine.has_unfinished_requests():
            fewest = self._step(tokens)
            arrivals += [time.perf_counter() - started] * (fewest - len(arrivals))
        return arrivals, list(tokens.values())

    def _begin(self, prompts: list[Any], max_tokens: int) -> dict[str, list[int]]:
        """Add requests; return where `_step` puts their tokens, by their names."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False
        )
        self.requests += len(prompts)
        tokens: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            name = f"{self.requests}-{index}"
            tokens[name] = []
            self.llm.llm_engine.add_request(name, prompt, params)
        return tokens

    def _step(self, tokens: dict[str, list[int]]) -> int:
        """Step the engine once; return how many tokens every request has."""
        for output in self.llm.llm_engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
        return min(map(len, tokens.values()))
