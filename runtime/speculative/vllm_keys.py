"""Keys of vLLM's `SpeculativeConfig` that mean nothing here, and what to use in their place.

A configuration that works with vLLM is refused by name and not as if its keys were misspelt. Keys
that are understood are those of `SpeculativeConfig`; nothing is translated.
"""

_VERIFIED = (
    "tokens are always those without speculation, greedy and sampled (the rule coupled): leave it "
    "out"
)
_ADAPTED = "how much is proposed follows from measured times: use 'adaptive'"
_SERVED = "the drafter has what the model that is served has: leave it out"
_OTHER_METHOD = "it is of methods whose drafters are trained into the model: leave it out"
_CHECKPOINT = "give the directory of that checkpoint as 'model'"

_INSTEAD = {
    "acceptance_method": _VERIFIED,
    "attention_backend": _SERVED,
    "code_revision": _CHECKPOINT,
    "disable_by_batch_size": _ADAPTED,
    "disable_eagle_block_drop": _OTHER_METHOD,
    "disable_log_stats": "counters are always at /metrics: leave it out",
    "disable_logprobs": "log probabilities are those without speculation: leave it out",
    "disable_padded_drafter_batch": _OTHER_METHOD,
    "draft_load_config": _CHECKPOINT,
    "draft_sample_method": (
        "the drafter samples with the noise of the model that is served: leave it out"
    ),
    "dspark_draft_topk": _OTHER_METHOD,
    "enable_adaptive_verification": _ADAPTED,
    "enforce_eager": _SERVED,
    "index_share_for_mtp_iteration": _OTHER_METHOD,
    "kv_cache_dtype": _SERVED,
    "max_model_len": "the drafter goes as far as the model that is served: use --max-model-len",
    "moe_backend": _SERVED,
    "num_speculative_tokens_per_batch_size": _ADAPTED,
    "parallel_drafting": "use method easyspec and 'layer_parallel'",
    "posterior_alpha": _VERIFIED,
    "posterior_threshold": _VERIFIED,
    "quantization": _SERVED,
    "rejection_sample_method": _VERIFIED,
    "revision": _CHECKPOINT,
    "speculative_token_tree": "use 'tree'",
    "synthetic_acceptance_length": _VERIFIED,
    "synthetic_acceptance_rate": _VERIFIED,
    "synthetic_acceptance_rates": _VERIFIED,
    "tensor_parallel_size": "use 'draft_tensor_parallel_size'",
    "use_heterogeneous_vocab": "the drafter needs the vocabulary of the model that is served",
    "use_local_argmax_reduction": _VERIFIED,
}


def refuse_vllm_key(key: str) -> None:
    """Say what to use in place of a key that is vLLM's alone; any other key is fine.

    Raises:
        ValueError: the key is one.
    """
    if key in _INSTEAD:
        raise ValueError(f"{key!r} is vLLM's and not supported here: {_INSTEAD[key]}")
