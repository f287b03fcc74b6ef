"""The HTTP front door: OpenAI's API over `TextPipeline`.

protocol.py   what is wrong with the bytes ends here (uvicorn, httptools)
gate.py       who calls, which id, and every error as a response
app.py        routes
answer.py     runs a generation and sends it, whole or as a stream
chat_format.py, completion_format.py   OpenAI's shapes
server.py     listens
"""
