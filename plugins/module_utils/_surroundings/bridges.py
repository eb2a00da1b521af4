# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The network interfaces of a VM on its host (taps), and the bridge into which each was put.

A tap that QEMU itself makes goes with QEMU. Where a script of ``-netdev tap,script=`` or the bridge helper put it into
a bridge, the same does it again. Where somebody else did, after QEMU's start, nobody does: the restore puts it there
again before the guest runs, or its guest would come back without a network. So it does with what was set by hand of
the tap: its MTU, and of its port in the bridge the flags (isolated, hairpin, learning …) and VLANs, without which the
guest would come back into another network. Nothing gives it its addresses again, nor puts it into Open vSwitch or into
a VRF. A tap that stays (``ip tuntap add``) stays in its bridge, but is gone after a reboot of the host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import socket
import struct
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

#: What is set of a port of a bridge, by its file in ``/sys/class/net/TAP/brport``, and what a new one has.
_PORT_FLAGS = {
    **dict.fromkeys(("learning", "unicast_flood", "multicast_flood", "broadcast_flood", "multicast_router"), "1"),
    **dict.fromkeys(("isolated", "hairpin_mode", "bpdu_guard", "root_block", "neigh_suppress", "proxyarp"), "0"),
    **dict.fromkeys(("proxyarp_wifi", "multicast_fast_leave", "multicast_to_unicast"), "0"),
    "group_fwd_mask": "0x0",
}
_FLAG = re.compile(rf"(?P<name>{'|'.join(_PORT_FLAGS)})=(?P<value>(?:0x)?[0-9a-f]{{1,10}})")

#: A VLAN of a port, or several in a row, as ``bridge vlan add vid`` takes it.
_VLAN = re.compile(r"(?P<number>[0-9]{1,4}(?:-[0-9]{1,4})?)(?: pvid)?(?: untagged)?")

#: In the place of the VLANs: those of a bridge that keeps them apart could not be found out.
_UNKNOWN_VLANS = ("?",)

#: Asks for an interface's address (``linux/sockios.h``).
_SIOCGIFADDR = 0x8915

#: Of an address that the kernel gives by itself, in ``/proc/net/if_inet6``; and bytes of that file at most.
_LINK_SCOPE = "20"
_MAX_ADDRESSES = 16 * 1024 * 1024

#: The largest MTU, that of loopback.
_MAX_MTU = 65536


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
    #: Bytes; 0 where it is not known.
    mtu: int = 0
    #: Of its port in the bridge: the flags, ``isolated=1``, and the VLANs, ``10-12 untagged``; no VLANs where the
    #: bridge does not keep them apart.
    port: tuple[str, ...] = ()
    vlans: tuple[str, ...] = ()
    #: Its own addresses on the host.
    addresses: tuple[str, ...] = ()
    #: What it belongs to that is no bridge, and the kernel's word for the kind of that (``vrf``); empty for none.
    master: str = ""
    master_kind: str = ""


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
    return [_look_at(name, named=name in given and "%" not in name) for name in list(dict.fromkeys(names))[:_MAX_TAPS]]


def _look_at(name: str, named: bool) -> Tap:
    bridge = _bridge_of(name)
    master = "" if bridge else _link(name, "master")
    return Tap(
        name,
        bridge=bridge,
        persists=bool(_number(name, "tun_flags") & _PERSISTS),
        named=named,
        mtu=_number(name, "mtu"),
        port=_port_flags(name) if bridge else (),
        vlans=_vlans(name, bridge) if bridge else (),
        addresses=_addresses(name),
        master=master,
        master_kind=_kind(master) if master else "",
    )


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
        if not tap.persists and not _is_put_by_qemu(process):
            problems += _settings_lost(tap)
    return problems


