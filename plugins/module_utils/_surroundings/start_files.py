# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files that a QEMU reads at its start, beside its disks: firmware, option ROMs, kernel, secrets, scripts.

Most of them are closed again at once, so nothing but the command line names them. That one is not there any more is
said at the save, and again at the restore before anything is started. What is in them does not matter for a restore, as
the guest has it in its memory, but for the size of firmware and ROMs: QEMU makes memory of that size of them, into
which only a state of the same size is loaded. A package's update may have changed it, also since the VM was started.

ROMs have the next power of two as their size, unless ``romsize=`` says more (hw/pci/pci.c); the firmware in ``pc.bios``
its own (hw/i386/x86-common.c). Files are looked for in QEMU's data directories, as it does (``qemu -L help``).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import stat
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import looking
from ansible_collections.vmops.qemu.plugins.module_utils._errors import CommandError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Setting
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess, age
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import read_ram_blocks
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.devices import read_children
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

#: Where distributions have QEMU's firmware and ROMs, beside the directories that its own place and -L name.
_DATA_DIRECTORIES = (
    *("/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu", "/usr/share/qemu-firmware"),
    *("/usr/share/ipxe/qemu", "/usr/share/seavgabios", "/usr/local/share/qemu"),
)

#: Types of devices that have a ROM unless they are told otherwise.
_WITH_ROM = re.compile(
    r"virtio-net|e1000|rtl8139|pcnet|ne2k|vmxnet3|i82|VGA|(?:cirrus|virtio|qxl)-?.*vga|qxl|vmware-svga|bochs-display"
)

#: The value of a device's ``romsize`` where its ROM is not in memory of its own (UINT32_MAX).
_NO_ROM_MEMORY = 2**32 - 1

#: Options whose argument is such a file.
_OPTIONS = frozenset(("kernel", "initrd", "dtb", "shim", "option-rom", "readconfig"))

#: By option, the keys whose value is such a file or directory.
_KEYS = {
    "machine": ("kernel", "initrd", "dtb", "shim"),
    "M": ("kernel", "initrd", "dtb", "shim"),
    "smbios": ("file", "path"),
    "acpitable": ("file",),
    "fw_cfg": ("file",),
    "virtfs": ("path",),
    "fsdev": ("path",),
    "plugin": ("file",),
    "netdev": ("script", "downscript", "helper"),
    "nic": ("script", "downscript", "helper"),
}

#: Devices of which ``file=`` is put into the guest's memory.
_LOADERS = frozenset(("loader", "guest-loader"))

#: Objects, by the beginning of their type, with keys that name such files or directories.
_OBJECTS = {"secret": ("file",), "tls-creds": ("dir",), "authz-list-file": ("filename",), "tls-cipher": ()}

#: More than a VM has.
_MAX_FILES = 256


@dataclasses.dataclass(frozen=True)
class StartFile:
    """One of them; ``room`` is the size in bytes of the memory that QEMU made of it, 0 where that does not matter."""

    path: str
    #: What names it, as messages say it: ``-kernel``, ``the ROM of its e1000 nic0``.
    use: str
    size: int
    room: int = 0
    #: Whether the memory has the next power of two as its size.
    rounded: bool = False

    def fits(self, size: int) -> bool:
        """Whether QEMU makes memory of the same size of a file of so many bytes."""
        return self.room in (0, size) or (self.rounded and 1 << max(0, size - 1).bit_length() == self.room)


async def find_start_files(
    monitor: Monitor, process: QemuProcess, types: t.Mapping[str, str]
) -> tuple[list[StartFile], list[Problem]]:
    """Those of a running QEMU that are there, and what of them would keep it from being started again.

    :param types: of its devices, by their paths.
    :raises MonitorError: QEMU cannot be asked.
    """
    wanted = await _wanted_firmware(monitor, process, types)
    files, problems = await looking(_named_in_words, process)
    firmware, changed = await looking(_firmware, process, wanted)
    found = {file.path: file for file in (*files, *firmware)}
    return list(found.values()), problems + changed


