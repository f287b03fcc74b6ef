"""What is wrong with the key `provider` of a file for `ray up`."""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from twinflow.runtime.nearest import did_you_mean

_EXAMPLE = "example"
_COMMON = frozenset({"type", "use_internal_ips", "disable_node_updaters", "cache_stopped_nodes"})


@dataclass(frozen=True, slots=True)
class _Provider:
    """The keys of a provider that Ray reads.

    Attributes:
        required: must be there.
        optional: may be there.
    """

    required: frozenset[str]
    optional: frozenset[str]

    @property
    def known(self) -> frozenset[str]:
        """All of them."""
        return self.required | self.optional | _COMMON


_PROVIDERS: Mapping[str, _Provider] = {
    "aws": _Provider(
        frozenset({"region"}),
        frozenset({"availability_zone", "security_group", "cloudwatch", "aws_credentials"}),
    ),
    "azure": _Provider(
        frozenset({"location", "resource_group"}),
        frozenset(
            {
                *("subscription_id", "tags", "subnet_mask", "unique_id", "use_node_vault"),
                *("msi_identity_id", "msi_identity_principal_id", "use_external_head_ip"),
            }
        ),
    ),
    "gcp": _Provider(
        frozenset({"region", "availability_zone", "project_id"}),
        frozenset({"gcp_credentials", "_has_tpus"}),
    ),
    "local": _Provider(frozenset({"head_ip", "worker_ips"}), frozenset({"external_head_ip"})),
}


def provider_complaints(document: Mapping[str, Any]) -> Iterator[str]:
    """Everything that is wrong with it."""
    given = document["provider"]
    kind = given["type"]
    provider = _PROVIDERS.get(kind)
    if provider is None:
        yield (
            f"provider.type {kind!r}: twinflow knows {', '.join(_PROVIDERS)}"
            f"{did_you_mean(kind, _PROVIDERS)}"
        )
        return
    for key in sorted(provider.required - given.keys()):
        yield f"provider.{key}: missing; {kind} needs it"
    for key in sorted(given.keys() - provider.known):
        hint = did_you_mean(key, provider.known)
        yield f"provider.{key}: unknown key, which Ray would ignore{hint}"
    for key, value in given.items():
        if isinstance(value, str) and value.startswith(_EXAMPLE):
            yield f"provider.{key} {value}: is an example; put your own there"
    if kind == "local":
        yield from _address_complaints(given)


def _address_complaints(given: Mapping[str, Any]) -> Iterator[str]:
    head, workers = given.get("head_ip"), given.get("worker_ips") or []
    if "worker_ips" in given and not workers:
        yield "provider.worker_ips: empty; name at least one machine that takes workers"
    named = [("head_ip", head)] if head else []
    named += [(f"worker_ips.{index}", address) for index, address in enumerate(workers)]
    seen: set[str] = set()
    for key, address in named:
        if not _is_address(address):
            yield f"provider.{key} {address!r}: is no IP address"
        elif ipaddress.ip_address(address) in ipaddress.ip_network("192.0.2.0/24"):
            yield f"provider.{key} {address}: is an example; put your own there"
        elif address in seen:
            yield f"provider.{key} {address}: stands twice"
        seen.add(str(address))


def _is_address(text: object) -> bool:
    try:
        ipaddress.ip_address(str(text))
    except ValueError:
        return False
    return True
