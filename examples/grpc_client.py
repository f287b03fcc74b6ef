"""Talk to a server over gRPC, with twinflow's own client.

Run it: python examples/grpc_client.py [127.0.0.1:50051]
"""
# ruff: noqa: T201 - examples print

import sys

from twinflow import Client
from twinflow.cluster.client import CallOptions, ChatMessage


def main() -> None:
    target = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    question = ChatMessage(role="user", content="What is the capital of France?")
    with Client(target, timeout_s=60.0) as client:
        print(client.model_info())

        options = CallOptions(timeline=True)
        output = client.generate(
            messages=[question], options=options, temperature=0.0, max_tokens=32
        )
        print(output.outputs[0].text)
        for phase in output.phases:
            print(f"  {phase.name:<14}{phase.seconds * 1e3:9.2f} ms")

        for chunk in client.stream("Once upon a time", temperature=0.8, seed=7, max_tokens=32):
            print(chunk.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
