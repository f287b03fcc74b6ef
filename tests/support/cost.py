"""Loads and cost models to plan, predict and fit with."""

from dataclasses import replace

from twinflow.runtime.cost.base import PhaseLoad, SegmentLoad, StepLoad
from twinflow.runtime.cost.curve import SpeedCurve
from twinflow.runtime.cost.device import load_device
from twinflow.runtime.cost.model import CostModel, Curves, Prices
from twinflow.runtime.cost.shape import ModelShape

NOTHING = PhaseLoad()

# Llama-3.1-8B in bfloat16.
LLAMA_8B = ModelShape(
    num_layers=32,
    dense_flops=2 * 218_103_808,
    dense_bytes=2 * 218_103_808,
    pair_flops=4 * 32 * 128,
    kv_bytes=2 * 2 * 8 * 128,
    head_flops=2 * 4096 * 128_256,
    head_bytes=2 * 4096 * 128_256,
)
# The configuration that this is the shape of.
LLAMA_8B_CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}
# Of the shape of Qwen3-30B-A3B.
EXPERTS = replace(
    LLAMA_8B,
    num_layers=48,
    dense_flops=2 * 18_874_368,
    dense_bytes=2 * 18_874_368,
    num_experts=128,
    experts_per_token=8,
    expert_flops=2 * 8 * 3 * 2048 * 768,
    expert_bytes=2 * 3 * 2048 * 768,
)
# What a small machine could be: every price counts somewhere among the steps of `loads`.
PRICES = Prices(
    step=2e-3,
    sample=4e-5,
    row=3e-6,
    dense_flop=2e-12,
    dense_byte=5e-11,
    prefill_pair=4e-12,
    prefill_kv=1e-11,
    decode_kv=6e-11,
)
# A machine whose kernels compute rows in tiles.
STAIR_PRICES = replace(PRICES, stairs=(0.0, 0.0, 9e-12, 9e-12, 1.1e-11, 2e-11))
EXPERT_PRICES = replace(PRICES, expert_flop=3e-12, expert_byte=7e-11)
CURVES = Curves(SpeedCurve(0.3, 0.4), SpeedCurve(0.2, 0.1))


def chunk(start: int, count: int) -> PhaseLoad:
    """A chunk of a prompt."""
    return PhaseLoad.of(start, count)


def decodes(batch: int, context: int) -> PhaseLoad:
    """Decode rows, all with the same context."""
    return PhaseLoad(batch, batch * context, batch * context)


def step(prefill: PhaseLoad = NOTHING, decode: PhaseLoad = NOTHING, layers: int = 32) -> StepLoad:
    """A step whose rows cross all layers; every decode row and one prompt row are sampled."""
    sampled = decode.rows + (1 if prefill.rows else 0)
    return StepLoad((SegmentLoad(layers, prefill, decode),), sampled)


def loads(layers: int = 32) -> list[StepLoad]:
    """Steps of all kinds, as a profile would run them."""
    prompts = [chunk(0, count) for count in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)]
    prompts += [chunk(start, 128) for start in (256, 1024, 4096)]
    found = [step(prefill, layers=layers) for prefill in prompts]
    for batch in (1, 2, 4, 8, 16, 32, 64):
        found += [
            step(decode=decodes(batch, context), layers=layers) for context in (16, 512, 2048)
        ]
    for count in (32, 256):
        found += [step(chunk(0, count), decodes(batch, 512), layers) for batch in (1, 8, 32)]
    return found


def h100(shape: ModelShape = LLAMA_8B) -> CostModel:
    """A model on the device that is shipped."""
    return load_device("h100").cost_model(shape)
