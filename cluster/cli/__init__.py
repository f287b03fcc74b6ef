"""The command line: `twinflow serve`, `models`, `chat` and `status`.

Importing it loads neither torch nor Ray; a command loads what it needs when it runs.
"""
