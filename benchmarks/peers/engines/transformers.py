"""`generate` of transformers; the variant is a dtype."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from benchmarks.peers.engines.protocol import Settings, Tokens, serve


class Transformers:
    """See the module."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self.version = f"{transformers.__version__}, torch {torch.__version__}"
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=getattr(torch, settings.variant)
        )

    def generate(self, prompts: Sequence[Tokens], count: int) -> list[Tokens]:
        """See `Engine.generate`; all prompts have one length."""
        ids = torch.tensor(prompts)
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        generated: list[Tokens] = out[:, ids.shape[1] :].tolist()
        return generated


if __name__ == "__main__":
    serve(Transformers)
