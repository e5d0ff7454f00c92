"""Prepare a host, and put in place what VMs need to go on without the package. Safe to repeat.

What the units call is copied out of the package, to a directory named by its digest, and `current`
points to it: an upgrade changes it in one step, and a removal of the package takes nothing away.
"""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress

from qsysd import config, network, paths, process, render, trees
from qsysd.errors import HostError, QsysdError
from qsysd.files import read_text, write_atomic
from qsysd.operations import keys, transaction
from qsysd.operations.host import Host
from qsysd.operations.qemu import PROGRAM
from qsysd.operations.recovery import recover
from qsysd.spec import NetworkKind, NetworkSpec

DEFAULT_NETWORK = "default"

# What the helper is made of: the lowest floors.
HELPER_MODULES = (
    "__init__", "acceleration", "antispoof", "bridges", "errors", "files", "helper", "paths", "process",
    "roots", "tampering", "taps", "trees", "wire",
)  # fmt: skip
HELPER_MAIN = """\
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from qsysd.helper import main

status = main(sys.argv[1:])
# Not sys.exit: taking the interpreter apart would cost each start and stop some milliseconds.
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""
# ExecStopPost runs after every end. Mostly `stop` has seen to all before it, and at a host's shutdown
# there is nothing to see to: no reason to start Python, twenty times at once.
AFTER_STOP = """\
[ -e {shutdown_mark} ] || [ ! -e {roots_dir}/"$1" ] || exec {helper} after-stop "$1"
"""

DEFAULTS_TEXT = """\
# Defaults of this host for new VMs; remove the # of what is to change.
#accel: auto          # auto, kvm or tcg
#memory: 1G
#cpus: 1
#disk_size: 10G
#network: default
#stop_timeout: 90s
"""


def setup(host: Host) -> list[str]:
    """Prepare this host; return what was done, in words. Nothing is done twice.

    Raises HostError where systemd or a needed program is missing.
    """
    host.require_root()
    done: list[str] = []
    with transaction.locked(host, [paths.SETUP]):
        _directories(host)
        recover(host)
        done += _group()
        done += install_helper(host)
        done += _units(host)
        if read_text(host.scope.defaults_file) is None:
            write_atomic(host.scope.defaults_file, DEFAULTS_TEXT, 0o644)
        keys.host_key(host.scope)
        done += _default_network(host)
        done += _renderings(host)
    return done


def _directories(host: Host) -> None:
    scope = host.scope
    for path, mode in (
        (scope.config_dir, 0o755),
        # definitions and what follows from them may hold what is not for everybody
        (scope.definitions_dir, 0o700),
        (scope.networks_dir, 0o755),
        (scope.state_dir, 0o755),
        (scope.images_dir, 0o755),
        # VMs' directories belong to uids that other services may have had, or may get
        (scope.vms_dir, 0o700),
        (scope.network_state_dir, 0o755),
        (scope.intents_dir, 0o700),
        (scope.known_hosts_dir, 0o700),
        (scope.helper_dir, 0o755),
        (scope.runtime_dir, 0o755),
    ):
        try:
            os.makedirs(path, exist_ok=True)
            os.chmod(path, mode)
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}") from error


def _group() -> list[str]:
    """Make the group kvm, which the unit names: systemd refuses a unit with a group that is not there."""
    import grp

    try:
        grp.getgrnam("kvm")
    except KeyError:
        process.run(["systemd-sysusers", "--inline", "g kvm - -"])
        return ["made the group kvm"]
    return []


def python() -> str:
    """Return the interpreter for the helper: the system's own, which the sandbox can see."""
    system = "/usr/bin/python3"
    return system if os.path.exists(system) else os.path.realpath(sys.executable)


def helper_command(host: Host) -> list[str]:
    """Return the command that units call, without the verb."""
    return [python(), "-I", "-S", "-E", os.path.join(host.scope.helper_dir, "current", "qsysd-helper")]


def after_stop(host: Host) -> str:
    """Return the shell script that the unit's last step runs."""
    return os.path.join(host.scope.helper_dir, "current", "after-stop")


