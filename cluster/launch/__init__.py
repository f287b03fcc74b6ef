"""Launching deployments: which processes there are, and who starts and watches them.

Nothing is imported here: a worker's process is built from this package too, and a worker that takes
the place of a lost one is waited for.
"""
