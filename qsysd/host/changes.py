"""Privileges, recovery and locks of verbs that change a host."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qsysd import paths
from qsysd.host import intents, locks, selection
from qsysd.host.context import Host

# The names of staging directories of images; importing that package takes too long for this check.
STAGING_PREFIX, STAGING_SUFFIX = ".", ".part"


@contextmanager
def changing(
    host: Host,
    names: Sequence[str] | None,
    *,
    exclusive: bool = True,
    ready: bool = False,
    images: Sequence[str] = (),
    addresses: bool = False,
) -> Iterator[list[str]]:
    """Hold the locks of VMs that a verb changes; yield the VMs, each once.

    names: None for all VMs of this host. exclusive: False for verbs such as start and stop, which share
    the locks, so that `kill` can proceed while a `stop` waits. ready: whether the host must be set up.
    images: base images that must not change meanwhile. addresses: whether addresses are allocated.

    Changes of killed commands are recovered first. The order of the locks is VMs, images, ADDRESSES.
    Raise QsysdError for every user except root, HostError, TimeoutExpired, InvalidError.
    """
    vms = begin(host, names, ready=ready)
    with (
        locks.locked(host, vms, exclusive=exclusive),
        locks.locked(host, map(locks.of_image, images), exclusive=False),
        locks.locked(host, [paths.ADDRESSES] if addresses else []),
    ):
        yield selection.still_existing(host, names, vms)


@contextmanager
def changing_images(host: Host, names: Sequence[str]) -> Iterator[None]:
    """Hold the locks of images that a verb changes, after recovery. Raise as `changing` does."""
    host.require_root()
    recover(host)
    with locks.locked(host, map(locks.of_image, names)):
        yield


@contextmanager
def setting_up(host: Host) -> Iterator[None]:
    """Hold the lock of the host's set-up, and recover. Raise as `changing` does."""
    host.require_root()
    with locks.locked(host, [paths.SETUP]):
        recover(host)
        yield


def begin(host: Host, names: Sequence[str] | None, *, ready: bool = False) -> list[str]:
    """Require privilege and recover as `changing` does, and return the VMs.

    For verbs that choose their locks afterwards.
    """
    if ready:
        host.require_ready()
    else:
        host.require_root()
    recover(host)
    return selection.resolve(host, names)


def recover(host: Host) -> None:
    """Recover the changes of killed commands, if any."""
    if intents.pending(host.scope) or _has_staging(host):
        # A seam: recovery imports everything that a delete needs, and is rarely needed.
        from qsysd.host import recovery

        recovery.recover(host)


def _has_staging(host: Host) -> bool:
    """Return whether a staging directory of an image exists: of a running or of a killed command."""
    try:
        entries = os.listdir(host.scope.images_dir)
    except OSError:
        return False
    return any(entry.startswith(STAGING_PREFIX) and entry.endswith(STAGING_SUFFIX) for entry in entries)
