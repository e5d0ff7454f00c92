"""The package archive for an image: that of the host, or Debian's.

A host that uses a mirror or a proxy can build images as well: the entries of its apt sources for its own
suite are used for the suite of the image. See sources.list(5).
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

ARCHIVE = "http://deb.debian.org/debian"
SECURITY = "http://deb.debian.org/debian-security"
ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.*)"
)
# Options that decide whether an archive is trusted; other options concern the packages of the host.
KEPT = ("signed-by", "trusted")


@dataclass(frozen=True)
class Source:
    """An archive, a suite and its options, from the apt sources of a host."""

    uri: str
    suite: str
    components: tuple[str, ...]
    options: str = ""


def host_codename(root: str = "/") -> str | None:
    """Return the codename of the host's Debian release, None on another system."""
    values: dict[str, str] = {}
    try:
        with open(os.path.join(root, "etc/os-release"), encoding="utf-8") as file:
            for line in file:
                key, _, value = line.strip().partition("=")
                values[key] = value.strip("\"'")
    except OSError:
        return None
    return values.get("VERSION_CODENAME") if values.get("ID") == "debian" else None


def host_sources(root: str = "/") -> list[Source]:
    """Return the entries of the host's apt sources, in the order in which apt reads them."""
    base = os.path.join(root, "etc/apt")
    paths = [os.path.join(base, "sources.list")]
    for suffix in ("list", "sources"):
        paths += sorted(glob.glob(os.path.join(base, "sources.list.d", f"*.{suffix}")))
    found: list[Source] = []
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            continue
        found += _stanzas(text) if path.endswith(".sources") else _lines(text)
    return found


def _lines(text: str) -> Iterator[Source]:
    """Yield the sources of a file in the one-line style."""
    for line in text.splitlines():
        match = ONE_LINE.fullmatch(line.split("#", 1)[0].strip())
        if match:
            options = [word for word in (match["options"] or "").split() if word.partition("=")[0] in KEPT]
            yield Source(match["uri"], match["suite"], tuple(match["components"].split()), " ".join(options))


def _stanzas(text: str) -> Iterator[Source]:
    """Yield the sources of a file in deb822 style. Embedded keys (not in a file) are omitted."""
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", kept):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t"):
                fields[key] = fields.get(key, "") + " " + line.strip()
            else:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        options = [f"{name}={fields[name]}" for name in KEPT if name in fields and " " not in fields[name]]
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(uri, suite, tuple(fields.get("components", "").split()), " ".join(options))


def sources_for(suite: str, codename: str | None, sources: list[Source]) -> list[str]:
    """Return the lines of a sources.list for `suite`.

    codename: the suite of the host, for which `sources` were written.
    """
    own = [source for source in sources if "main" in source.components]
    archive = next((source for source in own if codename and source.suite == codename), None)
    security = next((source for source in own if codename and source.suite == f"{codename}-security"), None)
    if archive is None:
        archive, security = Source(ARCHIVE, suite, ("main",)), Source(SECURITY, suite, ("main",))
    lines = [_line(archive, suite), _line(archive, f"{suite}-updates")]
    if security is not None:
        lines.append(_line(security, f"{suite}-security"))
    return lines


def _line(source: Source, suite: str) -> str:
    """Return a source as a line of sources.list(5), for another suite."""
    options = f"[{source.options}] " if source.options else ""
    return f"deb {options}{source.uri} {suite} main"


def proxies(config: str) -> list[str]:
    """Return the lines of `apt-config dump` that configure proxies."""
    wanted = re.compile(r'Acquire::(?:\w+::)?Proxy\S* ".+";')
    return [line for line in config.splitlines() if wanted.fullmatch(line.strip())]
