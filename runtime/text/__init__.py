"""Text: tokens to characters and back, stop strings, chat templates.

    tokenizer.py         Tokenizer: a model directory's tokenizer.json
    pieces.py            which bytes a token stands for
    detokenizer.py       IncrementalDetokenizer: text of tokens that arrive one by one
    stop.py              StopMatcher: stop strings across the borders of chunks
    sequence_text.py     SequenceText: the two for one sequence, with its finish reason
    chat_template.py     ChatTemplate: what a model directory says about chats
    template_engine.py   rendering, without any limit
    template_process.py  the process in which untrusted templates are rendered
    template_renderer.py TemplateRenderer: that process, its limits and its restarts

Nothing here imports torch. This package imports nothing by itself, so that the rendering process
loads only what it needs.
"""
