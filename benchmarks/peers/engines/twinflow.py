"""twinflow's engine in one process; the variant is the kind of CPU kernels."""

from collections.abc import Sequence

import torch

from benchmarks.peers.engines.protocol import Settings, Tokens, serve
from twinflow import LLM, SamplingParams, __version__


class Twinflow:
    """See the module."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self.version = __version__
        self._llm = LLM(
            settings.model,
            cpu_kernels=settings.variant,
            max_model_len=settings.max_tokens,
            max_num_seqs=settings.max_sequences,
            enable_prefix_caching=False,
        )

    def generate(self, prompts: Sequence[Tokens], count: int) -> list[Tokens]:
        """See `Engine.generate`."""
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        outputs = self._llm.generate(list(prompts), params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    serve(Twinflow)
