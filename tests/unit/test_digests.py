"""Digests: the interpreter's own SHA-256 is that of hashlib."""

from __future__ import annotations

import hashlib

from qsysd import digests


def test_a_digest_is_the_beginning_of_the_sha256() -> None:
    for data in (b"", b"name: web1\n", bytes(range(256)) * 300):
        expected = hashlib.sha256(data).hexdigest()
        assert digests.sha256_digits(data) == expected
        assert digests.digest(data) == expected[:16]
