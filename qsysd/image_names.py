"""Valid names of images, and hints for names that are not valid or do not exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from qsysd.names import closest

NAME_RULE = "[a-z][a-z0-9.-]{0,62}"
NAME = re.compile(NAME_RULE)
DISK_SUFFIXES = (".qcow2", ".img", ".raw", ".vmdk", ".vdi", ".vhdx", ".iso")
RECIPES = ("debian",)
SUITES = {"12": "bookworm", "13": "trixie"}


class RefusedName(ValueError):
    """A text that is not a valid name of an image. hint: what to use instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def checked(text: str) -> str:
    """Return the text. Raise RefusedName unless it is a valid name of an image."""
    if NAME.fullmatch(text):
        return text
    if "/" in text or text.endswith(DISK_SUFFIXES):
        raise RefusedName(f"{text!r} is not a valid name of an image: it is a file", import_command(text))
    name, _, version = text.lower().partition(":")
    if version and NAME.fullmatch(name):
        hint = f"did you mean {name!r}? A release: qsysd image build {name} --suite SUITE --name NAME"
        raise RefusedName(f"{text!r} is not a valid name of an image: images have no tags", hint)
    hint = f"did you mean {name!r}?" if NAME.fullmatch(name) else "qsysd image list"
    raise RefusedName(f"{text!r} is not a valid name of an image; allowed is {NAME_RULE}", hint)


def instead(name: str, known: Iterable[str]) -> str:
    """Return a hint for an image that does not exist. known: the images that exist or can be built."""
    if name.endswith(DISK_SUFFIXES):
        return import_command(name)
    release = name.removeprefix("debian").removeprefix("-")
    if release in (*SUITES, *SUITES.values()):
        return f"qsysd image build debian --suite {SUITES.get(release, release)} --name {name}"
    near = closest(name, known)
    if near:
        return f"did you mean {near!r}?"
    return "qsysd image list shows the images; qsysd image import FILE --name NAME adds one"


def import_command(path: str) -> str:
    """Return the commands that create an image from a disk file and use it. Its name is that of the file."""
    stem = path.rpartition("/")[2].lower().partition(".")[0]
    name = re.sub("[^a-z0-9-]+", "-", stem).strip("-")[:63]
    name = name if NAME.fullmatch(name) else "NAME"
    return f"qsysd image import {shlex.quote(path)} --name {name}; then --image {name}"
