# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is kept of a VM that was shut down with its host in mind, so that it is started again afterwards.

One file for each VM, in ``shut-down/`` of the state directory: a JSON object with ``name``, ``at`` (when it was asked
to shut down, in seconds since the epoch), ``launch``, how it had been started, ``surroundings``, what it needs for
that beside its disks (:mod:`_surroundings.record`), which QEMU was asked (``pid``, ``birth``, ``boot_id``), and
``ended``, whether the run that asked has seen that QEMU's end. It is written before the guest is asked, again when its
QEMU has ended, and removed when the VM runs again. Nobody but its user can write there.

Only what has ``ended`` is started again: any other VM may since have been shut down for good, or run on another host,
which nothing here can tell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._durable import flush_directory, write_durably
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord
from ansible_collections.vmops.qemu.plugins.module_utils._proc import boot_id
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import vm_uuid
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe
from ansible_collections.vmops.qemu.plugins.module_utils._state_directory import make_state_directory, state_path
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings

_DIRECTORY = "shut-down"

#: Bytes of a file that are read at most; a command line has 512 KiB, and JSON may take six for each.
_MAX_SIZE = 8 * 1024 * 1024

#: Seconds since the epoch that are a time: the end of the year 9999.
_MAX_TIME = 253402300800.0


@dataclasses.dataclass(frozen=True)
class ShutDownVm:
    """A VM that was shut down and is to be started again."""

    name: str
    #: When it was asked to shut down, in seconds since the epoch.
    at: float
    launch: LaunchRecord
    #: A text of :class:`Surroundings`; empty in a file of an earlier version, as the following.
    surroundings: str = ""
    #: The QEMU that was asked, when it had been started (:class:`QemuProcess`), and in which boot of the host.
    pid: int = 0
    birth: int = 0
    boot_id: str = ""
    #: Whether the run that asked it has seen its end.
    ended: bool = False

    def read_surroundings(self) -> Surroundings:
        """What it needs; raises ValueError where that makes no sense."""
        return Surroundings.parse(self.surroundings) if self.surroundings else Surroundings((), ())

    def was_asked(self, process: QemuProcess) -> bool:
        """Whether this is the very QEMU that was asked to shut down: the VM has not ended since."""
        return bool(self.pid) and (self.pid, self.birth, self.boot_id) == (process.pid, process.birth, boot_id())

    @property
    def uuid(self) -> str:
        """The VM's, in the usual form; empty where its words do not give it."""
        return vm_uuid(self.launch.argv)

    @property
    def when(self) -> str:
        """``at``, for people."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at))

    @property
    def key(self) -> str:
        """A file name for the VM, whatever its own is."""
        return hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    @property
    def path(self) -> str:
        """Where it is kept."""
        return os.path.join(state_path(_DIRECTORY), f"{self.key}.json")


def keep(vm: ShutDownVm) -> None:
    """Keep it across a reboot; in force on return.

    :raises ConflictError: it cannot be kept.
    """
    try:
        make_state_directory()
        directory = os.path.dirname(vm.path)
        with contextlib.suppress(FileExistsError):  # another VM of the same run may just have made it
            os.mkdir(directory, 0o700)
        flush_directory(os.path.dirname(directory))
        write_durably(vm.path, f"{json.dumps(dataclasses.asdict(vm))}\n".encode())
    except OSError as error:
        raise ConflictError(
            f"How {vm.name} is started again cannot be kept in {vm.path}: {error.strerror}",
            cure="Make room there, or give the directory to the user that runs the task, with the mode 0700",
        ) from error


def forget(vm: ShutDownVm) -> None:
    """It runs again, did so since, or was never shut down.

    :raises ConflictError: the file cannot be removed.
    """
    try:
        os.unlink(vm.path)
        flush_directory(os.path.dirname(vm.path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConflictError(
            f"It cannot be forgotten that {vm.name} was shut down ({vm.path}: {error.strerror})",
            cure="Remove the file",
        ) from error


def read_all() -> list[ShutDownVm]:
    """The VMs that were shut down and were not started again, by name.

    :raises ConflictError: it cannot be known which they are.
    """
    directory = state_path(_DIRECTORY)
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConflictError(
            f"Which VMs were shut down cannot be read in {directory}: {error.strerror}",
            cure="Make it readable, and run the task again",
        ) from error
    return sorted((_read(os.path.join(directory, name)) for name in names), key=lambda vm: vm.name)


def read_again(vm: ShutDownVm) -> ShutDownVm | None:
    """What is kept of it by now; None where it was forgotten.

    :raises ConflictError: that cannot be known.
    """
    return _read(vm.path) if os.path.lexists(vm.path) else None


def _read(path: str) -> ShutDownVm:
    try:
        reason = why_unsafe(path, {0, os.geteuid()})
        if reason:
            raise ValueError(f"others could have written it: {reason}")
        found = json.loads(read_bounded(path, _MAX_SIZE))
        launch = found["launch"]
        values = {field.name: launch[field.name] for field in dataclasses.fields(LaunchRecord) if field.name in launch}
        more = {key: found[key] for key in ("pid", "birth", "boot_id", "ended") if key in found}
        vm = ShutDownVm(
            str(found["name"]), float(found["at"]), LaunchRecord(**values), str(found.get("surroundings", "")), **more
        )
        vm.read_surroundings()
        if not _is_whole(vm.launch) or not _is_known(vm) or vm.path != path:
            raise ValueError("it is not as it was written")
        return vm
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConflictError(
            f"A VM was shut down, and how it is started again cannot be read in {path}: {reason}",
            cure="Start the VM by hand, and remove the file",
        ) from error


def _is_known(vm: ShutDownVm) -> bool:
    return (
        math.isfinite(vm.at)
        and abs(vm.at) < _MAX_TIME
        and all(isinstance(number, int) and not isinstance(number, bool) for number in (vm.pid, vm.birth))
        and isinstance(vm.boot_id, str)
        and isinstance(vm.ended, bool)
    )


def _is_whole(launch: LaunchRecord) -> bool:
    texts = [*launch.argv, *launch.unit_argv, launch.cwd, launch.executable, launch.unit, launch.umask]
    texts += [launch.groups, launch.capabilities, launch.resources, launch.network_namespace, launch.slice]
    texts += [launch.stdout, launch.stderr]
    numbers = [launch.uid, launch.gid]
    return (
        isinstance(launch.argv, list)
        and isinstance(launch.unit_argv, list)
        and bool(launch.argv)
        and all(isinstance(text, str) and "\0" not in text for text in texts)
        and all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
        and isinstance(launch.no_new_privileges, bool)
        and isinstance(launch.network_mounts, bool)
    )
