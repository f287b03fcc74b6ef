"""Launching deployments: which processes there are, and who starts and watches them."""

from twinflow.cluster.launch.serve import serve

__all__ = ["serve"]
