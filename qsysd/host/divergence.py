"""Differences between definitions, files on disk and running VMs, for `doctor`."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from qsysd import network, render
from qsysd.errors import QsysdError
from qsysd.files import read_bytes, read_text
from qsysd.host import listing
from qsysd.host.context import Host
from qsysd.model.network import NetworkSpec
from qsysd.names import in_order
from qsysd.store.claims import Claims, of_others


@dataclass(frozen=True)
class Divergence:
    """A difference on one VM. remedy: its correction."""

    vm: str
    message: str
    remedy: str


def find(host: Host) -> Iterator[Divergence]:
    """Yield all differences on this host."""
    yield from _without_parts(host)
    claims = of_others(host.store)
    yield from _duplicates(host, claims)
    yield from _outside_of_subnets(host, claims)
    yield from _other_images(host)


def _without_parts(host: Host) -> Iterator[Divergence]:
    for vm in listing.listed(host):
        definition = host.scope.definition(vm.name)
        if vm.problem == listing.NO_DEFINITION:
            runs = "it runs" if vm.pid else "it is off"
            boot = ", and it starts at host boot" if vm.enabled else ""
            yield Divergence(
                vm.name,
                f"it has no definition: {definition} does not exist; {runs}{boot}",
                f"restore the file, or: qsysd delete {vm.name}",
            )
        elif vm.problem == listing.NO_DISK:
            directory = host.scope.vm_dir(vm.name)
            missing = directory if not os.path.isdir(directory) else f"a disk in {directory}"
            yield Divergence(
                vm.name,
                f"{missing} does not exist",
                f"restore it, or: qsysd delete {vm.name}; if the definition is a copy: "
                f"{move_definition(host, vm.name)}",
            )


def _duplicates(host: Host, claims: list[Claims]) -> Iterator[Divergence]:
    owners: dict[tuple[str, bool], set[str]] = defaultdict(set)  # by claim, and whether `edit` can change it
    for vm in claims:
        if vm.uuid:
            owners[f"the UUID {vm.uuid}", False].add(vm.name)
        for nic in vm.ports:
            if nic.mac:
                owners[f"the MAC {nic.mac} on network {nic.network}", True].add(vm.name)
            if nic.address:
                owners[f"the address {nic.address} on network {nic.network}", True].add(vm.name)
    copies = {vm.name for vm in claims if not os.path.isdir(host.scope.vm_dir(vm.name))}
    for (what, can_be_edited), names in owners.items():
        if len(names) > 1:
            first, *others = [*in_order(names - copies), *in_order(names & copies)]
            last = others[-1]
            if can_be_edited and last not in copies:
                remedy = f"qsysd edit {last}"
            else:
                remedy = f"if it is a copy: {move_definition(host, last)}"
            yield Divergence(first, f"{what} also belongs to {', '.join(others)}", remedy)


def move_definition(host: Host, name: str) -> str:
    """Return the hint for a definition that was copied by hand."""
    return f"mv {host.scope.definition(name)} to another directory, then: qsysd create --file FILE"


def _outside_of_subnets(host: Host, claims: list[Claims]) -> Iterator[Divergence]:
    subnets: dict[str, str] = {}
    for name in host.store.network_names():
        try:
            subnets[name] = host.store.load_network(name).subnet
        except QsysdError:
            continue  # reported for the network
    for vm in claims:
        for nic in vm.ports:
            subnet = subnets.get(nic.network)
            if subnet and nic.address and not network.is_for_a_vm(nic.address, subnet):
                yield Divergence(
                    vm.name,
                    f"its address {nic.address} is not valid for a VM on network {nic.network} ({subnet})",
                    f"qsysd edit {vm.name}: remove the address to get another one",
                )


def _other_images(host: Host) -> Iterator[Divergence]:
    for name in host.store.names():
        summary = host.store.summary(name)
        if not summary.image or not summary.image_digest or not host.images.exists(summary.image):
            continue
        image = host.images.get(summary.image)
        if image.problem or image.sha256 not in ("", summary.image_digest):
            yield Divergence(
                name,
                f"image {summary.image} is not the one that its disk was created on: "
                f"{image.problem or f'its SHA-256 is {image.sha256}'}",
                f"restore the image with the SHA-256 {summary.image_digest}, or: qsysd delete {name}",
            )


def network_differences(host: Host, spec: NetworkSpec) -> dict[str, str]:
    """Return the files of a network that differ from its rendering, each with the expected text."""
    files = render.network_files(spec, host.scope)
    return {path: text for path, text in files.items() if read_bytes(path) != text.encode()}


def has_subnet(host: Host, spec: NetworkSpec) -> bool:
    """Return whether the network was rendered with the subnet of its definition."""
    rendered = read_text(host.scope.network_environment(spec.name)) or ""
    prefix = spec.subnet.partition("/")[2]
    return f"\nQSYSD_GATEWAY={network.gateway(spec.subnet)}/{prefix}\n" in rendered


def cut_off(host: Host, network_name: str, subnet: str) -> list[str]:
    """Return the VMs with an address on a network that is outside of a subnet, with the address."""
    return [
        f"{vm.name} ({nic.address})"
        for vm in of_others(host.store)
        for nic in vm.ports
        if nic.network == network_name and nic.address and not network.is_for_a_vm(nic.address, subnet)
    ]
