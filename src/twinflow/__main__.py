"""`python -m twinflow` and the `twinflow` command. The command line is in twinflow.cluster.cli."""

from twinflow.cluster.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
