# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whose systemd a unit is of: the host's, or a user's own (``systemctl --user``).

A unit of the host's is known by its name. One of a user's is known by the service of the host's in which that systemd
runs, and its name: ``user@1000.service/web1.service``. Which user that is, the host's systemd has decided; what comes
after it, and all that this systemd says, is what that user likes. So nobody asks it but he himself.

Sources: user@.service(5), systemd.unit(5), "User Unit Search Path", file-hierarchy(7), loginctl(1), unix(7); systemd's
src/shared/bus-util.c (bus_connect_user_systemd).
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
import socket
import stat
import struct

from ansible_collections.vmops.qemu.plugins.module_utils._errors import UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: Changes that last, of units of the host's: what stands here is in force after the host's reboot, too.
PERSISTENT = "/etc/systemd/system"

#: Changes until the host's reboot, which take precedence over those in ``PERSISTENT``: a file here hides one of the
#: same name there (systemd.unit(5), "Unit File Load Path"). ``/run/systemd/system`` would come after it.
RUNTIME = "/run/systemd/system.control"

#: Where logind makes the directories of the users' systemd; that of a user is there as long as his systemd is.
_USERS = "/run/user"

#: Where logind keeps whose systemd is there from the host's boot to its end, one file for each by his name.
_LINGERING = "/var/lib/systemd/linger"

_USER_SERVICE = re.compile(r"user@(0|[1-9][0-9]{0,9})\.service")
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_@\\][A-Za-z0-9:_.\\@-]*\.[a-z]+")
_MAX_UNIT_NAME = 255

#: Seconds that a user's systemd may take to accept a connection.
_CONNECT_TIMEOUT = 5.0

