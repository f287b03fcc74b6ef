"""Complete prompts in this process, without a server.

Run it: python examples/offline.py MODEL_DIR
"""
# ruff: noqa: T201 - examples print

import sys

from twinflow import LLM, SamplingParams

PROMPTS = ["The capital of France is", "Once upon a time", "Water boils at"]


def main() -> None:
    llm = LLM(sys.argv[1], dtype="float32", max_model_len=512, kv_cache_memory=64 << 20)

    greedy = SamplingParams(temperature=0.0, max_tokens=16)
    for output in llm.generate(PROMPTS, greedy, use_tqdm=False):
        print(repr(output.prompt), "->", repr(output.outputs[0].text))

    # With a seed, a request has the same tokens alone and in any batch.
    seeded = SamplingParams(temperature=0.8, top_p=0.95, seed=7, max_tokens=16)
    together = llm.generate(PROMPTS, seeded, use_tqdm=False)
    alone = llm.generate(PROMPTS[1], seeded, use_tqdm=False)
    print("same tokens:", together[1].outputs[0].token_ids == alone[0].outputs[0].token_ids)


if __name__ == "__main__":
    main()
