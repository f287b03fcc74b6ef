"""Connections that lose every packet, in a network of one's own: Linux, no privileges needed.

A process that is started in namespaces of its own (`unshare --user --map-root-user --net`) may
change routing rules there. A rule that sends the packets of a port into a black hole cuts open
connections as well as new ones, and taking it away heals them: that is what TCP retransmission is
for. Delay and loss would need kernel modules, and are not done here.
"""

import json
import shutil
import socket
import subprocess

from twinflow.protos.errors import ConfigError

# Local addresses are looked up in rule 0, before any other; behind this one there is room.
_LOCAL_PREFERENCE = "100"
_CUT_PREFERENCE = "10"


def is_own() -> bool:
    """Whether this process is in a network that was made for it: a loopback that is down is all."""
    if [name for _, name in socket.if_nameindex()] != ["lo"] or shutil.which("ip") is None:
        return False
    (loopback,) = json.loads(_ip("-json", "link", "show", "lo"))
    return "UP" not in loopback["flags"]


class OwnNetwork:
    """The network of this process and its children, which nobody else uses.

    Raises:
        ConfigError: it is not in one.
    """

    def __init__(self) -> None:
        self._cuts: list[list[str]] = []
        _ip("link", "set", "lo", "up")
        _ip("rule", "add", "pref", _LOCAL_PREFERENCE, "lookup", "local")
        _ip("rule", "del", "pref", "0")

    def cut(self, port: int, *, one_way: bool = False) -> None:
        """Lose every packet from whoever listens on a port, and, unless `one_way`, to it."""
        for side in ("sport",) if one_way else ("sport", "dport"):
            cut = ["pref", _CUT_PREFERENCE, "ipproto", "tcp", side, str(port), "blackhole"]
            _ip("rule", "add", *cut)
            self._cuts.append(cut)

    def heal(self) -> None:
        """Let everything through again."""
        while self._cuts:
            _ip("rule", "del", *self._cuts.pop())


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
