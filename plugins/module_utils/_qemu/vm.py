# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a running QEMU says of its VM, asked over QMP."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import MonitorProtocolError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import process_behind
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess

_NO_UUID = "00000000-0000-0000-0000-000000000000"

#: Run states of a guest that nobody has stopped: it runs, or sleeps (S3) until something wakes it. From QEMU 9.0 on a
#: sleeping one is stopped and let go on as any other, and then sleeps again; but not after a migration: a QEMU (10.0,
#: 11.1) that is told to let one go on from ``postmigrate`` ends at once ("invalid runstate transition").
LIVE_STATES = frozenset(("running", "suspended"))

#: A row of ``x-query-ramblock``: name (which a block that does not migrate has not), page size, offset, used length,
#: maximum length; QEMU 8.0 adds the host address, QEMU 9.0 "ro" or "rw".
_RAM_BLOCK_ROW = re.compile(
    r"\s*(?:(?P<name>\S.*?)\s+)?\d+ [KMGT]iB\s+0x[0-9a-f]+\s+0x(?P<used>[0-9a-f]{1,16})"
    r"\s+0x(?P<maximum>[0-9a-f]{1,16})(?:\s+0x(?P<address>[0-9a-f]{1,16}))?(?:\s.*)?"
)

#: Characters of such a row at most: the name has up to 255. In a longer one the pattern would search for ever.
_MAX_ROW = 1024


@dataclasses.dataclass(frozen=True)
class RunningVm:
    """A VM and the QEMU that runs it."""

    name: str
    #: Empty where the VM was started without one (QEMU then says all zeros).
    uuid: str
    #: QEMU's run state: running, paused, postmigrate, inmigrate …
    run_state: str
    #: Bytes, with hot-plugged memory, but without what is a disk to the guest and never migrates (virtio-pmem).
    memory: int
    vcpus: int
    machine: str
    architecture: str
    accelerator: str
    #: Its process on this host, where it is known (a monitor may lead elsewhere).
    process: QemuProcess | None

    @property
    def label(self) -> str:
        """The VM as messages name it."""
        return self.name or "the VM without a name"

    def as_result(self, run_state: str | None = None) -> dict[str, t.Any]:
        """The ``vm`` return value.

        :param run_state: the run state now, where it is not ``run_state`` any more; ``ended`` for a QEMU that is gone.
        """
        run_state = run_state or self.run_state
        return {
            "name": self.name,
            "uuid": self.uuid,
            "run_state": run_state,
            "memory": self.memory,
            "vcpus": self.vcpus,
            "machine": self.machine,
            "pid": self.process.pid if self.process and run_state != "ended" else None,
        }


@dataclasses.dataclass(frozen=True)
class RamBlock:
    """A block of guest memory; lengths in bytes."""

    #: Empty for a block that does not migrate.
    name: str
    used: int
    maximum: int
    #: Where QEMU has it in its own address space; 0 where this QEMU does not say. It is the same block elsewhere.
    address: int = dataclasses.field(default=0, compare=False)


async def query_run_state(monitor: Monitor) -> str:
    """QEMU's run state now."""
    return str((await monitor.execute("query-status"))["status"])


async def read_vm(monitor: Monitor) -> RunningVm:
    """Ask QEMU who its VM is and what it looks like.

    :raises MonitorProtocolError: what it says cannot be.
    :raises MonitorError: it could not be asked.
    """
    name = str((await monitor.execute("query-name")).get("name", ""))
    uuid = str((await monitor.execute("query-uuid"))["UUID"])
    memory = await monitor.execute("query-memory-size-summary")
    machine = str(await monitor.execute("qom-get", {"path": "/machine", "property": "type"}))
    disks = [
        device["data"].get("size", 0)
        for device in await monitor.execute("query-memory-devices")
        if device["type"] == "virtio-pmem"
    ]
    size = memory["base-memory"] + memory.get("plugged-memory", 0) - sum(disks)
    if size < 0:
        raise MonitorProtocolError(
            f"{monitor.shown_address} does not speak QMP as QEMU does: its virtio-pmem devices have more memory than"
            " the VM",
            cure="Find out what listens there",
        )
    kvm = await monitor.execute("query-kvm")
    return RunningVm(
        name=name,
        uuid="" if uuid == _NO_UUID else uuid,
        run_state=await query_run_state(monitor),
        memory=size,
        vcpus=len(await monitor.execute("query-cpus-fast")),
        machine=machine[: -len("-machine")] if machine.endswith("-machine") else machine,
        architecture=str((await monitor.execute("query-target"))["arch"]),
        accelerator="kvm" if kvm["enabled"] else "tcg",
        process=process_behind(monitor),
    )


async def read_ram_blocks(monitor: Monitor) -> list[RamBlock]:
    """The VM's RAM blocks that migrate, or an empty list where QEMU (before 6.2) cannot list them."""
    listed = await monitor.execute_if_known("x-query-ramblock")
    return [block for block in parse_ram_blocks(listed["human-readable-text"]) if block.name] if listed else []


def parse_ram_blocks(text: str) -> list[RamBlock]:
    """The rows of ``x-query-ramblock``; lines that are none are left out."""
    rows = (_RAM_BLOCK_ROW.fullmatch(line) for line in text.splitlines() if len(line) <= _MAX_ROW)
    return [
        RamBlock(
            row.group("name") or "",
            int(row.group("used"), 16),
            int(row.group("maximum"), 16),
            int(row.group("address") or "0", 16),
        )
        for row in rows
        if row
    ]
