"""One module for each engine of the race; it imports that engine and the standard library alone.

Each is started as `python -m benchmarks.peers.engines.NAME` by the Python that has the engine
installed, which need not have twinflow.
"""
