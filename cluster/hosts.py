"""What addresses of hosts mean. Resolves nothing."""

import ipaddress
import socket


def is_wildcard(host: str) -> bool:
    """Whether binding to `host` accepts connections on every interface of the machine."""
    try:
        return not any(socket.inet_aton(host))  # also reads the short forms of 0.0.0.0
    except OSError:
        pass
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return address.is_unspecified or bool(
        address.ipv4_mapped and address.ipv4_mapped.is_unspecified
    )
