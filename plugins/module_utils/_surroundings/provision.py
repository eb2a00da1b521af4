# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is seen to before a QEMU is started by its recorded start, for a restore or from its disks, and after that.

First all is looked at (also in check mode): files, firmware, servers, directories. Then what is missing and can be
made again is made: directories on a tmpfs, the server of the TPM. What is not there and cannot be made is named: QEMU's
own words are of one thing at a time, and of some of them it says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread, looking, within
from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError, MismatchError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import read_status
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch, LaunchedQemu
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit_launch import StartedService, choose_launch
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.bridges import (
    find_taps,
    missing_taps,
    put_into_bridges,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.directories import (
    Directory,
    make_directories,
    missing_directories,
    why_taken,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.needs import Needs
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.servers import unserved, unserved_text
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.start_files import (
    changed_firmware,
    changed_text,
    missing_files,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.tpm import TpmServer
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.unix_sockets import is_listened_at, listeners_at
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: Seconds that the host's file systems may take to answer.
_HOST_TIMEOUT = 10.0

#: Seconds that the server of a TPM may take to open its socket, and between two looks.
_SERVER_TIMEOUT = 60.0
_INTERVAL = 0.02


class Provision:
    """What one start sees to."""

    def __init__(self, name: str, needs: Needs, uid: int, by_unit: bool) -> None:
        """:param name: the VM's. :param uid: its QEMU's user.

        :param by_unit: whether the VM's own unit executes QEMU, and what that needs before it.
        """
        self._name = name
        self._by_unit = by_unit
        self._uid = uid
        self.needs = needs
        #: Those that are made here.
        self._directories = [directory for directory in needs.directories if not by_unit or self._is_of_tpm(directory)]

    def _is_of_tpm(self, directory: Directory) -> bool:
        places = [place for tpm in self.needs.tpms for place in (tpm.path, tpm.state_directory) if place]
        return any(f"{os.path.realpath(place)}/".startswith(f"{directory.path}/") for place in places)

    async def require(self, goes_on: bool) -> None:
        """Look at all of it, and change nothing.

        :param goes_on: whether a guest is to go on, and does not begin anew.
        :raises MismatchError: firmware has another size than that guest's.
        :raises LaunchError: something is missing that cannot be made again, or does not answer.
        """
        try:
            if goes_on:
                await within(_HOST_TIMEOUT, looking(self._check_firmware))
            await within(_HOST_TIMEOUT, looking(self._check))
        except asyncio.TimeoutError as exc:
            raise LaunchError(
                f"The QEMU of {self._name} is not started, as what it needs could not be looked at within"
                f" {_HOST_TIMEOUT:g} seconds",
                cure="See which file system of what its command line names does not answer",
            ) from exc

    def _check_firmware(self) -> None:
        for file, size in changed_firmware(self.needs.files):
            what, cure = changed_text(file, size)
            raise MismatchError(f"{self._name} cannot be restored: {what}", cure=f"{cure}, then restore again")

    def _check(self) -> None:
        files = missing_files(self.needs.files)
        if files and not self._by_unit:
            raise LaunchError(
                f"The QEMU of {self._name} cannot be started again without what is not there any more:"
                f" {_list(f'{file.path} ({file.use})' for file in files)}",
                cure="Put that back, then run the task again",
            )
        self._check_directories()
        if not self._by_unit:
            self._check_servers()
        for server in self.needs.tpms:
            self._check_tpm(server)

    def _check_directories(self) -> None:
        reason = why_taken(self._directories, {0, os.geteuid(), self._uid})
        if reason:
            raise LaunchError(
                f"The QEMU of {self._name} is not started where others could put sockets in the place of its own:"
                f" {reason}",
                cure="Give it back to that user (chown), or remove it; it is made again then",
            )

    def _check_servers(self) -> None:
        taps = missing_taps(self.needs.taps)
        if taps:
            bridge = f"; ip link set dev {taps[0].name} master {taps[0].bridge}" if taps[0].bridge else ""
            raise LaunchError(
                f"The network interface {taps[0].name} of {self._name}, which stood there without its QEMU, is not"
                " there any more",
                cure=f"Make it again (ip tuntap add dev {taps[0].name} mode tap{bridge}), then run the task again",
            )
        servers = unserved(self.needs.servers)
        if servers:
            what, cure = unserved_text(servers)
            raise LaunchError(f"The QEMU of {self._name} cannot be started again: {what}", cure=cure)

    def _check_tpm(self, server: TpmServer) -> None:
        if is_listened_at(server.path):
            self._require_ours(server)
            return
        if not server.unit:
            self._check_words(server)

    def _check_words(self, server: TpmServer) -> None:
        """:raises LaunchError: the server of a TPM cannot be started by its recorded words."""
        state = server.state_directory
        to_be_made = {directory.path for directory in missing_directories(self._directories)}
        if state and not os.path.isdir(state) and os.path.realpath(state) not in to_be_made:
            raise LaunchError(
                f"The directory of the TPM of {self._name}, {state}, is not there any more, and its server (swtpm)"
                " cannot be started without it",
                cure=f"Make it, empty and for {user_name(server.uid)} alone: what the TPM held is in the image",
            )
        try:
            server.launch()
        except ValueError as exc:
            raise LaunchError(
                f"The server of the TPM of {self._name} does not answer at {server.path}, and cannot be started from"
                f" its record: {server.reason or exc}",
                cure="Start a swtpm that serves there, with the VM's own directory, then run the task again",
            ) from exc

    def _require_ours(self, server: TpmServer) -> None:
        """:raises LaunchError: somebody else's server answers there, who would be given what the TPM holds."""
        for pid in listeners_at(server.path):
            with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
                uid = int(read_status(pid)["Uid"].split()[1])
                if uid not in (0, os.geteuid(), self._uid, server.uid):
                    raise LaunchError(
                        f"{server.path}, where the TPM of {self._name} was served, is served by a process (pid {pid})"
                        f" of the user {user_name(uid)}, who must not be given what the TPM holds",
                        cure="End that process, then run the task again",
                    )

    async def make_directories(self) -> list[str]:
        """Make the directories that are missing; their paths. Raises LaunchError."""
        return await in_thread(make_directories, self._directories)

    async def start_servers(self, started: t.Callable[[LaunchedQemu], None]) -> None:
        """Start the servers of the TPM that are not there, and wait for their sockets.

        :param started: called with each before it is started, so that it can be ended.
        :raises LaunchError: one does not start.
        :raises UnitError: systemd cannot be told.
        """
        for server in self.needs.tpms:
            if is_listened_at(server.path):
                self._require_ours(server)
                continue
            launched = await self._choose(server)
            started(launched)
            await launched.start()
            await self._wait_for(server, launched)

    async def _choose(self, server: TpmServer) -> LaunchedQemu:
        if server.unit and systemd.is_running():
            unit = await systemd.read_unit(server.unit)
            if unit.load_state != "not-found":
                return StartedService(Launch(argv=(), unit=server.unit))
        self._check_words(server)
        return choose_launch(server.launch(), f"{self._name}-tpm")

    async def _wait_for(self, server: TpmServer, launched: LaunchedQemu) -> None:
        deadline = time.monotonic() + _SERVER_TIMEOUT
        while not is_listened_at(server.path):
            if await launched.ended():
                said = await launched.stderr() or "it said nothing"
                raise LaunchError(
                    f"The server of the TPM of {self._name} (swtpm) ended at once: {said}",
                    cure=f"Correct what it says and run the task again; its log is {launched.log}",
                )
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"The server of the TPM of {self._name} (swtpm) did not serve at {server.path} within"
                    f" {_SERVER_TIMEOUT:g} seconds",
                    cure=f"See its log {launched.log}",
                )
            await asyncio.sleep(_INTERVAL)
        self._require_ours(server)

    async def connect_network(self, process: QemuProcess | None) -> list[str]:
        """Put QEMU's network interfaces into the bridges where they were, and set of them what was set.

        :returns: sentences of what could not be done.
        """
        if process is None or not self.needs.taps:
            return []
        return await in_thread(lambda: put_into_bridges(self.needs.taps, find_taps(process)))


def _list(texts: t.Iterable[str]) -> str:
    *before, last = list(texts)[:5]
    return f"{', '.join(before)} and {last}" if before else last
