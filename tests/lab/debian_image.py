"""The image `debian`, built once by `qsysd image build debian` in a host and kept in the lab's cache.

It is kept under a key of the code that built it, so a change of the recipe builds it anew. What is put
into another host is what the build left there, file and note.
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
    """Return where the cache keeps the image of a suite, there or not."""
    digest = hashlib.sha256(suite.encode())
    for source in sorted((*REPOSITORY.glob("qsysd/images/*.py"), *REPOSITORY.glob("templates/image-*"))):
        digest.update(source.read_bytes())
    return cache_folder(lab) / f"image-{suite}-{digest.hexdigest()[:12]}"


def put(host: Host, suite: str) -> bool:
    """Put the kept image into a host with qsysd; return whether there was one."""
    kept = folder(host.lab, suite)
    if not kept.is_dir():
        return False
    for name in FILES:
        host.put(kept / name, f"{IN_HOST}/{name}")
    return True


def keep(host: Host, suite: str) -> None:
    """Take the image that was built in a host into the cache, in place of older ones of its suite."""
    kept = folder(host.lab, suite)
    part = kept.with_name(f".{kept.name}.{os.getpid()}")
    part.mkdir(parents=True)
    for name in FILES:
        host.get(f"{IN_HOST}/{name}", part / name)
    for old in kept.parent.glob(f"image-{suite}-*"):
        shutil.rmtree(old)
    part.rename(kept)
