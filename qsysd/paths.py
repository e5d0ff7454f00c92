"""Locations: directories, files and unit names.

Only this module depends on the scope. A `Scope` is plain data; nothing here accesses the disk.
"""

from __future__ import annotations

import os
from binascii import crc32

# systemd user names (`qv-<name>`) hold at most 31 characters, which leaves 28 for the VM.
# A name needs no escaping in a unit name, a path, a hostname or a command line.
NAME_RULE = "[a-z][a-z0-9-]{0,27}"
NAME_MAX = 28
_NAME_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz")
_NAME_CHARACTERS = _NAME_FIRST | frozenset("0123456789-")

# The name of a disk or a NIC within its VM. It contains no dash, so that names of files, TAPs and objects of
# QEMU that are derived from it with a dash (`disk0-file`) are unique.
DEVICE_NAME_RULE = "[a-z][a-z0-9]{0,14}"
DEVICE_NAME_MAX = 15
_DEVICE_NAME_CHARACTERS = _NAME_CHARACTERS - {"-"}

UNIT_PREFIX = "qemu-vm@"
UNIT_TEMPLATE = "qemu-vm@.service"
UNIT_PATTERN = "qemu-vm@*.service"

# The drop-in that qsysd renders for a VM, and the variable in it that identifies the rendering.
DROP_IN = "50-qsysd.conf"
DROP_IN_MARK = "QSYSD_DROP_IN"
# The application identifier of a VM's seed disk: this, followed by the digest of its documents.
SEED_MARK = "QSYSD-SEED "

# In bytes, without the terminating NUL: IFNAMSIZ of Linux, and sun_path of sockaddr_un (unix(7)).
INTERFACE_NAME_MAX = 15
SOCKET_PATH_MAX = 107

TAP_PREFIXES = ("qv-", "qv_")

# The number of lock files for all VMs, and for all images.
LOCK_FILES = 256
# Locks that do not belong to a VM.
ADDRESSES = ":addresses"
SETUP = ":setup"
TAPS = ":taps"


def is_name(text: str) -> bool:
    """Return whether `text` can name a VM or a network, by NAME_RULE."""
    return 0 < len(text) <= NAME_MAX and text[0] in _NAME_FIRST and _NAME_CHARACTERS.issuperset(text)


def is_device_name(text: str) -> bool:
    """Return whether `text` can name a disk or a NIC of a VM, by DEVICE_NAME_RULE."""
    return (
        0 < len(text) <= DEVICE_NAME_MAX
        and text[0] in _NAME_FIRST
        and _DEVICE_NAME_CHARACTERS.issuperset(text)
    )


def unit(vm: str) -> str:
    """Return the unit of a VM."""
    return f"qemu-vm@{vm}.service"


def vm_of_unit(name: str) -> str:
    """Return the name of the VM of a unit."""
    return name.removeprefix("qemu-vm@").removesuffix(".service")


def network_unit(network: str) -> str:
    """Return the unit of a network's bridge and firewall rules."""
    return f"qsysd-network@{network}.service"


def dhcp_unit(network: str) -> str:
    """Return the unit that runs a network's DHCP and DNS service."""
    return f"qsysd-dhcp@{network}.service"


def domain(network: str) -> str:
    """Return the DNS domain of a network. The top-level domain `internal` is reserved for private use."""
    return f"{network}.internal"


def is_disk(file: str) -> bool:
    """Return whether a file in a VM's directory is named as a disk: `disk0.qcow2`."""
    return file.endswith(".qcow2") and is_device_name(file.removesuffix(".qcow2"))


