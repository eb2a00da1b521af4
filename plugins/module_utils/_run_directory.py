# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The directory of what runs share until the host's reboot: locks, progress, logs.

``/run/vmops.qemu`` for root; ``$XDG_RUNTIME_DIR/vmops.qemu`` for any other user, and where that variable is not set, as
with sudo, ``/run/user/UID/vmops.qemu``, which is the same one for whoever has logged in. It belongs to its user alone,
who alone can look into it. Where there is none, or another user's, nothing else is taken in its place: two runs with
their locks in two places would not know of each other.

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

from ansible_collections.vmops.qemu.plugins.module_utils._errors import RunDirectoryError
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe_directory
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

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
    """Where it is, or would be.

    :raises OSError: this user has no directory for it, or it may be someone else's.
    """
    uid = os.geteuid()
    if uid == 0:
        return ROOT_DIRECTORY
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    if not os.path.isabs(runtime):
        raise OSError(errno.EINVAL, "XDG_RUNTIME_DIR is not an absolute path", runtime)
    facts = os.lstat(runtime)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != uid or stat.S_IMODE(facts.st_mode) & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        raise OSError(
            errno.EPERM, f"it belongs to {user_name(facts.st_uid)} and has the mode {mode:#o}, and is not used", runtime
        )
    reason = why_unsafe_directory(runtime, (0, uid))
    if reason:
        raise OSError(errno.EPERM, f"{reason}, and it is not used", runtime)
    return os.path.join(runtime, "vmops.qemu")


def lock_path(name: str) -> str:
    """The file for the lock of this name, in a directory that is made.

    :raises RunDirectoryError: there is none that nobody else could write to.
    """
    try:
        return os.path.join(run_directory("locks"), name)
    except OSError as error:
        user = user_name(os.geteuid())
        raise RunDirectoryError(
            f"There is no directory for the locks that keep two runs of {user} apart: {error.filename}:"
            f" {error.strerror}",
            cure="Give it to that user, with the mode 0700"
            if os.geteuid() == 0
            else f"Have the host make one (loginctl enable-linger {user}, or log {user} in by SSH); or set"
            f" XDG_RUNTIME_DIR to a directory of {user}'s alone, with the mode 0700, the same for all runs",
        ) from error


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