def _named_in_words(process: QemuProcess) -> tuple[list[StartFile], list[Problem]]:
    """Those that its command line names; it looks at files, which may hang."""
    found: dict[str, StartFile] = {}
    problems = []
    for path, use in _named_files(process)[:_MAX_FILES]:
        facts = _facts(path, process.pid)
        if facts is None:
            problems.append(
                Problem(
                    "start_file_missing",
                    f"{path} ({use}), which QEMU reads when it is started, is not there any more",
                    "Put it back (an earlier version will do, or the package that had it), or start the VM with one"
                    " that lasts",
                )
            )
        elif "\0" not in path:
            found.setdefault(path, StartFile(path, use, facts.st_size if stat.S_ISREG(facts.st_mode) else 0))
    return list(found.values()), problems


def missing_files(recorded: t.Iterable[StartFile]) -> list[StartFile]:
    """Those of the recorded files that are not there any more."""
    return [file for file in recorded if _facts(file.path) is None]


def changed_firmware(recorded: t.Iterable[StartFile]) -> list[tuple[StartFile, int]]:
    """Firmware and ROMs of which QEMU would make memory of another size now, and their size."""
    found = []
    for file in recorded:
        facts = _facts(file.path) if file.room else None
        if facts is not None and not file.fits(facts.st_size):
            found.append((file, facts.st_size))
    return found


def changed_text(file: StartFile, size: int) -> tuple[str, str]:
    """What is wrong, as a clause, and what to do about it."""
    return (
        f"{file.path} ({file.use}) had {file.size} bytes when the VM was saved and has {size} now, so the state of the"
        " VM does not fit into the memory that QEMU makes of it",
        "Put the file back as it was, from the package of then; or name a copy of that on the VM's command line"
        " (-bios, romfile=)",
    )


# --- by the command line ---


def _named_files(process: QemuProcess) -> list[tuple[str, str]]:
    """The paths, and what names each."""
    found = []
    for setting in process.configuration.settings:
        for name, use in _names_in(setting):
            if name and name != "no" and not re.match(r"[\w+.-]+://|/dev/(?:fdset|fd|std)|/proc/|fd:", name):
                found.append((name, use))
    directories = data_directories(process)
    return [(_resolved(name, use, process.cwd, directories), use) for name, use in found]


def _names_in(setting: Setting) -> list[tuple[str, str]]:
    option, keys = setting.option, setting.keys
    if option in _OPTIONS:
        names = _modules(setting.argument) if option == "initrd" else [setting.argument]
        return [(name, f"-{option}") for name in names]
    if option == "bios" and "/" in setting.argument:
        return [(setting.argument, "-bios")]
    wanted = _KEYS.get(option, ())
    label = keys.get("id", "")
    if option == "object":
        kind = keys.get("qom-type", "")
        wanted = next((known for prefix, known in _OBJECTS.items() if kind.startswith(prefix)), ())
        return [(keys[key], f"its {kind} {label}".rstrip()) for key in wanted if key in keys]
    if option == "device":
        # One without a directory may be in a place of QEMU's own that is not known here.
        rom = ("romfile",) if "/" in keys.get("romfile", "") else ()
        wanted = ("file", "kernel", "initrd") if keys.get("driver") in _LOADERS else rom
    if option in ("netdev", "nic") and keys.get("type") not in ("tap", "bridge"):
        return []
    if option == "smbios" or option == "acpitable":
        from_text = re.findall(r"(?:^|,)(?:file|path|data)=((?:[^,]|,,)+)", setting.argument)
        names = [part for text in from_text for part in text.replace(",,", ",").split(":")]
        return [(name, f"-{option}") for name in names]
    return [(keys[key], f"{key} of -{option} {label}".rstrip()) for key in wanted if keys.get(key)]


def _modules(argument: str) -> list[str]:
    """The file of ``-initrd``, or those of a multiboot kernel (``file args,file``)."""
    if os.path.exists(argument) or "," not in argument:
        return [argument]
    return [part.split(" ")[0] for part in argument.split(",")]


def _resolved(name: str, use: str, cwd: str, directories: t.Sequence[str]) -> str:
    """A ROM without a directory is one of QEMU's own."""
    path = os.path.join(cwd, name)
    if "romfile" in use or use == "-option-rom":
        places = [path, *(os.path.join(place, name) for place in directories)]
        return next((place for place in places if os.path.isfile(place)), path)
    return path


def _facts(path: str, pid: int | None = None) -> os.stat_result | None:
    """None where it is not there; of one that may not be looked at, nothing is said."""
    places = [path] if pid is None else [path, f"/proc/{pid}/root{path}"]
    missing = 0
    for place in places:
        try:
            return os.stat(place)
        except (FileNotFoundError, NotADirectoryError):
            missing += 1
        except (OSError, ValueError):
            pass
    return None if missing == len(places) else os.stat_result([0] * 10)


