"""Models → definitions in YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsysd.config.nodes import is_too_large, yaml_library
from qsysd.errors import InvalidError
from qsysd.model.defaults import Defaults
from qsysd.model.field import Declaration, Inline, ListOf, declarations
from qsysd.model.network import NetworkSpec
from qsysd.model.vm import VMSpec


def dump_vm(spec: VMSpec) -> str:
    """Return the definition of a VM; empty values are left out."""
    return dump(plain(spec))


def dump_network(spec: NetworkSpec) -> str:
    """Return the definition of a network."""
    return dump(plain(spec))


def commented(defaults: Defaults) -> str:
    """Return a file of defaults in which every key is commented out, with its built-in default."""
    lines = dump(plain(defaults)).splitlines()
    start = (
        "# Defaults of this host for new VMs. Remove the # of a key to change its value (man qsysd.yaml).\n"
    )
    return start + "".join(f"#{line}\n" for line in lines)


def plain(spec: Any) -> dict[str, Any]:
    """Return a model as the plain mapping that `load` reads."""
    document: dict[str, Any] = {}
    for name, declared in declarations(type(spec)).items():
        value = getattr(spec, name)
        if isinstance(declared.kind, Inline):
            document |= plain(value) if value is not None else {}
        elif not _is_implied(declared, value):
            document[declared.key] = _written(declared, value)
    return document


def _is_implied(declared: Declaration, value: Any) -> bool:
    """Return whether a definition without the key means this value: an empty one.

    `nics: []` is a VM without a NIC; without the key it would get one. A default that is not empty is
    written, since the host's defaults can change.
    """
    return value is None or value == "" or (value == () and declared.absent is None)


def _written(declared: Declaration, value: Any) -> Any:
    kind = declared.kind
    if not isinstance(kind, ListOf):
        assert not isinstance(kind, Inline)
        return kind.write(value)
    if isinstance(kind.item, type):
        return [plain(item) for item in value]
    return [kind.item.write(item) for item in value]


def dump(document: Mapping[str, Any]) -> str:
    """Return a document as YAML, in the order of its keys.

    Raise InvalidError for what is not UTF-8, and for what `load` refuses to read because of its length.
    """
    yaml = yaml_library()
    try:
        text: str = yaml.dump(
            dict(document),
            Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper),
            sort_keys=False,
            default_flow_style=False,
            allow_unicode=True,
            width=1000,
        )
    except UnicodeError as error:
        raise InvalidError("a value is not UTF-8 text", hint="write it in a file, with --file") from error
    if is_too_large(text):
        raise InvalidError("too long for a definition, or too deeply nested", hint="use shorter lists")
    return text
