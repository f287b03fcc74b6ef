"""Two lanes of one device: which part of it each of them computes on."""
