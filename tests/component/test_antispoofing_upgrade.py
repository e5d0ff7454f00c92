"""The anti-spoofing table of an earlier version is migrated while its VMs run."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path

import pytest
from network_host import (
    FREE,
    GATEWAY,
    MINE,
    OWNER,
    THEIRS,
    WEB1,
    WEB2,
    NetworkHost,
    anti_spoofing,
    datagram,
    interfaces,
)
from wire import Guest

from qsysd.runtime import antispoof, bridges, nftables, taps
from qsysd.runtime.ports import Port

pytestmark = pytest.mark.needs_root


# Current and earlier names of the sets; the rules in earlier_antispoof.nft use the earlier ones.
EARLIER = {"addresses": "held", "macs": "free"}


def earlier_elements(verb: str, *ports: Port) -> str:
    """Return the commands with which an earlier version adds or deletes the elements of one VM."""
    return "".join(
        f"{verb} element bridge qsysd {EARLIER.get(name, name)} {{ {', '.join(texts)} }}\n"
        for name, texts in antispoof.elements(ports).items()
    )


@pytest.fixture
def earlier(net: NetworkHost) -> tuple[Guest, Guest]:
    """Return guests, with an address and without, that an earlier version has plugged in."""
    guests = net.plug(WEB1), net.plug(FREE)
    antispoof.remove()
    rules = Path(__file__).with_name("earlier_antispoof.nft").read_text(encoding="utf-8")
    nftables.run(rules + earlier_elements("add", WEB1) + earlier_elements("add", FREE))
    assert guests[0].gateway_mac(GATEWAY) == bridges.mac("default")
    return guests


def assert_protected(net: NetworkHost, earlier: tuple[Guest, Guest], *more: Port) -> None:
    """Fail unless the current rules are in force, and let the earlier guests send as themselves only."""
    assert antispoof.protected_taps() == {port.tap for port in (WEB1, FREE, *more)}
    assert "@addresses" in anti_spoofing() and "@held" not in anti_spoofing()
    guest, listener = earlier
    guest.send(datagram(MINE, 4000, 4000))
    assert listener.receives(b"hello")
    guest.send(datagram(THEIRS, 4000, 4000))
    assert not listener.receives(b"hello", timeout=0.2)


def test_a_start_migrates_the_rules_of_an_earlier_version(
    net: NetworkHost, earlier: tuple[Guest, Guest]
) -> None:
    other = net.plug(WEB2)
    assert_protected(net, earlier, WEB2)
    assert other.gateway_mac(GATEWAY) == bridges.mac("default")


def test_a_stop_migrates_the_rules_of_an_earlier_version(
    net: NetworkHost, earlier: tuple[Guest, Guest]
) -> None:
    taps.plug(net.scope, [WEB2], OWNER, "web2")
    antispoof.remove()
    rules = Path(__file__).with_name("earlier_antispoof.nft").read_text(encoding="utf-8")
    nftables.run(rules + "".join(earlier_elements("add", port) for port in (WEB1, FREE, WEB2)))
    taps.unplug(net.scope, [WEB2], "web2")
    assert WEB2.tap not in interfaces()
    assert_protected(net, earlier)


def test_a_stop_migrates_the_rules_only_when_no_other_vm_starts_or_stops(
    net: NetworkHost, earlier: tuple[Guest, Guest]
) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with taps.Lock(net.scope):  # as a start between its TAP and its elements
            stop = pool.submit(taps.unplug, net.scope, [WEB2], "web2")
            with pytest.raises(TimeoutError):
                stop.result(timeout=0.5)
            assert "@held" in anti_spoofing()
        stop.result(timeout=20)
    assert_protected(net, earlier)


def test_the_start_of_a_network_migrates_the_rules_of_an_earlier_version(
    net: NetworkHost, earlier: tuple[Guest, Guest]
) -> None:
    bridges.up(net.scope, net.environment)
    assert_protected(net, earlier)
    assert bridges.up(net.scope, net.environment) == []


def test_the_periodic_check_migrates_the_rules_of_an_earlier_version(
    net: NetworkHost, earlier: tuple[Guest, Guest]
) -> None:
    assert taps.restore_missing_rules(net.scope) == sorted([WEB1.tap, FREE.tap])
    assert_protected(net, earlier)
    assert taps.restore_missing_rules(net.scope) == []


def test_a_stop_that_an_earlier_version_has_begun_ends_after_the_migration(
    net: NetworkHost, earlier: tuple[Guest, Guest]
) -> None:
    bridges.up(net.scope, net.environment)
    nftables.run(earlier_elements("add", WEB1) + earlier_elements("delete", WEB1))
    assert_protected(net, earlier)


def test_the_periodic_check_replaces_rules_that_an_earlier_version_loads_after_the_migration(
    net: NetworkHost, earlier: tuple[Guest, Guest]
) -> None:
    bridges.up(net.scope, net.environment)
    rules = Path(__file__).with_name("earlier_antispoof.nft").read_text(encoding="utf-8")
    nftables.run(rules)
    assert taps.restore_missing_rules(net.scope) == sorted([WEB1.tap, FREE.tap])
    assert_protected(net, earlier)
