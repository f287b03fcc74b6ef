"""GGUF files become Hugging Face model directories.

    importer.py   import_gguf: the whole conversion, all or nothing
    source.py     the GGUF file, or the one inside a .zip or .whl
    reader.py     metadata and tensors of the file
    config.py     metadata -> config.json and generation_config.json
    rope.py       metadata and frequency factors -> rope_scaling
    tensors.py    names, dequantisation, order of the rows of q and k
    tokenizer.py  metadata -> tokenizer.json and tokenizer_config.json
    splitting.py  how each kind of vocabulary splits text before the merges
    writer.py     safetensors shards

An offline command: the engine itself reads safetensors only. Needs the extra `twinflow[gguf]`.
"""

from twinflow.runtime.checkpoint.gguf_import.importer import import_gguf

__all__ = ["import_gguf"]
