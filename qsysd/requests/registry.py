"""The operations that can be requested: where each is implemented, and whether it changes anything."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from qsysd.errors import InvalidError
from qsysd.requests.request import Plain


class Effect(StrEnum):
    """Whether an operation only reads, or changes the host."""

    READ = "read"
    CHANGE = "change"


class Operation(NamedTuple):
    """A function of a module of qsysd.operations. Its first parameter is the host.

    dry_run: the parameter with which it changes nothing, "" if it has none.
    """

    module: str
    function: str
    effect: Effect
    dry_run: str = ""

    def changes(self, arguments: Mapping[str, Plain]) -> bool:
        """Return whether a call with these arguments changes anything."""
        return self.effect is Effect.CHANGE and not (self.dry_run and arguments.get(self.dry_run))

    def load(self) -> Callable[..., Any]:
        """Return the function; its module is imported now."""
        module = importlib.import_module(f"qsysd.operations.{self.module}")
        function: Callable[..., Any] = getattr(module, self.function)
        return function


READ, CHANGE = Effect.READ, Effect.CHANGE

OPERATIONS = {
    "vm.create": Operation("create", "create", CHANGE),
    "vm.delete": Operation("delete", "delete", CHANGE, dry_run="dry_run"),
    "vm.edit": Operation("edit", "edit", CHANGE),
    "vm.render": Operation("edit", "render", CHANGE, dry_run="check"),
    "vm.start": Operation("power", "start", CHANGE),
    "vm.stop": Operation("power", "stop", CHANGE),
    "vm.restart": Operation("power", "restart", CHANGE),
    "vm.kill": Operation("power", "kill", CHANGE),
    "vm.reset": Operation("power", "reset", CHANGE),
    "vm.pause": Operation("power", "pause", CHANGE),
    "vm.resume": Operation("power", "resume", CHANGE),
    "vm.enable": Operation("power", "enable", CHANGE),
    "vm.disable": Operation("power", "disable", CHANGE),
    "vm.list": Operation("list", "list_vms", READ),
    "vm.status": Operation("query", "status", READ),
    "vm.show": Operation("query", "show", READ),
    "vm.logs": Operation("logs", "tail", READ),
    "vm.address": Operation("guest", "address", READ),
    "vm.addresses": Operation("guest", "addresses", READ),
    "image.build": Operation("image", "build", CHANGE),
    "image.import": Operation("image", "import_file", CHANGE),
    "image.list": Operation("image", "list_images", READ),
    "image.info": Operation("image", "info", READ),
    "image.remove": Operation("image", "remove", CHANGE, dry_run="dry_run"),
    "host.setup": Operation("setup", "setup", CHANGE),
    "host.recover": Operation("recover", "recover", CHANGE),
    "host.doctor": Operation("doctor", "examine", READ),
}


def find(name: str) -> Operation:
    """Return the operation of a name. Raise InvalidError."""
    try:
        return OPERATIONS[name]
    except KeyError:
        raise InvalidError(f"unknown operation {name!r}") from None
