"""The text side of a model: its tokenizer, its chat template, its detokenisation."""

from collections.abc import Sequence
from dataclasses import dataclass

from twinflow.cluster.gateway.text_protocols import Renderer
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.text.sequence_text import SequenceText
from twinflow.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelTextCodec:
    """Implements `TextCodec` with `twinflow.runtime.text`.

    Attributes:
        tokenizer: the model's.
        renderer: its chat template, if it has one.
    """

    tokenizer: Tokenizer
    renderer: Renderer | None = None

    def sequence_text(
        self, params: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> SequenceText:
        """A fresh state for one sequence."""
        return SequenceText(self.tokenizer, params, prompt_token_ids)
