# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Starting a QEMU by systemd, where there is one: by the VM's own unit, or by a transient one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import shutil
import time

from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError, UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import read_command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line, manager, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import (
    LAUNCH_ENVIRONMENT,
    Launch,
    LaunchedProcess,
    LaunchedQemu,
    words_before,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch_log import LaunchLog, in_one_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import MAX_COMMAND_LINE
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process_watch import ProcessWatch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.resources import Resources, read_resources
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import (
    Capabilities,
    Rights,
    read_rights,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import (
    guard_path,
    remove_restore_files,
    require_startable,
    restore_files,
    start_user,
)

#: Types of services of which systemd is told by the program itself that it is up, which QEMU does not do, or which are
#: not up before they end.
_TOLD_TYPES = frozenset(("notify", "notify-reload", "dbus", "oneshot", "forking"))

#: Seconds between two questions to systemd, each of which costs a process.
_LOOK_INTERVAL = 0.2

#: Seconds that a killed process, and what a unit does after its end (``ExecStopPost=``), may take.
_END_TIMEOUT = 30.0

#: Seconds that the journal may take to answer.
_JOURNAL_TIMEOUT = 5.0

#: Seconds for which a line of a user's unit is waited for that is not in the journal yet.
_JOURNAL_PATIENCE = 1.0

#: Exit statuses of a process that systemd could not make of its command (systemd.exec(5)).
_EXEC_FAILURES = {
    200: "its working directory cannot be used",
    203: "its program cannot be executed",
    216: "its group is not known",
    217: "its user is not known",
}

#: What a user's own systemd adds to its own OOM score adjustment for its units.
_OOM_SCORE_OF_USERS = 100


def choose_launch(how: Launch, vm_name: str) -> LaunchedQemu:
    """What starts a QEMU: its own unit, a transient one, or this process, where no systemd outlives it."""
    if how.unit:
        return LaunchedService(how)
    starter = manager.starter()
    if starter and _fits_in_transient_unit(how):
        return LaunchedTransientUnit(how, vm_name, *starter)
    return LaunchedProcess(how, vm_name)


def _fits_in_transient_unit(how: Launch) -> bool:
    """Whether systemd takes it: over D-Bus only UTF-8."""
    try:
        for word in (*how.argv, how.cwd, how.stdout, how.stderr, how.network_namespace):
            word.encode()
    except UnicodeEncodeError:
        return False
    return True


class _LaunchedUnit:
    """A QEMU that systemd starts; the base of what follows."""

    def __init__(self, how: Launch, name: str) -> None:
        self.how = how
        self.name = name
        #: When it was started, in seconds since the epoch.
        self._since = time.time()
        self._watch: ProcessWatch | None = None
        #: Whether systemd was told to start it, so that there may be something to end.
        self._started = False
        self._next_look = 0.0
        #: Whether nothing ran, nor was to run, at the last look.
        self._gone = False

    async def ended(self) -> bool:
        """Whether QEMU has ended, or will not be started."""
        if self._watch is None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_INTERVAL
            unit = await systemd.read_unit(self.name)
            if unit.main_pid:
                self._watch = ProcessWatch(unit.main_pid)
            self._gone = not unit.main_pid and not unit.has_job and unit.active_state in ("inactive", "failed")
        return self._gone or (self._watch is not None and self._watch.ended)

    def is_or_started(self, pid: int) -> bool:
        """Whether a process is in the unit's control group."""
        return systemd.unit_of_process(pid) == self.name

    async def wait_end(self, timeout: float) -> None:
        """Wait for QEMU's end, for so many seconds at most."""
        if self._watch is not None:
            await self._watch.wait_at_most(timeout)

    async def end(self) -> None:
        """Kill QEMU, have the unit stopped, and leave nothing of this start; problems are left to the next run.

        What is in the unit, but not of this start, is left alone.
        """
        is_ours = False
        if self._started:
            with contextlib.suppress(UnitError):
                is_ours = await self._has_ours()
        if is_ours:
            with contextlib.suppress(UnitError):
                if self._watch is None or not self._watch.ended:
                    # Not by a stop of the unit, which may ask the half guest to shut down first, and wait for that.
                    await systemd.control(self.name, "kill", "--signal=KILL")
            await self.wait_end(_END_TIMEOUT)
            with contextlib.suppress(UnitError):
                await systemd.control(self.name, "stop", timeout=_END_TIMEOUT)
        with contextlib.suppress(UnitError):
            await self.clean()
        if is_ours:
            # A failed unit stays so until someone has seen it; what failed is told here.
            with contextlib.suppress(UnitError):
                await systemd.control(self.name, "reset-failed")
        self.release()

    async def _has_ours(self) -> bool:
        """Whether what is in the unit now is of this start; raises UnitError."""
        unit = await systemd.read_unit(self.name)
        if not self._is_ours(unit):
            return False
        if self._watch is None and unit.main_pid:
            self._watch = ProcessWatch(unit.main_pid)
        return True

    def _is_ours(self, unit: systemd.Unit) -> bool:
        """Whether a unit, as it is now, has what was started here, or what is left of it."""
        raise NotImplementedError

    async def clean(self) -> None:
        """Remove what was changed for this start."""

    @property
    def log(self) -> str:
        """Where to look for what it says."""
        return f"the journal ({manager.shown(self.name, '-u', 'journalctl')})"

    async def _journal(self, invocation: str, since: float) -> str:
        """The last lines of a start in the journal, the end at most (4 KiB), in one, as far as its user may read them.

        :param invocation: which start, or the empty string. :param since: when it was, in seconds since the epoch.
        :raises UnitError: it cannot be asked.
        """
        journal = ("journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=20")
        whose, name = manager.split_unit(self.name)
        if whose.uid is None:
            await systemd.run_tool("journalctl", "--sync", timeout=_JOURNAL_TIMEOUT)
            at = (f"--since=@{since:.3f}", f"_SYSTEMD_UNIT={name}")
            matches = (f"_SYSTEMD_INVOCATION_ID={invocation}",) if invocation else at
            text = await systemd.run_tool(*journal, *matches, timeout=_JOURNAL_TIMEOUT)
            return in_one_line(text.strip()[-4096:])
        # Only root can have the journal written out; and older ones do not know of which start of a unit a line is.
        own = (f"--since=@{since:.3f}", f"_SYSTEMD_USER_UNIT={name}", f"_UID={whose.uid}")
        deadline = time.monotonic() + _JOURNAL_PATIENCE
        while True:
            text = await systemd.run_tool(*journal, *own, manager=whose, timeout=_JOURNAL_TIMEOUT)
            if text.strip() or time.monotonic() > deadline:
                return in_one_line(text.strip()[-4096:])
            await asyncio.sleep(_LOOK_INTERVAL)

    def release(self) -> None:
        """Let it go its own way."""
        if self._watch is not None:
            self._watch.close()


class StartedService(_LaunchedUnit):
    """A QEMU that its own unit starts as it is configured: from the VM's disks."""

    def __init__(self, how: Launch) -> None:
        super().__init__(how, how.unit)
        self._since = 0.0

    async def start(self) -> None:
        """Have it started; on return it may not be up yet.

        :raises UnitError: systemd cannot be told.
        """
        manager.require_own(self.name, f"start {self.name}")
        # Several starts in a short time are no reason to refuse the next one.
        with contextlib.suppress(UnitError):
            await systemd.control(self.name, "reset-failed")
        self._started = True
        self._since = time.time()
        await systemd.control(self.name, "start", "--no-block")

    def _is_ours(self, unit: systemd.Unit) -> bool:
        return True

    async def stderr(self) -> str:
        """What QEMU, and the unit's other programs, said in this start, the end at most (4 KiB); else how it ended."""
        text = ended = ""
        # It is asked for an error, whose place no other error shall take.
        with contextlib.suppress(UnitError):
            unit = await systemd.read_unit(self.name)
            ended = _how_it_ended(unit)
            text = await self._journal(unit.invocation, self._since)
        return text or ended


class LaunchedService(StartedService):
    """A QEMU that its own unit starts to wait for its state: with the unit's user, control group, limits and helpers
    (``ExecStartPre=``)."""

    def __init__(self, how: Launch) -> None:
        super().__init__(how)
        self._changed = False

    async def start(self) -> None:
        """Have it started; on return it may not be up yet.

        :raises LaunchError: the unit cannot be used for it.
        :raises UnitError: systemd cannot be told.
        """
        manager.require_own(self.name, f"start {self.name}")
        unit = await systemd.read_unit(self.name)
        require_startable(unit)
        if unit.active_state not in ("inactive", "failed"):
            # It is just ending, waits for a restart, or counts as active without a process (RemainAfterExit).
            await systemd.control(self.name, "stop")
        drop_in, hidden_guard = restore_files(self.name)
        self._changed = True
        text = restore_text(self.how, unit, await systemd.read_start_command(self.name))
        systemd.write_drop_in(drop_in, text, mode=0o600)
        systemd.hide_drop_in(hidden_guard)
        await systemd.reload(self.name)
        # Were any of this not in force, the VM might start from its disks beside its saved memory.
        changed = await systemd.read_unit(self.name)
        read = changed.drop_ins
        if read[-1:] != (drop_in,) or guard_path(self.name) in read:
            raise LaunchError(
                f"systemd does not take {drop_in} as the last change of {self.name}"
                f" (it has {', '.join(read) or 'none'})",
                cure="Rename what comes after it; systemd reads them in the order of their file names",
            )
        # From its disks, before that was in force: then there is nothing to start, and nothing to end.
        require_startable(changed)
        await super().start()

    def _is_ours(self, unit: systemd.Unit) -> bool:
        # Whatever it is, no guest that was started from its disks is killed.
        words = _words_of(unit.main_pid) if unit.main_pid else []
        return not words or b"-incoming" in words

    async def clean(self) -> None:
        """Remove the files of this start; the guard is in force again."""
        if self._changed and remove_restore_files(self.name):
            await systemd.reload(self.name)


def restore_text(how: Launch, unit: systemd.Unit, own: systemd.StartCommand) -> str:
    """What makes a unit start a QEMU that waits for its state.

    :param unit: as systemd has it.
    :param own: the unit's own command.
    :raises LaunchError: it cannot be started with its own rights alone.
    """
    lines = [
        "# Made by vmops.qemu.qemu_restore for one start: QEMU waits for its saved state. It is removed after that.",
        "[Service]",
        # A QEMU that failed to load must not be started anew, nor the VM from its disks.
        "Restart=no",
    ]
    daemonizes = command_line.daemonizes(how.argv)
    if unit.service_type in _TOLD_TYPES and not (unit.service_type == "forking" and daemonizes):
        lines.append("Type=simple")
    if how.unit_argv:
        program, *words = how.unit_argv
        # Without variables' names the words are those of the unit, whatever flags it has.
        flags = f"{own.prefix}{'' if own.expands else ':'}{'@' if own.words and own.words[0] != own.program else ''}"
        named = [own.program, program] if "@" in flags else [own.program]
        command = f"{flags}{' '.join([*map(systemd.quote_word, named), systemd.quote_words(words, variables=True)])}"
        return "\n".join([*lines, "ExecStart=", f"ExecStart={command}", ""])
    # What the unit gives is given once more.
    before, enters = words_before(how, Resources(), _given_by(unit, own), "" if daemonizes else how.cwd)
    if not enters and os.path.realpath(own.program) != os.path.realpath(how.argv[0]) and not daemonizes:
        # The program that became QEMU may have gone elsewhere; a QEMU that daemonizes has gone to the root itself.
        lines.append(f"WorkingDirectory={systemd.escape_specifiers(how.cwd)}")
    return "\n".join([*lines, "ExecStart=", f"ExecStart={own.prefix}{systemd.quote_words([*before, *how.argv])}", ""])


def _given_by(unit: systemd.Unit, own: systemd.StartCommand) -> Rights | None:
    """With what a unit executes its command, as far as a program that it starts could have less.

    :raises LaunchError: its user is not known.
    """
    uid = start_user(unit, own)
    if uid is None and not unit.dynamic_user:
        raise LaunchError(
            f"{unit.name} has the user {unit.user}, who is not known",
            cure=f"See {manager.shown(unit.name, 'cat')}",
        )
    known = read_rights("self")
    every = known.capabilities.bounding if known and known.capabilities else 0
    bounding = every if own.bounding is None or "+" in own.prefix else own.bounding & every
    ambient = own.ambient & every
    permitted = bounding if uid == 0 else ambient
    sets = Capabilities(permitted=permitted, inheritable=ambient, bounding=bounding, ambient=ambient)
    nobody = -1 if uid is None else uid
    return Rights(nobody, 0, (), no_new_privileges=unit.no_new_privileges, capabilities=sets)


def _how_it_ended(unit: systemd.Unit) -> str:
    if not unit.conditions_met:
        return f"{unit.name} was not started, since its conditions are not met"
    if unit.result in ("", "success"):
        return ""
    known = _EXEC_FAILURES.get(unit.exit_status, f"status {unit.exit_status}")
    return f"{unit.name} ended with the result {unit.result} ({known})"


class LaunchedTransientUnit(_LaunchedUnit):
    """A QEMU in a unit that is made for it and goes with it, so that it does not end with whoever ran the restore."""

    def __init__(self, how: Launch, vm_name: str, whose: manager.Manager, pid: int) -> None:
        """:param whose: the systemd that makes the unit. :param pid: its process."""
        super().__init__(how, whose.named(_transient_name(vm_name)))
        self._manager = whose
        self._manager_pid = pid
        self._log = LaunchLog(vm_name, how.stdout, how.stderr) if how.stderr else None

    @property
    def log(self) -> str:
        """Where to look for what it says."""
        return self._log.path if self._log else super().log

    async def start(self) -> None:
        """Have it started: its program is executed on return.

        :raises LaunchError: it cannot be.
        """
        # systemd tells only that it failed, not why.
        program, *arguments = self.how.argv
        path = os.path.join(self.how.cwd, program) if "/" in program else program
        found = shutil.which(path, path=LAUNCH_ENVIRONMENT["PATH"])
        # Of the directory of another user's QEMU it is that user who must find it.
        # The limits of services are not those of systemd itself.
        starter = dataclasses.replace(read_resources(self._manager_pid), limits=())
        if self._manager.uid is not None:
            # A user's own systemd gives more to what it starts than it has itself (DefaultOOMScoreAdjust=).
            starter = dataclasses.replace(starter, oom_score=min(starter.oom_score + _OOM_SCORE_OF_USERS, 1000))
        before, enters = words_before(self.how, starter, read_rights(self._manager_pid), self.how.cwd)
        if found is None or not (enters or os.path.isdir(self.how.cwd)):
            raise LaunchError(
                f"{program} could not be started in {self.how.cwd}: there is no such program or directory",
                cure="Check that the emulator is installed where the command says, and that its directory is there",
            )
        if self._log:
            self._log.follow()
        try:
            if (await systemd.read_unit(self.name)).load_state != "not-found":
                # Another VM of this name, or one that is just ending.
                self.name = f"{self.name[: -len('.service')]}-{secrets.token_hex(4)}.service"
            command = [systemd.escape_environment(word) for word in (*before, found, *arguments)]
            run = ("systemd-run", *await self._options("/" if enters else self.how.cwd), "--", *command)
            # Also where it fails, which may be for the time that it took.
            self._started = True
            await systemd.run_tool(*run, manager=self._manager)
        except UnitError as exc:
            raise LaunchError(
                f"{program} could not be started in the unit {self.name}: {exc.what}",
                cure=f"See {manager.shown(self.name, 'status')} and the journal",
            ) from exc

    def _is_ours(self, unit: systemd.Unit) -> bool:
        # Another VM of this name may have been faster; and when ours has ended, nothing of its unit is left.
        own = [os.fsencode(word) for word in self.how.argv[1:]]
        words = _words_of(unit.main_pid) if unit.main_pid else []
        return bool(words) and words[len(words) - len(own) :] == own

    async def _options(self, cwd: str) -> list[str]:
        places = (("StandardOutput", self.how.stdout), ("StandardError", self.how.stderr))
        return [
            *(
                "--quiet",
                "--collect",
                "--no-ask-password",
                f"--unit={manager.plain_name(self.name)}",
                "--service-type=exec",
            ),
            "--description=QEMU VM that vmops.qemu has restored",
            f"--property=WorkingDirectory={cwd}",
            # A guest's console has no end, and the journal has one.
            *(f"--property={name}={f'append:{path}' if path else 'journal'}" for name, path in places),
            *(
                [f"--slice={manager.plain_name(self.how.slice)}"]
                if await _has_slice(self.how.slice, self._manager)
                else []
            ),
            f"--property=UMask={self.how.umask:04o}",
            *(f"--setenv={key}={value}" for key, value in LAUNCH_ENVIRONMENT.items()),
        ]

    async def stderr(self) -> str:
        """What QEMU wrote since its start, the end at most (4 KiB), its lines in one."""
        if self._log:
            return self._log.tail()
        # It is asked for an error, whose place no other error shall take. A unit that has failed is gone.
        with contextlib.suppress(UnitError):
            return await self._journal("", self._since)
        return ""

    def release(self) -> None:
        """Let it go its own way."""
        super().release()
        if self._log:
            self._log.close()


async def _has_slice(name: str, whose: manager.Manager) -> bool:
    """Whether a slice is configured there, so that its limits hold; one that is not is made without."""
    if not name.endswith(".slice") or not manager.is_unit(name) or manager.split_unit(name)[0] != whose:
        return False
    return bool((await systemd.read_unit(name)).fragment)


def _words_of(pid: int) -> list[bytes]:
    """The words of a process; none where it has ended."""
    try:
        return read_command_line(pid, MAX_COMMAND_LINE).split(b"\0")[:-1]
    except OSError:
        return []


def _transient_name(vm_name: str) -> str:
    """The name of the unit for a VM; that of a long name is cut."""
    return f"vmops-qemu-{systemd.escape_unit_name(vm_name)[:200]}.service"