def _settings_lost(tap: Tap) -> t.Iterator[Problem]:
    """What was given by hand to an interface that goes with QEMU, and that nothing gives it again."""
    cure = "Have the VM's configuration do that (script=), or do it again after the restore"
    if tap.addresses:
        yield Problem(
            "tap_addresses",
            f"its network interface {tap.name} has addresses ({', '.join(tap.addresses)}), which nothing gives it"
            " again after a restore",
            cure,
            blocks=False,
        )
    if tap.master:
        is_vrf = tap.master_kind == "vrf"
        belongs = f"its network interface {tap.name} belongs to {tap.master}"
        if is_vrf:
            what = f"{belongs}, a VRF, into which nothing puts it again: the guest would be in another network"
        else:
            what = f"{belongs}, which is no bridge of the kernel's, and it may be that nothing puts it there again"
        yield Problem("tap_vrf" if is_vrf else "tap_master", what, cure, blocks=is_vrf)
    if tap.vlans == _UNKNOWN_VLANS:
        yield Problem(
            "tap_vlans",
            f"the VLANs of its network interface {tap.name} in the bridge {tap.bridge} cannot be found out, so they"
            " cannot be given to it again: the guest would be in another network",
            "Install iproute2, which has the tool bridge",
        )


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

    An interface that is in a bridge already stays there. What was set of it is set again where it is in the same bridge
    as before, or was in none.
    """
    now = {tap.name: tap for tap in opened}
    failed: list[str] = []
    for tap in recorded:
        found = now.get(tap.name)
        if not tap.named:
            continue
        if found is None:
            failed += [_not_there(tap, "QEMU does not have it now")] if tap.bridge else []
            continue
        # One that stays has what the host's own configuration gives it, and that may be another thing by now.
        if not tap.persists and tap.bridge in ("", found.bridge):
            failed += _differs(tap, _set_mtu(tap) or _set_port(tap))
        elif tap.bridge and not found.bridge:
            failed += _put_back(tap)
    return failed


def _put_back(tap: Tap) -> list[str]:
    """Put an interface that is in no bridge into the one where it was."""
    # Before it is a part of the bridge, which takes the lowest MTU of all.
    failed = _differs(tap, _set_mtu(tap))
    reason = _put(tap.name, tap.bridge)
    if reason:
        return [*failed, _not_there(tap, reason)]
    reason = _set_port(tap)
    if reason:
        # Without a network rather than in another one.
        left = _change("link", "set", "dev", tap.name, "nomaster")
        reason += f"; so it was taken out of the bridge again{f', which failed: {left}' if left else ''}"
        return [*failed, _not_there(tap, reason)]
    reason = _change("link", "set", "dev", tap.name, "up")
    return [*failed, *_differs(tap, reason and f"it cannot be set up: {reason}")]


def _not_there(tap: Tap, reason: str) -> str:
    return (
        f"The network interface {tap.name} was in the bridge {tap.bridge} when the VM ran before, and is not now:"
        f" {reason}"
    )


def _differs(tap: Tap, reason: str) -> list[str]:
    return [f"The network interface {tap.name} is not as it was when the VM ran before: {reason}"] if reason else []


def _put(name: str, bridge: str) -> str:
    if os.geteuid() != 0:
        return "only root can put it there"
    if not _NAME.fullmatch(name) or not _NAME.fullmatch(bridge) or not os.path.isdir(f"/sys/class/net/{bridge}/bridge"):
        return f"there is no bridge {bridge} on this host"
    return _change("link", "set", "dev", name, "master", bridge)


def _set_mtu(tap: Tap) -> str:
    """Why an interface has not the MTU that is recorded of it, as a clause, or the empty string."""
    if not tap.mtu or tap.mtu == _number(tap.name, "mtu"):
        return ""
    if not _NAME.fullmatch(tap.name) or not 0 < tap.mtu <= _MAX_MTU:
        return "what is recorded of it makes no sense"
    reason = _change("link", "set", "dev", tap.name, "mtu", str(tap.mtu))
    return reason and f"its MTU cannot be set to {tap.mtu}: {reason}"


def _set_port(tap: Tap) -> str:
    """Why an interface's port in its bridge is not as it is recorded, as a clause, or the empty string."""
    if not tap.bridge:
        return ""
    flags = [match for match in map(_FLAG.fullmatch, tap.port) if match]
    if not _NAME.fullmatch(tap.name) or len(flags) != len(tap.port):
        return "what is recorded of it makes no sense"
    for match in flags:
        place = f"/sys/class/net/{tap.name}/brport/{match['name']}"
        try:
            if _read(place) != match["value"]:
                with open(place, "w", encoding="ascii") as handle:
                    handle.write(match["value"])
        except OSError as exc:
            if isinstance(exc, FileNotFoundError) and match["value"] == _PORT_FLAGS[match["name"]]:
                continue  # an older kernel, which knows nothing of it
            return f"{match['name']} of its port cannot be set to {match['value']}: {exc.strerror}"
    return _set_vlans(tap) if tap.vlans else ""


