# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line of the guests, for what cannot use the classes: playbooks, shells, the demo."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, Callable, Optional

from .guest import Guest, GuestError, gaps
from .linux import LinuxGuest
from .monitor import MonitorError


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options of "start" that every kind of guest has."""
    parser.add_argument("--name", required=True, help="the VM's name")
    parser.add_argument("--memory", type=int, metavar="MIB", help="the VM's memory")
    parser.add_argument("--uuid")
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="the QEMU binary")
    parser.add_argument("--machine", default="pc")
    parser.add_argument("--accel", default="tcg")
    parser.add_argument("--observer", action="store_true", help="add a second QMP monitor, observer.sock")
    parser.add_argument("--arg", action="append", default=[], metavar="ARG", help="one more argument for QEMU")
    parser.add_argument("--incoming", nargs="?", const="defer", help="wait for an incoming migration")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="to wait for the boot")


def common_config(options: argparse.Namespace) -> dict[str, Any]:
    """The constructor's arguments from the options of add_common."""
    config: dict[str, Any] = {
        "uuid": options.uuid,
        "extra_args": options.arg,
        "qemu": options.qemu,
        "machine": options.machine,
        "accel": options.accel,
        "observer": options.observer,
    }
    if options.memory is not None:
        config["memory_mib"] = options.memory
    return config


def main(
    kind: type[Guest],
    add_options: Callable[[argparse.ArgumentParser], None],
    make: Callable[[argparse.Namespace], Guest],
    argv: Optional[Sequence[str]] = None,
) -> int:
    """Run one command; its answer is JSON on stdout. The exit code: 0, or 1 with a message on stderr."""
    parser = argparse.ArgumentParser(description=f"Start and watch a {kind.kind} guest. All answers are JSON.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--workdir", required=True, metavar="DIR", help="the guest's directory")
        return sub

    sub = command("start", "Start the guest in the background; it stays when this command ends.")
    add_common(sub)
    add_options(sub)
    command("status", "Show the guest, adopting a QEMU that was started anew with its command line.")
    command("counters", "Show the counters in its log, the gaps between them, and the number of cold boots.")
    sub = command("wait", "Wait until its counter is beyond a value.")
    sub.add_argument("--beyond", type=int, metavar="N", help="default: the last counter in the log")
    sub.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS")
    sub = command("checksum", "Have the guest compute the checksum of its memory.")
    sub.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS")
    command("send", "Send a command to its serial port.").add_argument("text")
    sub = command("power-off", "Have the guest power off by itself.")
    sub.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS")
    if issubclass(kind, LinuxGuest):
        command("check-disk", "After power-off: check that its disk is clean and no line is missing.")
    command("argv", "Show its command line.").add_argument("--incoming", nargs="?", const="defer", default=False)
    command("end", "Kill its QEMU and remove its sockets; the other files stay.")

    options = parser.parse_args(argv)
    try:
        answer = _run(kind, make, options)
    except (GuestError, MonitorError) as error:
        print(f"{kind.kind} guest: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=1))
    return 0


def _run(kind: type[Guest], make: Callable[[argparse.Namespace], Guest], options: argparse.Namespace) -> Any:
    if options.command == "start":
        guest = make(options)
        guest.start(options.incoming or False, options.timeout)
        return guest.describe()
    guest = kind.load(options.workdir)
    if options.command == "status":
        guest.adopt_restarted()
        return guest.describe()
    if options.command == "counters":
        counters = guest.counters()
        return {
            "counters": counters,
            "last": counters[-1] if counters else None,
            "gaps": gaps(counters),
            "boots": guest.boots(),
        }
    if options.command == "wait":
        beyond = (guest.counters() or [-1])[-1] if options.beyond is None else options.beyond
        return {"counter": guest.wait_for_counter(beyond, options.timeout)}
    if options.command == "checksum":
        return {"checksum": guest.checksum(options.timeout)}
    if options.command == "argv":
        return guest.argv(options.incoming)
    if options.command == "send":
        guest.send(options.text.encode() + kind.command_end)
    elif options.command == "power-off":
        guest.adopt_restarted()
        guest.power_off(options.timeout)
    elif options.command == "check-disk":
        assert isinstance(guest, LinuxGuest)
        guest.check_disk()
        return {"lines": len(guest.disk_lines(guest.boots()))}
    else:
        guest.close()
    return guest.describe()