class Scope:
    """The directories of one scope (`--system`: root's systemd), and every file in them.

    root: the directory that contains all of them, for tests.
    """

    def __init__(self, root: str = "/") -> None:
        self.root = root
        self.config_dir = os.path.join(root, "etc/qsysd")
        self.unit_dir = os.path.join(root, "etc/systemd/system")
        self.wants_dir = os.path.join(self.unit_dir, "multi-user.target.wants")
        self.state_dir = os.path.join(root, "var/lib/qsysd")
        self.runtime_root = os.path.join(root, "run")
        self.runtime_dir = os.path.join(self.runtime_root, "qsysd")

        self.defaults_file = os.path.join(self.config_dir, "qsysd.yaml")
        self.definitions_dir = os.path.join(self.config_dir, "vms")
        self.networks_dir = os.path.join(self.config_dir, "networks")
        self.ssh_key = os.path.join(self.config_dir, "ssh/id_ed25519")

        self.images_dir = os.path.join(self.state_dir, "images")
        self.vms_dir = os.path.join(self.state_dir, "vms")
        self.network_state_dir = os.path.join(self.state_dir, "networks")
        self.intents_dir = os.path.join(self.state_dir, "intents")
        self.known_hosts_dir = os.path.join(self.state_dir, "known_hosts")
        # What the units run: a copy outside the package, so that running VMs do not depend on it.
        self.helper_dir = os.path.join(self.state_dir, "helper")

        self.runtimes_dir = os.path.join(self.runtime_dir, "vms")
        self.roots_dir = os.path.join(self.runtime_dir, "roots")
        self.started_dir = os.path.join(self.runtime_dir, "started")
        self.locks_dir = os.path.join(self.runtime_dir, "locks")
        # Exists after the host has begun to shut down; qsysd-shutdown.service creates it.
        self.shutdown_mark = os.path.join(self.runtime_dir, "shutdown")
        self.acceleration_file = os.path.join(self.runtime_dir, "acceleration.env")
        self.journal_socket = os.path.join(self.runtime_root, "systemd/journal/socket")

    # a VM's files

    def definition(self, vm: str) -> str:
        """Return the VM's definition: the only source of truth."""
        return os.path.join(self.definitions_dir, f"{vm}.yaml")

    def environment(self, vm: str) -> str:
        """Return the unit's EnvironmentFile, rendered from the definition."""
        return os.path.join(self.definitions_dir, f"{vm}.env")

    def drop_in_dir(self, vm: str) -> str:
        """Return the directory of the VM's drop-ins, qsysd's and the administrator's."""
        return os.path.join(self.unit_dir, f"{unit(vm)}.d")

    def drop_in(self, vm: str) -> str:
        """Return the drop-in that qsysd renders for the VM."""
        return os.path.join(self.drop_in_dir(vm), DROP_IN)

    def vm_dir(self, vm: str) -> str:
        """Return the directory of the VM's overlay, seed and sockets: all that its QEMU can write."""
        return os.path.join(self.vms_dir, vm)

    def overlay(self, vm: str, disk: str = "disk0") -> str:
        """Return the file of a VM's disk, by the disk's name."""
        return os.path.join(self.vm_dir(vm), f"{disk}.qcow2")

    def seed(self, vm: str) -> str:
        """Return the VM's cloud-init NoCloud disk."""
        return os.path.join(self.vm_dir(vm), "seed.iso")

    def console_log(self, vm: str) -> str:
        """Return the log of the guest's serial console."""
        return os.path.join(self.vm_dir(vm), "console.log")

    def known_hosts(self, vm: str) -> str:
        """Return the file of the guest's SSH host keys, as of the first connection."""
        return os.path.join(self.known_hosts_dir, vm)

    def intent(self, vm: str, verb: str) -> str:
        """Return the durable intent of a command that changes the VM. No name contains a dot."""
        return os.path.join(self.intents_dir, f"vm.{vm}.{verb}.json")

    def seed_scratch(self, vm: str) -> str:
        """Return the directory in which the VM's seed is built."""
        return os.path.join(self.runtime_dir, "seeds", vm)

    def runtime(self, vm: str) -> str:
        """Return the unit's RuntimeDirectory; its owner is the user that systemd chose for this start."""
        return os.path.join(self.runtimes_dir, vm)

    def monitor(self, vm: str, purpose: str) -> str:
        """Return a monitor's socket; `purpose` is `cli`, `ready` or `stop`, one client each."""
        return os.path.join(self.vm_dir(vm), f"qmp-{purpose}.sock")

    def console(self, vm: str) -> str:
        """Return the socket of the serial console."""
        return os.path.join(self.vm_dir(vm), "console.sock")

    def earlier_socket(self, vm: str, socket: str) -> str:
        """Return the path of a monitor or console of a VM that a version before 0.2 started."""
        return os.path.join(self.runtime(vm), os.path.basename(socket))

    def root_dir(self, vm: str) -> str:
        """Return the directory that becomes QEMU's root; systemd mounts into it what QEMU can see."""
        return os.path.join(self.roots_dir, vm)

    def started_record(self, vm: str) -> str:
        """Return the record of what the VM was started with: digest, memory, CPUs, accelerator."""
        return os.path.join(self.started_dir, vm)

    # a network's files

    def network_definition(self, network: str) -> str:
        """Return the network's definition."""
        return os.path.join(self.networks_dir, f"{network}.yaml")

    def network_environment(self, network: str) -> str:
        """Return the EnvironmentFile of the network's units."""
        return os.path.join(self.networks_dir, f"{network}.env")

    def network_rules(self, network: str) -> str:
        """Return the network's nftables rules, as nft -f reads them."""
        return os.path.join(self.networks_dir, f"{network}.nft")

    def dnsmasq_config(self, network: str) -> str:
        """Return the configuration of the network's dnsmasq."""
        return os.path.join(self.networks_dir, f"{network}.dnsmasq.conf")

    def network_dir(self, network: str) -> str:
        """Return the directory of the network's leases and host entries."""
        return os.path.join(self.network_state_dir, network)

    def dhcp_hosts_dir(self, network: str) -> str:
        """Return dnsmasq's dhcp-hostsdir: one file per VM."""
        return os.path.join(self.network_dir(network), "hosts.d")

    def dhcp_host(self, network: str, vm: str) -> str:
        """Return the VM's file in dnsmasq's dhcp-hostsdir."""
        return os.path.join(self.dhcp_hosts_dir(network), vm)

    def leases(self, network: str) -> str:
        """Return dnsmasq's lease file, in a directory of its user."""
        return os.path.join(self.network_dir(network), "dhcp", "leases")

    # an image's files

    def image(self, name: str) -> str:
        """Return the base image."""
        return os.path.join(self.images_dir, f"{name}.qcow2")

    def image_metadata(self, name: str) -> str:
        """Return the metadata of an image: source, digest, default user."""
        return os.path.join(self.images_dir, f"{name}.yaml")

    # locks: flock(2) on files that are never removed; the kernel releases a lock when its holder exits

    def lock(self, name: str) -> str:
        """Return the lock file for a VM's name, `image:NAME`, ADDRESSES, SETUP or TAPS.

        A fixed number of files serves all names of a kind. The kinds share no file: otherwise a command
        that takes the locks of both would wait for itself.
        """
        if name in (ADDRESSES, SETUP, TAPS):
            return os.path.join(self.locks_dir, name[1:])
        kind = "image" if name.startswith("image:") else "vm"
        # With another hash, commands of two versions could change one VM at the same time during an upgrade.
        return os.path.join(self.locks_dir, f"{kind}-{crc32(name.encode()) % LOCK_FILES:02x}")
