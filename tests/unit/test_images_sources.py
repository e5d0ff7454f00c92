"""The package archives for an image, on different hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsysd.images import sources
from qsysd.images.sources import Source, host_codename, host_sources, proxies, sources_for

DEB822 = """\
# the distribution
Types: deb deb-src
# http://elsewhere.example/
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
deb [arch=amd64 trusted=yes] http://mirror.example/debian trixie main contrib # ours
deb-src http://mirror.example/debian trixie main
# deb http://off.example/debian trixie main
deb http://mirror.example/security trixie-security main
deb [signed-by=/k.gpg] https://vendor.example/apt stable main
"""


def host(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return str(root)


def test_deb822_sources_of_the_same_suite(tmp_path: Path) -> None:
    root = host(tmp_path, {"etc/apt/sources.list.d/debian.sources": DEB822})
    key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
    assert sources_for("bookworm", "bookworm", host_sources(root)) == [
        f"deb {key}http://mirror.example/debian bookworm main",
        f"deb {key}http://mirror.example/debian bookworm-updates main",
        "deb http://mirror.example/security bookworm-security main",
    ]


def test_one_line_sources_serve_another_suite(tmp_path: Path) -> None:
    root = host(tmp_path, {"etc/apt/sources.list": ONE_LINE})
    assert sources_for("bookworm", "trixie", host_sources(root)) == [
        "deb [trusted=yes] http://mirror.example/debian bookworm main",
        "deb [trusted=yes] http://mirror.example/debian bookworm-updates main",
        "deb http://mirror.example/security bookworm-security main",
    ]


def test_the_archive_of_a_vendor_is_not_used_as_debians(tmp_path: Path) -> None:
    root = host(
        tmp_path, {"etc/apt/sources.list.d/v.list": "deb https://vendor.example/apt bookworm stable\n"}
    )
    assert all("vendor" not in line for line in sources_for("bookworm", "bookworm", host_sources(root)))


@pytest.mark.parametrize("codename", [None, "sid"])
def test_other_hosts_use_debians_own_archive(codename: str | None) -> None:
    found = [Source("http://archive.example/ubuntu", "noble", ("main",))]
    assert sources_for("trixie", codename, found) == [
        f"deb {sources.ARCHIVE} trixie main",
        f"deb {sources.ARCHIVE} trixie-updates main",
        f"deb {sources.SECURITY} trixie-security main",
    ]


def test_folded_fields_and_inline_keys(tmp_path: Path) -> None:
    text = "Types: deb\nURIs: http://a.example\n http://b.example\nSuites: trixie\nComponents: main\n"
    text += "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
    root = host(tmp_path, {"etc/apt/sources.list.d/x.sources": text})
    assert host_sources(root) == [
        Source("http://a.example", "trixie", ("main",)),
        Source("http://b.example", "trixie", ("main",)),
    ]


def test_no_sources_at_all(tmp_path: Path) -> None:
    assert host_sources(str(tmp_path)) == []
    assert host_codename(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "codename"),
    [
        ('ID=debian\nVERSION_CODENAME="trixie"\n', "trixie"),
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "bookworm"),
        ("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n", None),
        ("ID=debian\n", None),
    ],
)
def test_codename(tmp_path: Path, text: str, codename: str | None) -> None:
    assert host_codename(host(tmp_path, {"etc/os-release": text})) == codename


def test_proxies_and_nothing_else_of_the_hosts_apt() -> None:
    config = """\
APT::Architecture "amd64";
Acquire::http::Proxy "http://proxy.example:3142";
Acquire::http::Proxy::deb.example "DIRECT";
Acquire::https::Proxy "";
Acquire::Languages "none";
DPkg::Post-Invoke:: "rm -f /tmp/x";
"""
    assert proxies(config) == [
        'Acquire::http::Proxy "http://proxy.example:3142";',
        'Acquire::http::Proxy::deb.example "DIRECT";',
    ]
