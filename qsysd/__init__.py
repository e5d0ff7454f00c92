"""qsysd runs QEMU virtual machines as ordinary systemd units."""

__version__ = "0.1.0"
