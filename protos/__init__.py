"""What crosses a process boundary: protocol buffers, their generated stubs, errors.

This package knows no tensors, no requests in execution and no sockets.
"""
