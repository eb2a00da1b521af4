# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The counter guests of a host whose units start them, qemu@NAME.service: define them, and watch whether they go on.

Those of root's are in /var/lib/qemu, those of another user in his home directory.

For the machines of the molecule scenarios, where extensions/molecule/utils calls it. All answers are JSON, by VM.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import CounterGuest, GuestError, gaps

ROOT = os.geteuid() == 0
GUESTS = Path("/var/lib/qemu") if ROOT else Path.home() / "qemu"  # a directory for each VM
UNITS = Path("/etc/qemu") if ROOT else Path.home() / ".config/qemu"  # NAME.env for each VM, read by its unit
REMEMBERED = "remembered.json"  # in the VM's directory
TIMEOUT = 120.0  # seconds, for machines that share two cores


def define(vms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make the files of each VM, and the environment file of its unit; a VM: name and CounterGuest's own arguments.

    Without uuid it gets one made of its name.
    """
    answer = {}
    for vm in vms:
        own = str(uuid.uuid5(uuid.NAMESPACE_DNS, vm["name"]))
        guest = CounterGuest(GUESTS / vm["name"], **{"uuid": own, **vm})
        guest.define()
        program, *arguments = guest.argv()
        if arguments[:2] != ["-name", guest.name] or any(set(word) & set(" \t\"'\\$") for word in arguments):
            raise GuestError(f"a unit cannot start this: {arguments}")
        UNITS.mkdir(parents=True, exist_ok=True)
        environment = UNITS / f"{guest.name}.env"
        environment.write_text(f'QEMU_ARGS="{" ".join(arguments[2:])}"\n', encoding="utf-8")
        answer[guest.name] = {"program": program, "environment": str(environment)}
    return answer


def remember(guest: CounterGuest) -> dict[str, Any]:
    """Write down where the guest is, for went_on: its boots, its counters, the checksum of its memory."""
    guest.wait_restarted(TIMEOUT)
    guest.wait_for_counter(timeout=TIMEOUT)
    checksum = guest.checksum(TIMEOUT)
    state = {"boots": guest.boots(), "counters": len(guest.counters()), "checksum": checksum}
    (guest.workdir / REMEMBERED).write_text(json.dumps(state) + "\n", encoding="utf-8")
    return state


def remembered(guest: CounterGuest) -> dict[str, Any]:
    """What remember wrote; raises GuestError if it did not."""
    try:
        state: dict[str, Any] = json.loads((guest.workdir / REMEMBERED).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise GuestError(f"{guest.name} was not remembered") from error
    return state


def status(guest: CounterGuest) -> dict[str, Any]:
    """What can be seen of the guest without a word to it; "boots" and "gaps" are those since it was remembered."""
    then = remembered(guest)
    running = guest.adopt_restarted()
    counters = guest.counters()
    return {
        "running": running,
        "boots": guest.boots() - then["boots"],
        "gaps": gaps(counters[then["counters"] - 1 :]),
        "counter": counters[-1],
    }


def went_on(guest: CounterGuest, boots: int) -> dict[str, Any]:
    """Whether the guest went on where it was remembered, and goes on now; the reasons why not are in "problems".

    boots: how often it should have booted since: 0 for one that never noticed a thing. After a boot the counter
    begins anew.
    """
    then = remembered(guest)
    problems = []
    checksum = None
    try:
        guest.wait_restarted(TIMEOUT)
        wait_for_lines(guest, then["boots"] + boots)
        checksum = guest.checksum(TIMEOUT)
    except GuestError as error:
        problems.append(str(error))
    now = status(guest)
    if now["boots"] != boots:
        problems.append(f"it booted {now['boots']} times, not {boots}")
    if boots == 0 and now["gaps"]:
        problems.append(f"its counter did not go on: {now['gaps']}")
    if checksum is not None and checksum != then["checksum"]:
        problems.append(f"its memory is not what it was: checksum {checksum}, then {then['checksum']}")
    return {**now, "checksum": checksum, "problems": problems}


def wait_for_lines(guest: CounterGuest, boots: int) -> None:
    """Wait until it has booted so often in all, and has said two more counters than now."""
    deadline = time.monotonic() + TIMEOUT
    known = len(guest.counters())
    while guest.boots() < boots or len(guest.counters()) < known + 2:
        if time.monotonic() > deadline:
            raise GuestError(f"it stands still; its log ends {guest.log()[-200:]!r}")
        time.sleep(0.05)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command. The exit status: 0, or 1 with a message on stderr, or because a guest did not go on."""
    parser = argparse.ArgumentParser(description="Define and watch the counter guests that units start.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("define", help="make their files").add_argument("vms", type=json.loads, metavar="JSON")
    for name, text in (
        ("remember", "write down where they are"),
        ("status", "show them, and what happened since they were remembered"),
        ("went-on", "check that they went on where they were remembered"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("names", nargs="*", metavar="NAME")
        if name == "went-on":
            command.add_argument("--boots", type=int, default=0, help="how often they should have booted since")
    options = parser.parse_args(argv)
    try:
        if options.command == "define":
            answer = define(options.vms)
        else:
            guests = [CounterGuest.load(GUESTS / name) for name in options.names]
            if options.command == "remember":
                answer = {guest.name: remember(guest) for guest in guests}
            elif options.command == "status":
                answer = {guest.name: status(guest) for guest in guests}
            else:
                answer = {guest.name: went_on(guest, options.boots) for guest in guests}
    except GuestError as error:
        print(f"unit guests: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=1))
    return int(any(vm.get("problems") for vm in answer.values()))


if __name__ == "__main__":
    sys.exit(main())