# --- firmware and ROMs ---


def data_directories(process: QemuProcess) -> list[str]:
    """Where QEMU looks for its firmware, as far as that is known here."""
    given = [setting.argument for setting in process.configuration.of("L") if setting.argument != "help"]
    own = os.path.join(os.path.dirname(os.path.dirname(process.executable)), "share", "qemu")
    places = [*(os.path.join(process.cwd, place) for place in given), own, *_DATA_DIRECTORIES]
    return list(dict.fromkeys(places))


@dataclasses.dataclass(frozen=True)
class _Firmware:
    """What QEMU has made memory of: the file's name as QEMU has it, and the rest as a :class:`StartFile` has it."""

    name: str
    use: str
    room: int
    rounded: bool


async def _wanted_firmware(monitor: Monitor, process: QemuProcess, types: t.Mapping[str, str]) -> list[_Firmware]:
    """What QEMU says of it."""
    own = await read_children(monitor, "/machine/unattached")
    devices = {**types, **{f"/machine/unattached/{name}": kind for name, kind in own.items()}}
    told = {
        setting.keys.get("driver", "") for setting in process.configuration.of("device") if "romfile" in setting.keys
    }
    asked = {path: kind for path, kind in devices.items() if _WITH_ROM.match(kind) or kind in told}
    roms = await asyncio.gather(*(_rom_of(monitor, path) for path in asked))
    wanted = [
        _Firmware(name, f"the ROM of its {kind} {path.rpartition('/')[2]}", room, True)
        for (path, kind), (name, room) in zip(asked.items(), roms)
        if name and 0 < room < _NO_ROM_MEMORY
    ]
    bios = next((block.used for block in await read_ram_blocks(monitor) if block.name == "pc.bios"), 0)
    if bios:
        wanted.append(_Firmware(_bios_name(process), "its firmware", bios, False))
    return wanted


def _firmware(process: QemuProcess, wanted: t.Iterable[_Firmware]) -> tuple[list[StartFile], list[Problem]]:
    """The files of it; it looks at files, which may hang."""
    files, problems = [], []
    for each in wanted:
        file = _firmware_file(process, each)
        if file is None:
            continue
        if each.rounded and _has_own_size(process):
            files.append(dataclasses.replace(file, room=0))  # there is more room than the file needs
        elif file.fits(file.size):
            files.append(file)
        elif _changed_since_start(file.path, process) or os.path.isabs(each.name):
            what, cure = changed_text(dataclasses.replace(file, size=each.room), file.size)
            problems.append(
                Problem("firmware_changed", what.replace("when the VM was saved", "at the VM's start"), cure)
            )
    return files, problems


async def _rom_of(monitor: Monitor, path: str) -> tuple[str, int]:
    """The file of a device's ROM, and the size of its memory."""
    try:
        name, size = await asyncio.gather(
            *(monitor.execute("qom-get", {"path": path, "property": key}) for key in ("romfile", "romsize"))
        )
    except CommandError:
        return "", 0
    return (name, size) if isinstance(name, str) and isinstance(size, int) else ("", 0)


def _bios_name(process: QemuProcess) -> str:
    name = "bios-256k.bin"
    for setting in process.configuration.settings:
        if setting.option == "bios":
            name = setting.argument
        elif setting.option in ("machine", "M"):
            name = setting.keys.get("firmware", name)
    return name


def _firmware_file(process: QemuProcess, each: _Firmware) -> StartFile | None:
    """The file by that name that QEMU has read; None where it is not known which."""
    places = [os.path.join(process.cwd, each.name)]
    if not os.path.isabs(each.name):
        places += [os.path.join(place, each.name) for place in data_directories(process)]
    found = []
    for place in places:
        with contextlib.suppress(OSError, ValueError):
            facts = os.stat(place)
            if stat.S_ISREG(facts.st_mode):
                found.append(StartFile(place, each.use, facts.st_size, each.room, each.rounded))
    return next((file for file in found if file.fits(file.size)), found[0] if found else None)


def _has_own_size(process: QemuProcess) -> bool:
    return any("romsize" in word for word in process.configuration.words)


def _changed_since_start(path: str, process: QemuProcess) -> bool:
    with contextlib.suppress(OSError):
        return os.stat(path).st_ctime > time.time() - age(process.pid)
    return False
