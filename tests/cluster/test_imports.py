"""The control plane is light: what gateways and launchers import loads no torch."""

import subprocess
import sys

# Runs inside worker processes, where torch belongs.
WORKER_SIDE = "twinflow.cluster.launch.worker_service"

LOADS_EVERYTHING = f"""
import pkgutil, sys
from importlib import import_module
import twinflow.cluster
for module in pkgutil.walk_packages(twinflow.cluster.__path__, "twinflow.cluster."):
    if module.name != {WORKER_SIDE!r}:
        import_module(module.name)
        if "torch" in sys.modules:
            sys.exit(f"{{module.name}} loads torch")
sys.stdout.write(str(sum(name.startswith("twinflow.cluster.") for name in sys.modules)))
"""


def test_no_module_of_the_control_plane_loads_torch() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LOADS_EVERYTHING], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 40
