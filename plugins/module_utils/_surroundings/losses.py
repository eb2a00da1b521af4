# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was set in a running QEMU only, is no part of its guest, and is therefore gone after a restore."""

from __future__ import annotations

import collections
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Configuration, Setting
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_graph import BlockAnswers
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

_ON = ("on", "yes", "true", "y")

#: A forwarded port in ``info usernet``: protocol, descriptor, address and port on the host, and in the guest.
_FORWARD_ROW = re.compile(r"\s*(?P<protocol>TCP|UDP)\[HOST_FORWARD\]\s+\d+\s+(?P<host>\S+)\s+(?P<port>\d+)\s")

#: One of the configuration: ``tcp:127.0.0.1:2222-:22``, ``::2222-:22``.
_FORWARD = re.compile(r"(?P<protocol>tcp|udp|):(?P<host>\[[^]]*\]|[^:]*):(?P<port>[0-9]+)-.*")

#: The limits of a disk in ``query-block``, and each one's names in a configuration.
_LIMITS = {
    "bps": ("throttling.bps-total", "bps"),
    "bps_rd": ("throttling.bps-read", "bps_rd"),
    "bps_wr": ("throttling.bps-write", "bps_wr"),
    "iops": ("throttling.iops-total", "iops"),
    "iops_rd": ("throttling.iops-read", "iops_rd"),
    "iops_wr": ("throttling.iops-write", "iops_wr"),
}


async def runtime_losses(monitor: Monitor, configuration: Configuration, block: BlockAnswers) -> list[Problem]:
    """What a restore by the configuration does not bring back, without harm to the guest's data; none of it blocks.

    Kinds: ``vnc_password``, ``spice_password``, ``host_forward``, ``throttle``, ``write_threshold``. What this QEMU
    has no command for is left out. The size of the balloon is none: it is a part of the guest's state.

    :raises MonitorError: QEMU cannot be asked.
    """
    losses = _lost_passwords(configuration)
    if configuration.unknown:
        return losses  # what was set from the start cannot be told from what was set later
    if _has_user_network(configuration):  # one that was added since is found by itself
        losses += _changed_forwards(await _usernet(monitor), configuration)
    return [*losses, *_changed_limits(block.drives, configuration), *_thresholds(block.drives)]


# --- passwords ---


def _lost_passwords(configuration: Configuration) -> list[Problem]:
    """Displays whose password can have come over a monitor only; QEMU does not say what it is."""
    losses = []
    displays = [setting.keys for setting in configuration.of("vnc", "display")]
    displays = [keys for keys in displays if keys.get("vnc", "none") != "none" and "password-secret" not in keys]
    if any(keys.get("password") in _ON for keys in displays):
        losses.append(_lost_password("VNC", "vnc"))
    spice: dict[str, str] = {}
    for setting in configuration.of("spice"):
        spice.update(setting.keys)
    authenticates = spice.get("disable-ticketing") not in _ON and spice.get("sasl") not in _ON
    if spice and authenticates and "password" not in spice and "password-secret" not in spice:
        losses.append(_lost_password("SPICE", "spice"))
    return losses


def _lost_password(display: str, protocol: str) -> Problem:
    return Problem(
        f"{protocol}_password",
        f"the password of its {display} display was set over a monitor and will not be there after a restore",
        f"Set it again afterwards (set_password), or give it to QEMU as a secret (-{protocol} …,password-secret=)",
        blocks=False,
    )


# --- forwarded ports ---


def _has_user_network(configuration: Configuration) -> bool:
    """Whether a network backend of it is QEMU's own (``user``), which it gives a VM for which nothing else is said."""
    settings = configuration.of("netdev", "nic", "net")
    if not settings:
        return not configuration.of("nodefaults")
    return any(setting.keys.get("type", "user") == "user" for setting in settings)


async def _usernet(monitor: Monitor) -> list[str]:
    text = await monitor.execute_if_known("human-monitor-command", {"command-line": "info usernet"})
    return str(text or "").splitlines()


def _changed_forwards(lines: t.Iterable[str], configuration: Configuration) -> t.Iterator[Problem]:
    """Ports that were forwarded or taken back since the start; QEMU itself chooses one where port 0 is configured."""
    rows = filter(None, map(_FORWARD_ROW.match, lines))
    actual = collections.Counter((row.group("protocol").lower(), row.group("port")) for row in rows)
    rules = [
        value
        for setting in configuration.of("netdev", "nic", "net")
        for key, value in setting.pairs
        if re.fullmatch(r"hostfwd(?:\.\d+\.str)?", key)
    ]
    matches = filter(None, map(_FORWARD.fullmatch, rules))
    expected = collections.Counter((match.group("protocol") or "tcp", match.group("port")) for match in matches)
    chosen = {protocol: expected.pop((protocol, "0"), 0) for protocol in ("tcp", "udp")}
    for protocol, port in (actual - expected).elements():
        if chosen[protocol]:
            chosen[protocol] -= 1
            continue
        yield _changed_forward(protocol, port, "forwarded after the VM's start and will not be after a restore")
    for protocol, port in (expected - actual).elements():
        yield _changed_forward(protocol, port, "taken back after the VM's start and will be forwarded after a restore")


def _changed_forward(protocol: str, port: str, what: str) -> Problem:
    return Problem(
        "host_forward",
        f"the host's port {port}/{protocol} was {what}",
        "Change it again afterwards (hostfwd_add, hostfwd_remove), or hostfwd= in the VM's configuration",
        blocks=False,
    )


# --- disks ---


def _changed_limits(disks: t.Iterable[t.Mapping[str, t.Any]], configuration: Configuration) -> t.Iterator[Problem]:
    drives = configuration.of("drive")
    by_id = {setting.keys["id"]: setting for setting in drives if "id" in setting.keys}
    # QEMU has given a name of its own to a drive without one, and the members of a group share their limits.
    unnamed = [_limits(setting) for setting in drives if "id" not in setting.keys]
    none = tuple("0" for _limit in _LIMITS)
    for disk in disks:
        inserted = disk.get("inserted")
        if not inserted:
            continue
        name = disk.get("device") or disk.get("qdev") or ""
        actual = tuple(str(inserted.get(limit, 0)) for limit in _LIMITS)
        own = by_id.get(name)
        group = own.keys.get("throttling.group") if own else None
        if own is None:
            allowed = [none, *unnamed] if disk.get("device") else [none]
        elif group is None:
            allowed = [_limits(own)]
        else:
            allowed = [_limits(setting) for setting in drives if setting.keys.get("throttling.group") == group]
        if actual not in allowed:
            yield Problem(
                "throttle",
                f"the limits of {name or 'a disk'} were changed after the VM's start and will be those of its"
                " configuration after a restore",
                "Set them again afterwards (block_set_io_throttle), or with throttling. in the VM's configuration",
                blocks=False,
            )


def _limits(drive: Setting) -> tuple[str, ...]:
    """As they are in ``query-block``."""
    return tuple(next((drive.keys[key] for key in keys if key in drive.keys), "0") for keys in _LIMITS.values())


def _thresholds(disks: t.Iterable[t.Mapping[str, t.Any]]) -> t.Iterator[Problem]:
    for disk in disks:
        if disk.get("inserted", {}).get("write_threshold"):
            yield Problem(
                "write_threshold",
                f"{disk.get('device') or disk.get('qdev') or 'a disk'} has a write threshold, which will not be there"
                " after a restore",
                "Set it again afterwards (block-set-write-threshold), where what set it does not do that",
                blocks=False,
            )
