"""The image `debian`, built by `qsysd image build debian` on a host and stored in the lab's cache.

The key in the cache is a digest of the code that builds the image, so a change to it builds the image again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from labhost import Host, cache_folder

REPOSITORY = Path(__file__).parents[2]
IN_HOST = "/var/lib/qsysd/images"
FILES = ("debian.qcow2", "debian.yaml")


def folder(lab: Path, suite: str) -> Path:
    """Return the directory of a suite's image in the cache, which need not exist."""
    digest = hashlib.sha256(suite.encode())
    for source in sorted((*REPOSITORY.glob("qsysd/images/*.py"), *REPOSITORY.glob("templates/image-*"))):
        digest.update(source.read_bytes())
    return cache_folder(lab) / f"image-{suite}-{digest.hexdigest()[:12]}"


def put(host: Host, suite: str) -> bool:
    """Copy the image from the cache to a host; return whether the cache has it."""
    kept = folder(host.lab, suite)
    if not kept.is_dir():
        return False
    for name in FILES:
        host.put(kept / name, f"{IN_HOST}/{name}")
    return True


def keep(host: Host, suite: str) -> None:
    """Copy the image from a host to the cache; remove older images of its suite."""
    kept = folder(host.lab, suite)
    part = kept.with_name(f".{kept.name}.{os.getpid()}")
    part.mkdir(parents=True)
    for name in FILES:
        host.get(f"{IN_HOST}/{name}", part / name)
    for old in kept.parent.glob(f"image-{suite}-*"):
        shutil.rmtree(old)
    part.rename(kept)