def _set_vlans(tap: Tap) -> str:
    if not all(map(_VLAN.fullmatch, tap.vlans)):
        return "its VLANs are not known"
    now = _vlans(tap.name, tap.bridge)
    for change, vlans, others in (("del", now, tap.vlans), ("add", tap.vlans, now)):
        for vlan in vlans:
            if vlan not in others and _VLAN.fullmatch(vlan):
                words = vlan.split(" ")
                _change("vlan", change, "dev", tap.name, "vid", *(words if change == "add" else words[:1]))
    # Whatever the tools said: so it must be, or the guest is in another network.
    now = _vlans(tap.name, tap.bridge)
    return "" if now == tap.vlans else f"its VLANs are {', '.join(now) or 'none'}, and were {', '.join(tap.vlans)}"


def _change(*words: str) -> str:
    """Have iproute2 change something; why it did not, as a clause, or the empty string."""
    done = _run("bridge" if words[0] == "vlan" else "ip", *words)
    if isinstance(done, str):
        return done
    return (done.stderr.strip()[:500] or f"{words[0]} ended with {done.returncode}") if done.returncode else ""


def _ask(*words: str) -> list[t.Any] | None:
    """What iproute2 tells as JSON; None where it tells nothing."""
    done = _run(*words)
    if not isinstance(done, str) and done.returncode == 0:
        with contextlib.suppress(ValueError, RecursionError):
            told = json.loads(done.stdout or "[]")
            return told if isinstance(told, list) else None
    return None


def _run(program: str, *words: str) -> subprocess.CompletedProcess[str] | str:
    tool = shutil.which(program, path=_PATH)
    if tool is None:
        return f"{program} (iproute2) is not on this host"
    try:
        return subprocess.run(
            [tool, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        return str(exc)


def _port_flags(name: str) -> tuple[str, ...]:
    found = []
    for flag in _PORT_FLAGS:
        with contextlib.suppress(OSError):
            text = f"{flag}={_read(f'/sys/class/net/{name}/brport/{flag}')}"
            if _FLAG.fullmatch(text):
                found.append(text)
    return tuple(found)


def _vlans(name: str, bridge: str) -> tuple[str, ...]:
    if not _number(bridge, "bridge/vlan_filtering"):
        return ()
    return parse_vlans(_ask("bridge", "-j", "vlan", "show", "dev", name), name)


def parse_vlans(told: list[t.Any] | None, name: str) -> tuple[str, ...]:
    """The VLANs of an interface, as ``bridge -j vlan show`` tells them; ``?`` alone where that is not understood."""
    try:
        found = []
        for entry in told or []:
            if entry["ifname"] == name:
                for vlan in entry["vlans"]:
                    number = f"{vlan['vlan']}-{vlan['vlanEnd']}" if "vlanEnd" in vlan else str(vlan["vlan"])
                    flags = vlan.get("flags", [])
                    text = number + " pvid" * ("PVID" in flags) + " untagged" * ("Egress Untagged" in flags)
                    if not _VLAN.fullmatch(text):
                        return _UNKNOWN_VLANS
                    found.append(text)
        return tuple(found) if found or told is not None else _UNKNOWN_VLANS
    except (KeyError, TypeError, AttributeError):
        return _UNKNOWN_VLANS


def _addresses(name: str) -> tuple[str, ...]:
    """The first of IPv4, and those of IPv6 that are valid beyond its link."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        answer = fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        found.append(socket.inet_ntoa(answer[20:24]))
    with contextlib.suppress(OSError, ValueError):
        for line in read_bounded("/proc/net/if_inet6", _MAX_ADDRESSES).decode("ascii").splitlines():
            address, _index, _prefix, scope, _flags, device = line.split()
            if device == name and scope != _LINK_SCOPE:
                found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address)))
    return tuple(found)


def _link(name: str, key: str) -> str:
    try:
        return os.path.basename(os.readlink(f"/sys/class/net/{name}/{key}"))
    except OSError:
        return ""


def _kind(name: str) -> str:
    with contextlib.suppress(OSError):
        match = re.search(r"^DEVTYPE=(\w{1,32})$", _read(f"/sys/class/net/{name}/uevent"), re.MULTILINE)
        return match[1] if match else ""
    return ""


def _read(place: str) -> str:
    """:raises OSError: there is no such file."""
    return read_bounded(place, 4096).decode("utf-8", "replace").strip()


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
