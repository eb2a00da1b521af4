# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The directory of what runs share until the host's reboot: locks, progress, logs.

``/run/vmops.qemu`` for root; ``$XDG_RUNTIME_DIR/vmops.qemu`` for any other user, or, where there is none, as for a user
who has not logged in, ``/tmp/vmops.qemu-UID``. It belongs to its user alone, who alone can look into it.

- ``<VM>.progress``: how far the run on a VM has come (``_progress``)
- ``<pid>.host-run``: how far a run over all VMs of this host has come (``_host/progress``)
- ``locks/<name>``: the lock of this name, such as ``vm-<pid>-<start>`` (``_lock``)
- ``logs/<VM>.log``: what a VM's QEMU says, where that goes nowhere else (``launch_log``); root's are in
  ``/var/log/vmops.qemu``
"""

from __future__ import annotations

import errno
import os
import stat
import urllib.parse

ROOT_DIRECTORY = "/run/vmops.qemu"

_ROOT_LOGS = "/var/log/vmops.qemu"

_PROGRESS = ".progress"
_HOST_RUN = ".host-run"


def run_directory(name: str = "") -> str:
    """The directory, or the one of this name in it, made where it is missing.

    :raises OSError: it cannot be made, or what is there may be someone else's.
    """
    path = base_directory()
    make_own_directory(path)
    if name:
        path = os.path.join(path, name)
        make_own_directory(path)
    return path


def base_directory() -> str:
    """Where it is, or would be."""
    if os.geteuid() == 0:
        return ROOT_DIRECTORY
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.path.isdir(runtime):
        return os.path.join(runtime, "vmops.qemu")
    return f"/tmp/vmops.qemu-{os.geteuid()}"


def lock_path(name: str) -> str:
    """The file for the lock of this name, in a directory that is made; raises as :func:`run_directory`."""
    return os.path.join(run_directory("locks"), name)


def progress_path(vm: str) -> str:
    """The file for the progress of the run on a VM, in a directory that is made; raises as :func:`run_directory`."""
    return os.path.join(run_directory(), f"{_file_name(vm)}{_PROGRESS}")


def progress_paths() -> list[str]:
    """All files of that kind; raises OSError where the directory may be someone else's."""
    return _paths(_PROGRESS)


def host_run_path(pid: int) -> str:
    """The file for the progress of the run over this host's VMs that this process is; as :func:`progress_path`."""
    return os.path.join(run_directory(), f"{pid}{_HOST_RUN}")


def host_run_paths() -> list[str]:
    """All files of that kind; raises OSError where the directory may be someone else's."""
    return _paths(_HOST_RUN)


def _paths(suffix: str) -> list[str]:
    if not os.path.lexists(base_directory()):
        return []
    directory = run_directory()
    return [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.endswith(suffix)]


def log_path(vm: str) -> str:
    """The file for what a VM's QEMU says, in a directory that is made; raises as :func:`run_directory`."""
    directory = _ROOT_LOGS if os.geteuid() == 0 else run_directory("logs")
    make_own_directory(directory)
    return os.path.join(directory, f"{_file_name(vm)[:200]}.log")


def _file_name(vm: str) -> str:
    return urllib.parse.quote(vm, safe="")


def make_own_directory(path: str) -> None:
    """Make a directory of this user's alone, where it is missing.

    :raises OSError: it cannot be made, or what is there may be someone else's.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        # In /tmp anyone can have made it, or put a link there.
        facts = os.lstat(path)
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o022:
            raise OSError(errno.EPERM, "it is not a directory of this user's alone", path) from None