#: All that the tools get of this process's environment: nothing that changes what they print.
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@dataclasses.dataclass(frozen=True)
class Manager:
    """A systemd: the host's, or a user's own."""

    #: The user whose own it is; None for the host's.
    uid: int | None = None

    @property
    def is_own(self) -> bool:
        """Whether this process may change its units: root those of the host's, each user those of his own."""
        return os.geteuid() == (0 if self.uid is None else self.uid)

    @property
    def can_be_asked(self) -> bool:
        """Whether what it says may be asked for: the host's says it to everyone, and a user's to himself."""
        return self.uid is None or self.is_own

    @property
    def options(self) -> tuple[str, ...]:
        """The options by which systemd's tools talk to it."""
        return () if self.uid is None else ("--user",)

    @property
    def persistent(self) -> str:
        """The directory of changes that last.

        Of a user's it is the usual one, whatever this process's environment says, since that of his systemd counts.
        Whether it has read a file there is asked after each change.
        """
        return PERSISTENT if self.uid is None else os.path.join(_home(self.uid), ".config", "systemd", "user")

    @property
    def runtime(self) -> str:
        """The directory of changes until the host's reboot, or until the user's systemd ends."""
        return RUNTIME if self.uid is None else os.path.join(self.run_directory, "systemd", "user.control")

    @property
    def run_directory(self) -> str:
        """Where units have the directories that go with them (``RuntimeDirectory=``)."""
        return "/run" if self.uid is None else f"{_USERS}/{self.uid}"

    @property
    def service(self) -> str:
        """The service of the host's in which a user's systemd runs; empty for the host's own."""
        return "" if self.uid is None else f"user@{self.uid}.service"

    def named(self, name: str) -> str:
        """By what a unit of this systemd is known that has this name."""
        return name if self.uid is None else f"{self.service}/{name}"

    def environment(self) -> dict[str, str]:
        """That of systemd's tools, whatever this process's own is, which may be another user's.

        :raises UnitError: this user's systemd does not run, or another user may answer in its place.
        """
        if self.uid is None:
            return _ENVIRONMENT
        place = self.run_directory
        reason = _why_not_own(place, self.uid)
        if reason:
            name = user_name(self.uid)
            raise UnitError(
                f"The systemd of {name} cannot be asked: {reason}",
                cure=f"Have it run from the host's boot on (loginctl enable-linger {name}), or log {name} in by SSH",
            )
        return {**_ENVIRONMENT, "XDG_RUNTIME_DIR": place, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={place}/bus"}


#: The host's.
HOST = Manager()


# --- units ------------------------------------------------------------------------------------------------------


def is_unit_name(name: str) -> bool:
    """Whether this can be a unit's name, so that it can stand in a path and on a command line."""
    return len(name) <= _MAX_UNIT_NAME and _UNIT_NAME.fullmatch(name) is not None


def is_unit(unit: str) -> bool:
    """Whether a unit can be known by this: its name, or with that the user's systemd that it is of."""
    service, slash, name = unit.rpartition("/")
    return is_unit_name(name) and (not slash or _USER_SERVICE.fullmatch(service) is not None)


def split_unit(unit: str) -> tuple[Manager, str]:
    """The systemd that a unit is of, and its name there.

    :raises UnitError: no unit can be known by this.
    """
    if not is_unit(unit):
        raise UnitError(f"{unit!r} is not the name of a systemd unit")
    service, _slash, name = unit.rpartition("/")
    uid = user_of_service(service)
    return (HOST if uid is None else Manager(uid)), name


def user_of_service(name: str) -> int | None:
    """The user whose own systemd runs in a service of the host's; None where none does."""
    found = _USER_SERVICE.fullmatch(name)
    return int(found.group(1)) if found else None


def can_be_asked(unit: str) -> bool:
    """Whether something can be asked of a unit: it can be one, and of a systemd that tells this process."""
    return is_unit(unit) and split_unit(unit)[0].can_be_asked


def is_of_other_user(unit: str) -> bool:
    """Whether a unit is one of another user's own systemd."""
    return is_unit(unit) and not split_unit(unit)[0].can_be_asked


def shown(unit: str, verb: str, tool: str = "systemctl") -> str:
    """A command by which a person looks at a unit, or changes it.

    :param verb: what to do with it (``cat``), or the tool's option for it (``-u``).
    """
    manager = split_unit(unit)[0] if is_unit(unit) else HOST
    return " ".join((tool, *manager.options, verb, plain_name(unit)))


def plain_name(unit: str) -> str:
    """A unit's name in its own systemd, as it stands on a command line."""
    return unit.rpartition("/")[2]


def require_own(unit: str, purpose: str) -> None:
    """:param purpose: what is to be done, after "may". :raises UnitError: this process may not change that unit."""
    manager, _name = split_unit(unit)
    if manager.is_own:
        return
    if manager.uid is None:
        raise UnitError(f"Only root may {purpose}", cure="Run the task as root (become)")
    name = user_name(manager.uid)
    raise UnitError(
        f"Only {name} may {purpose}, as it is a unit of that user's own systemd",
        cure=f"Run the task as {name} (become_user: {name})",
    )


# --- this user's ------------------------------------------------------------------------------------------------


def starter() -> tuple[Manager, int] | None:
    """The systemd that can start a VM for this user so that it outlives his sessions, and its process.

    It is the host's for root, and a user's own where it stays when he logs out (lingering); None where there is none.
    """
    if not os.path.isdir("/run/systemd/system"):
        return None
    uid = os.geteuid()
    if uid == 0:
        return HOST, 1
    if not lingers(uid) or _why_not_own(f"{_USERS}/{uid}", uid):
        return None
    pid = _listener(f"{_USERS}/{uid}/systemd/private", uid)
    return (Manager(uid), pid) if pid else None


def starter_pid() -> int:
    """The process with whose namespaces, limits and rights a VM is started again that no unit of its own starts."""
    found = starter()
    if found is None or (os.geteuid() and not os.access(f"/proc/{found[1]}/ns/mnt", os.F_OK)):
        return os.getpid()  # that systemd shows nothing of itself, and is of the same host
    return found[1]


def lingers(uid: int) -> bool:
    """Whether a user's systemd is there from the host's boot to its end, whether he is logged in or not."""
    return os.path.lexists(os.path.join(_LINGERING, user_name(uid)))


def _why_not_own(directory: str, uid: int) -> str:
    """Why a directory is not one that this user alone can look into, as a clause; or the empty string."""
    try:
        facts = os.lstat(directory)
    except OSError as error:
        return f"{directory}: {error.strerror}"
    if stat.S_ISDIR(facts.st_mode) and facts.st_uid == uid and not stat.S_IMODE(facts.st_mode) & 0o077:
        return ""
    return f"{directory} belongs to {user_name(facts.st_uid)} and has the mode {stat.S_IMODE(facts.st_mode):#o}"


def _listener(path: str, uid: int) -> int:
    """The process that listens on a socket, where it is this user's; else 0."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(_CONNECT_TIMEOUT)
            connection.connect(path)
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return 0
    pid, owner, _group = struct.unpack("3i", peer)
    return pid if owner == uid else 0


def _home(uid: int) -> str:
    """A user's home directory, as the host's systemd, which has started his, knows it.

    :raises UnitError: he has none.
    """
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError as error:
        raise UnitError(
            f"The user {uid} has no account on this host, and no systemd of his own",
            cure="Run the task as another user",
        ) from error
