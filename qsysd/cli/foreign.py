"""Verbs and options of other programs (virsh, incus, docker), with those of qsysd as hints."""

from __future__ import annotations

from collections.abc import Sequence

from qsysd.paths import is_name

# {vm} is replaced by the name on the command line.
WORDS = {
    # virsh and virt-install
    "autostart": "qsysd enable {vm}",
    "blockresize": "a disk cannot be resized in this version",
    "define": "qsysd create --file FILE",
    "destroy": "qsysd kill {vm} switches it off; qsysd delete {vm} removes it with its disks",
    "domblklist": "qsysd status {vm}",
    "domifaddr": "qsysd ip {vm}",
    "domiflist": "qsysd status {vm}",
    "dominfo": "qsysd status {vm}",
    "domstate": "qsysd status {vm}",
    "dumpxml": "qsysd show {vm}",
    "managedsave": "a running VM cannot be saved in this version; qsysd pause {vm} stops its processors",
    "migrate": "a VM cannot be migrated in this version",
    "net-dumpxml": "cat /etc/qsysd/networks/*.yaml",
    "net-list": "systemctl list-units 'qsysd-network@*'; definitions are in /etc/qsysd/networks",
    "net-start": "systemctl start qsysd-network@NETWORK",
    "nodeinfo": "qsysd doctor",
    "save": "a running VM cannot be saved in this version; qsysd pause {vm} stops its processors",
    "setmem": "qsysd edit {vm}",
    "setvcpus": "qsysd edit {vm}",
    "shutdown": "qsysd stop {vm}",
    "snapshot-create": "a VM has no snapshots in this version",
    "suspend": "qsysd pause {vm}",
    "ttyconsole": "qsysd console {vm}",
    "screenshot": "a VM has no graphical display in this version; qsysd console {vm}",
    "undefine": "qsysd delete {vm} removes it with its disks",
    "vncdisplay": "a VM has no graphical display in this version; qsysd console {vm}",
    "vol-list": "qsysd image list",
    # incus, multipass
    "config": "qsysd show {vm}; qsysd edit {vm}",
    "copy": "a VM cannot be copied in this version",
    "exec": "qsysd ssh {vm} -- COMMAND",
    "find": "qsysd image list",
    "info": "qsysd status {vm}",
    "init": "qsysd create {vm} --image debian --no-start",
    "launch": "qsysd create {vm} --image debian",
    "mount": "no directory of the host can be mounted in this version; scp to the address of qsysd ip {vm}",
    "network": "systemctl list-units 'qsysd-network@*'; definitions are in /etc/qsysd/networks",
    "networks": "systemctl list-units 'qsysd-network@*'; definitions are in /etc/qsysd/networks",
    "purge": "qsysd delete {vm} removes it with its disks",
    "recreate": "qsysd delete {vm}; qsysd create {vm} --image debian",
    "shell": "qsysd ssh {vm}",
    "snapshot": "a VM has no snapshots in this version",
    "transfer": "scp to the address that qsysd ip {vm} shows",
    # docker, podman
    "attach": "qsysd console {vm}",
    "build": "qsysd image build debian",
    "images": "qsysd image list",
    "import": "qsysd image import FILE --name NAME",
    "inspect": "qsysd show {vm}; qsysd status {vm} --json",
    "log": "qsysd logs {vm}",
    "ps": "qsysd list",
    "pull": "qsysd image build debian",
    "rmi": "qsysd image rm IMAGE",
    "run": "qsysd create {vm} --image debian",
    "top": "systemd-cgtop machine.slice",
    "unpause": "qsysd resume {vm}",
    # docker compose, vagrant
    "down": "qsysd stop {vm}",
    "tail": "qsysd logs {vm} --follow",
    "up": "qsysd start {vm}; qsysd create {vm} --image debian",
    # systemctl
    "cat": "systemctl cat qemu-vm@{vm}",
    "daemon-reload": "qsysd render; systemctl daemon-reload",
    "halt": "qsysd stop {vm}",
    "is-active": "systemctl is-active qemu-vm@{vm}",
    "is-enabled": "systemctl is-enabled qemu-vm@{vm}",
    "list-units": "qsysd list",
    "mask": "qsysd disable {vm}",
    "poweroff": "qsysd stop {vm}",
    "reboot": "qsysd restart {vm}",
    "reload": "qsysd restart {vm}",
    "reset-failed": "qsysd start {vm}",
    # common words
    "add": "qsysd create {vm} --image debian",
    "clone": "a VM cannot be copied in this version",
    "connect": "qsysd ssh {vm}; qsysd console {vm}",
    "login": "qsysd ssh {vm}",
    "new": "qsysd create {vm} --image debian",
    "remove": "qsysd delete {vm}",
    "rename": "a VM cannot be renamed",
    "resize": "a disk cannot be resized in this version; qsysd edit {vm} changes memory and CPUs",
    "upgrade": "apt install --only-upgrade qsysd",
    "version": "qsysd --version",
}

IMAGE_WORDS = {
    "add": "qsysd image import FILE --name NAME",
    "create": "qsysd image build debian; qsysd image import FILE --name NAME",
    "delete": "qsysd image rm IMAGE",
    "download": "qsysd image build debian; qsysd image import FILE --name NAME",
    "inspect": "qsysd image info IMAGE",
    "ls": "qsysd image list",
    "pull": "qsysd image build debian; qsysd image import FILE --name NAME",
    "remove": "qsysd image rm IMAGE",
    "show": "qsysd image info IMAGE",
}


_NIC = "--nic network=default,mac=52:54:00:12:34:56,address=10.83.0.50"

# verb → an option that it does not have, but that virt-install, incus or docker have
OPTIONS = {
    "create": {
        "--address": _NIC,
        "--bridge": "--network NAME; networks are in /etc/qsysd/networks",
        "--cdrom": "an installation from a CD is not possible in this version; --image debian",
        "--ip": _NIC,
        "--mac": _NIC,
        "--mac-address": _NIC,
        "--name": "qsysd create NAME: the name is an argument",
        "--net": "--network NAME",
        "--os-variant": "leave it out: the guest's system is that of its image",
        "--ram": "--memory SIZE",
        "--size": "--disk SIZE",
    },
}

# an option that was given without its value
VALUES = {"--image": "--image debian; qsysd image list shows the images"}


def instead(word: str, arguments: Sequence[str], *, image: bool) -> str | None:
    """Return what to type instead of another program's verb, or None for an unknown word.

    image: whether it was typed after `qsysd image`.
    """
    text = (IMAGE_WORDS if image else WORDS).get(word)
    return text and text.format(vm=next(filter(is_name, arguments), "VM"))