def install_helper(host: Host) -> list[str]:
    """Copy what the units call to a place outside the package."""
    scope = host.scope
    script = AFTER_STOP.format(
        shutdown_mark=scope.shutdown_mark, roots_dir=scope.roots_dir, helper=" ".join(helper_command(host))
    )
    package = os.path.dirname(os.path.dirname(__file__))
    sources = {name: read_text(os.path.join(package, f"{name}.py")) or "" for name in HELPER_MODULES}
    digest = hashlib.sha256("\0".join([HELPER_MAIN, script, *sources.values()]).encode()).hexdigest()[:12]
    directory = os.path.join(scope.helper_dir, digest)
    current = os.path.join(scope.helper_dir, "current")
    if os.path.isdir(directory) and os.path.realpath(current) == os.path.realpath(directory):
        return []
    partial = f"{directory}.part"
    trees.remove(partial)
    os.makedirs(os.path.join(partial, "qsysd"), mode=0o755)
    for name, text in sources.items():
        write_atomic(os.path.join(partial, "qsysd", f"{name}.py"), text, 0o644)
    write_atomic(os.path.join(partial, "qsysd-helper"), HELPER_MAIN, 0o644)
    write_atomic(os.path.join(partial, "after-stop"), script, 0o644)
    # Compiled by the interpreter that will run it, which need not be this one.
    process.run([python(), "-I", "-m", "compileall", "-q", partial])
    trees.remove(directory)
    os.rename(partial, directory)
    link = f"{current}.part"
    if os.path.lexists(link):
        os.unlink(link)
    os.symlink(digest, link)
    previous = os.path.basename(os.path.realpath(current)) if os.path.lexists(current) else None
    os.rename(link, current)
    _remove_old_helpers(host, {digest, previous, "current"})
    return [f"installed the units' helper in {directory}"]


def _remove_old_helpers(host: Host, keep: set[str | None]) -> None:
    """Remove helpers older than the previous one, which may still be in the middle of a stop."""
    for name in os.listdir(host.scope.helper_dir):
        if name not in keep:
            with suppress(QsysdError):  # the next set-up removes it
                trees.remove(os.path.join(host.scope.helper_dir, name))


def _units(host: Host) -> list[str]:
    """Install the units; systemd reads them again only if one has changed."""
    scope = host.scope
    texts = {
        paths.UNIT_TEMPLATE: render.unit(
            scope,
            systemd_version=host.systemd.version(),
            helper=helper_command(host),
            after_stop=after_stop(host),
            qemu=process.require(PROGRAM),
        )
    }
    directory = os.path.join(os.path.dirname(os.path.dirname(__file__)), "units")
    for name in sorted(os.listdir(directory)):
        texts[name] = read_text(os.path.join(directory, name)) or ""
    changed = [name for name, text in texts.items() if read_text(os.path.join(scope.unit_dir, name)) != text]
    for name in changed:
        write_atomic(os.path.join(scope.unit_dir, name), texts[name], 0o644)
    if not changed:
        return []
    host.systemd.reload()
    host.systemd.enable([name for name in texts if "@" not in name and "[Install]" in texts[name]])
    return [f"installed {name}" for name in changed]


def _default_network(host: Host) -> list[str]:
    """Define the network `default` on a subnet that is free on this host, and bring it up."""
    if DEFAULT_NETWORK in host.store.network_names():
        spec = host.store.load_network(DEFAULT_NETWORK)
        done = []
    else:
        taken = [host.store.load_network(name).subnet for name in host.store.network_names()]
        spec = NetworkSpec(DEFAULT_NETWORK, NetworkKind.NAT, network.choose_subnet(taken))
        write_atomic(host.scope.network_definition(spec.name), config.dump_network(spec), 0o644)
        done = [f"made the network {spec.name} on {spec.subnet}"]
    if render_network(host, spec):
        done.append(f"rendered the network {spec.name}")
    return done + _network_up(host, spec.name, changed=bool(done))


def render_network(host: Host, spec: NetworkSpec) -> bool:
    """Write what a network's definition renders to; return whether anything differed."""
    network.prepare(host.scope, spec.name)
    changed = False
    for path, text in render.network_files(spec, host.scope).items():
        if read_text(path) != text:
            write_atomic(path, text, 0o644)
            changed = True
    return changed


def _network_up(host: Host, name: str, *, changed: bool) -> list[str]:
    units = [paths.network_unit(name), paths.dhcp_unit(name)]
    states = host.systemd.states(units)
    down = [unit for unit in units if unit not in states or states[unit].active != "active"]
    if down or changed:
        host.systemd.enable(units)
        for unit in units:
            host.systemd.reset_failed(unit)
            (result,) = host.systemd.run_jobs("RestartUnit", [unit], timeout=60)
            if not result.done:
                from qsysd.operations import journal

                words = journal.failure(host, unit)
                raise QsysdError(
                    f"{unit} did not start: {words or result.result}", hint=f"systemctl status {unit}"
                )
    return [f"started {unit}" for unit in down]


def _renderings(host: Host) -> list[str]:
    """Render the VMs again, for a new version's templates; running VMs go on with what they have."""
    from qsysd.operations import define

    done = []
    for name in host.store.names():
        try:
            if any(define.render_again(host, [name]).values()):
                done.append(f"rendered {name}")
        except QsysdError as error:
            host.tell(f"warning: {error.message}")
    return done
