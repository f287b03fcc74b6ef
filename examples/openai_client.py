"""Talk to a server with OpenAI's client: whole answers, streams and log probabilities.

Run it: python examples/openai_client.py [http://127.0.0.1:8000/v1]
It needs `pip install openai`.
"""
# ruff: noqa: T201 - examples print

import sys

from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
    client = OpenAI(base_url=url, api_key="none", _strict_response_validation=True)
    model = client.models.list().data[0].id
    question = ChatCompletionUserMessageParam(role="user", content="What is the capital of France?")

    answer = client.chat.completions.create(
        model=model, messages=[question], temperature=0, max_tokens=32, logprobs=True
    )
    print(answer.choices[0].message.content)
    if answer.choices[0].logprobs and answer.choices[0].logprobs.content:
        print([round(entry.logprob, 3) for entry in answer.choices[0].logprobs.content])

    with client.chat.completions.create(
        model=model, messages=[question], temperature=0.2, seed=7, stream=True
    ) as stream:
        print("".join(c.choices[0].delta.content or "" for c in stream if c.choices))

    # vLLM's extra fields travel in extra_body.
    exact = client.completions.create(
        model=model, prompt="1, 2, 3,", max_tokens=4, extra_body={"ignore_eos": True}
    )
    print(exact.usage)


if __name__ == "__main__":
    main()
