# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The QEMUs to test with: this host's, and those that scripts/setup unpacks into .cache."""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess

from .guest import REPOSITORY

#: The oldest one, which may not be there.
OLD_QEMU = REPOSITORY / ".cache" / "qemu-7.2" / "qemu-system-x86_64"

#: One that opens a QMP monitor through a human one, which may not be there.
NEW_QEMU = REPOSITORY / ".cache" / "qemu-11.1" / "qemu-system-x86_64"


def why_not_restored() -> str:
    """Why the oldest one cannot be started by its recorded words; the empty string where it can.

    They have no variables of the environment: without its wrapper it needs libraries of this host's.
    """
    if not OLD_QEMU.exists():
        return "no QEMU 7.2 (make setup)"
    program = OLD_QEMU.parent / "root" / "usr" / "bin" / OLD_QEMU.name
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


@dataclasses.dataclass(frozen=True, order=True)
class Qemu:
    """One QEMU; they compare by their versions."""

    version: tuple[int, ...]
    path: str

    @property
    def label(self) -> str:
        """The version as people name it, "10.0"."""
        return ".".join(map(str, self.version[:2]))

    @property
    def who(self) -> str:
        """Its name in the table of who reads whose images."""
        return f"vmops.qemu with QEMU {'.'.join(map(str, self.version))}"

    @property
    def mapped_ram(self) -> bool:
        """Whether it writes and reads sparse images."""
        return self.version >= (9, 1)

    @functools.cached_property
    def machines(self) -> list[str]:
        """Its machine types of the kind pc-i440fx-N.M, the newest first."""
        found = re.findall(r"^pc-i440fx-(\d+)\.(\d+)\s", _output(self.path, "-machine", "help"), re.MULTILINE)
        newest_first = sorted(((int(major), int(minor)) for major, minor in found), reverse=True)
        return [f"pc-i440fx-{major}.{minor}" for major, minor in newest_first]


def common_machine(one: Qemu, other: Qemu) -> str:
    """The newest machine type that both have; raises StopIteration where they have none."""
    return next(machine for machine in one.machines if machine in other.machines)


@functools.cache
def find_qemus() -> tuple[Qemu, ...]:
    """The QEMUs that are there, the oldest first; one for each version."""
    paths = [OLD_QEMU, NEW_QEMU]
    found: dict[tuple[int, ...], Qemu] = {}
    for path in ["qemu-system-x86_64", *(str(path) for path in paths if path.exists())]:
        match = re.match(r"QEMU emulator version (\d+(?:\.\d+)+)", _output(path, "--version"))
        if match:
            version = tuple(map(int, match.group(1).split(".")))
            found.setdefault(version, Qemu(version, path))
    return tuple(found[version] for version in sorted(found))


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
