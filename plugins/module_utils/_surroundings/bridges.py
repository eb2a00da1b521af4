# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The network interfaces of a VM on its host (taps), and the bridge into which each was put.

A tap that QEMU itself makes goes with QEMU. Where a script of ``-netdev tap,script=`` or the bridge helper put it into
a bridge, the same does it again. Where somebody else did, after QEMU's start, nobody does: the restore puts it there
again before the guest runs, or its guest would come back without a network. A tap that stays (``ip tuntap add``) stays
in its bridge, but is gone after a reboot of the host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._proc import proc_path, read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

_MAX_DESCRIPTORS = 16384
_MAX_TAPS = 64

#: Of a network interface that stays when nobody has it open (IFF_PERSIST).
_PERSISTS = 0x800

_NAME = re.compile(r"[^\s/]{1,15}")

#: Seconds that a change of an interface may take.
_TIMEOUT = 10.0

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclasses.dataclass(frozen=True)
class Tap:
    """An interface that QEMU has open."""

    name: str
    #: The bridge that it is in; empty for none.
    bridge: str = ""
    #: Whether it is there without QEMU.
    persists: bool = False
    #: Whether it gets the same name when QEMU is started again.
    named: bool = True


def find_taps(process: QemuProcess) -> list[Tap]:
    """Those of a running QEMU, in the network namespace of this process; never raises."""
    settings = process.configuration.of("netdev", "nic", "net")
    if not any(setting.keys.get("type") in ("tap", "bridge") for setting in settings):
        return []
    names: list[str] = []
    with contextlib.suppress(OSError):
        if os.readlink(proc_path(process.pid, "ns/net")) != os.readlink(proc_path("self", "ns/net")):
            return []
        for entry in os.listdir(proc_path(process.pid, "fdinfo"))[:_MAX_DESCRIPTORS]:
            with contextlib.suppress(OSError):
                text = read_proc(process.pid, f"fdinfo/{entry}").decode("utf-8", "replace")
                names += re.findall(r"^iff:\s*([^\s/]+)$", text, re.MULTILINE)
    given = {setting.keys.get("ifname", "") for setting in settings}
    return [
        Tap(
            name,
            bridge=_bridge_of(name),
            persists=bool(_number(name, "tun_flags") & _PERSISTS),
            named=name in given and "%" not in name,
        )
        for name in list(dict.fromkeys(names))[:_MAX_TAPS]
    ]


def tap_problems(taps: t.Iterable[Tap], process: QemuProcess, by_unit: bool) -> list[Problem]:
    """What a restore could not do for them."""
    if by_unit:
        return []
    problems = []
    for tap in taps:
        if tap.persists:
            problems.append(
                Problem(
                    "tap_needed",
                    f"its network interface {tap.name} was made beside its QEMU, and is not there any more after a"
                    " reboot of the host",
                    "Have the host make it at each boot, before the restore (systemd-networkd, ifupdown,"
                    " NetworkManager), or let QEMU make it",
                    blocks=False,
                )
            )
        elif tap.bridge and not tap.named and not _is_put_by_qemu(process):
            problems.append(
                Problem(
                    "bridge_lost",
                    f"its network interface {tap.name} is in the bridge {tap.bridge}, and has another name after a"
                    " restore, so nothing puts it there again",
                    "Give it a name (ifname=) or a script that does that (script=) in the VM's configuration",
                    blocks=False,
                )
            )
    return problems


def _is_put_by_qemu(process: QemuProcess) -> bool:
    """Whether a script, or the bridge helper, puts the interfaces of a QEMU into their bridges."""
    settings = process.configuration.of("netdev", "nic", "net")
    keys = [each.keys for each in settings if each.keys.get("type") in ("tap", "bridge")]
    return all(each.get("type") == "bridge" or "helper" in each or each.get("script", "") != "no" for each in keys)


def missing_taps(recorded: t.Iterable[Tap]) -> list[Tap]:
    """Those that stood without QEMU, and are not there any more."""
    return [tap for tap in recorded if tap.persists and not os.path.exists(f"/sys/class/net/{tap.name}")]


def put_into_bridges(recorded: t.Iterable[Tap], opened: t.Iterable[Tap]) -> list[str]:
    """Put what a QEMU has opened into the bridges where the recorded ones were; what could not be done, as sentences.

    An interface that is in a bridge already stays there.
    """
    now = {tap.name: tap for tap in opened}
    failed = []
    for tap in recorded:
        if not tap.bridge or not tap.named or (tap.name in now and now[tap.name].bridge):
            continue
        reason = "QEMU does not have it now" if tap.name not in now else _put(tap.name, tap.bridge)
        if reason:
            failed.append(
                f"The network interface {tap.name} was in the bridge {tap.bridge} when the VM ran before, and is not"
                f" now: {reason}"
            )
    return failed


def _put(name: str, bridge: str) -> str:
    if os.geteuid() != 0:
        return "only root can put it there"
    if not _NAME.fullmatch(name) or not _NAME.fullmatch(bridge) or not os.path.isdir(f"/sys/class/net/{bridge}/bridge"):
        return f"there is no bridge {bridge} on this host"
    tool = shutil.which("ip", path=_PATH)
    if tool is None:
        return "ip (iproute2) is not on this host"
    for change in (("master", bridge), ("up",)):
        try:
            done = subprocess.run(
                [tool, "link", "set", "dev", name, *change],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            return str(exc)
        if done.returncode:
            return done.stderr.strip()[:500] or f"ip ended with {done.returncode}"
    return ""


def _bridge_of(name: str) -> str:
    with contextlib.suppress(OSError):
        place = os.readlink(f"/sys/class/net/{name}/master")
        if os.path.isdir(f"/sys/class/net/{name}/master/bridge"):
            return os.path.basename(place)
    return ""


def _number(name: str, key: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(read_bounded(f"/sys/class/net/{name}/{key}", 64), 0)
    return 0
