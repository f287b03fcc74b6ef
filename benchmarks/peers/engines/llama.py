"""llama.cpp through the C interface of `llama-cpp-python`, all sequences in one batch.

The model is a GGUF file; with a variant such as `BF16` it is first converted to that, once, beside
the file. The high-level class of the package would generate one sequence after the other.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.peers.engines.protocol import Settings, Tokens, serve

_BATCH_ROWS = 2048
_FORMS = {
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
}


class Llama:
    """See the module."""

    def __init__(self, settings: Settings) -> None:
        self.version = llama_cpp.__version__
        path = Path(settings.model)
        if settings.variant in _FORMS:
            path = _converted(path, settings.variant)
        model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = settings.total_tokens
        params.n_batch = _BATCH_ROWS
        params.n_seq_max = settings.max_sequences
        params.n_threads = params.n_threads_batch = settings.threads
        params.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise SystemExit(f"{path}: llama.cpp cannot make a context for it")
        vocab = llama_cpp.llama_model_get_vocab(model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self._batch = llama_cpp.llama_batch_init(_BATCH_ROWS, 0, 1)

    def generate(self, prompts: Sequence[Tokens], count: int) -> list[Tokens]:
        """See `Engine.generate`."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        lengths = [len(prompt) for prompt in prompts]
        made: list[Tokens] = [[] for _ in prompts]
        rows: list[_Row] = [
            (token, place, sequence, place + 1 == len(prompt))
            for sequence, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        for _ in range(count):
            for sequence, token in self._decode(rows):
                made[sequence].append(token)
            rows = [
                (tokens[-1], length + len(tokens) - 1, sequence, True)
                for sequence, (tokens, length) in enumerate(zip(made, lengths, strict=True))
            ]
        return made

    def _decode(self, rows: "Sequence[_Row]") -> Iterator[tuple[int, int]]:
        """Compute rows; yields sequence and next token where it is wanted."""
        for start in range(0, len(rows), _BATCH_ROWS):
            part, batch = rows[start : start + _BATCH_ROWS], self._batch
            batch.n_tokens = len(part)
            for index, (token, position, sequence, wanted) in enumerate(part):
                batch.token[index] = token
                batch.pos[index] = position
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = wanted
            if llama_cpp.llama_decode(self._context, batch):
                raise RuntimeError(f"llama.cpp cannot decode {len(part)} rows")
            for index, (_, _, sequence, wanted) in enumerate(part):
                if wanted:
                    yield sequence, self._greedy(index)

    def _greedy(self, row: int) -> int:
        logits: Any = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self._vocab_size,))))


# Token, position, sequence, and whether the next token is wanted.
_Row = tuple[int, int, int, bool]


def _converted(path: Path, form: str) -> Path:
    target = path.with_name(f"{path.stem}.{form}.gguf")
    if not target.exists():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = _FORMS[form], True
        draft = target.with_suffix(".part")
        failed = llama_cpp.llama_model_quantize(str(path).encode(), str(draft).encode(), params)
        if failed:
            raise SystemExit(f"{path}: llama.cpp cannot convert it to {form}")
        draft.rename(target)
    return target


if __name__ == "__main__":
    serve(Llama)
