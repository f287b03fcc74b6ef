"""Trains the two small models of tests/models; `python -m benchmarks.train_nano --help`."""
