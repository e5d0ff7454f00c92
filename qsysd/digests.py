"""SHA-256 without `hashlib`, which loads OpenSSL: 2.4 ms of each start of a VM."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 12):
    from _sha2 import sha256  # type: ignore[import-not-found]
else:
    from _sha256 import sha256  # type: ignore[import-not-found]


def sha256_digits(data: bytes) -> str:
    """Return the SHA-256 of some bytes as 64 hexadecimal digits."""
    return str(sha256(data).hexdigest())


def digest(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of some bytes."""
    return sha256_digits(data)[:16]
