"""Reading Hugging Face model directories, strictly, before anything is allocated.

    config.py           load_model_config: config.json and generation_config.json -> ModelConfig
    weights.py          Checkpoint: safetensors weights into memory, and their fingerprint
    experts.py          the part of ModelConfig that models with experts have
    latent.py           the part of ModelConfig that models with latent attention have
    quantization.py     read_block_size: which quantised weights can be read
    fp8.py              dequantise: float8 weights with scales for blocks
    shapes.py           check_shapes: the tensors that a model asks for, compared with those found
    tokenizer_check.py  check_tokenizer: tokenizer.json fits the model
    limits.py           resolve_max_model_len, check_memory
    gguf_import/        import_gguf: GGUF file -> Hugging Face directory

Whatever is wrong with a directory is a `CheckpointError` of one line that names the file, the key
or tensor, what was found and what is expected. Nothing here runs code of a model, unpickles,
follows a path out of the directory or downloads. Only `weights`, `fp8` and `gguf_import` import
torch.
"""
