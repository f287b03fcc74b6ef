"""The executor that runs a model: rows to logits, logits to tokens.

Keeps one sampling state per request. Knows no queues and frees no blocks.
"""

from collections.abc import Sequence

from twinflow.runtime.executor import LayersDone, Work
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.outputs import NumericalFault, SampledToken
from twinflow.runtime.request import Request
from twinflow.runtime.runner import Runner
from twinflow.runtime.sampling import Sampler, SamplingState


class ModelExecutor:
    """Runs row groups through a model and samples.

    Args:
        runner: the model and its KV cache.
        sampler: for the same vocabulary.
        vocab_size: columns of the logits.
        layers_per_unit: how often a listener hears of finished layers.
    """

    def __init__(
        self, runner: Runner, sampler: Sampler, *, vocab_size: int, layers_per_unit: int
    ) -> None:
        self._runner = runner
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._layers_per_unit = layers_per_unit
        self._states: dict[str, SamplingState] = {}

    def admit(self, request: Request) -> None:
        """See `Executor.admit`."""
        state = SamplingState(
            request.params,
            request.params.seed or 0,
            request.prompt_token_ids,
            self._vocab_size,
            request.ending_token_ids,
        )
        for token_id in request.output_token_ids:
            state.append(token_id)
        self._states[request.request_id] = state

    def accept(self, request_id: str, token_id: int) -> None:
        """See `Executor.accept`."""
        self._states[request_id].append(token_id)

    def restart(self, request_id: str) -> None:
        """See `Executor.restart`."""
        self._runner.forget(request_id)

    def forget(self, request_id: str) -> None:
        """See `Executor.forget`."""
        self._states.pop(request_id, None)
        self._runner.forget(request_id)

    def execute(
        self, work: Sequence[Work], on_layers: LayersDone | None
    ) -> list[SampledToken | NumericalFault]:
        """See `Executor.execute`."""
        rows = [
            SequenceRows(
                token_ids=item.request.tokens(item.group.token_start, item.group.token_count),
                start=item.group.token_start,
                block_ids=item.blocks,
                samples=item.group.samples,
                prompt_tokens=len(item.request.prompt_token_ids),
                held_as=item.request.request_id if item.request.hold else None,
                layer_start=item.group.layer_start,
                layer_end=item.group.layer_end,
                sequence=item.request.request_id,
            )
            for item in work
        ]
        logits = self._runner.forward(rows, on_layers, self._layers_per_unit)
        states = [self._states[w.request.request_id] for w in work if w.group.samples]
        return self._sampler.sample(logits, states)

    def take_traffic(self) -> Sequence[LayerTraffic]:
        """See `Executor.take_traffic`."""
        return self._runner.take_traffic()
