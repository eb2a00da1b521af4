# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The images that libvirt 11.3 made: where they are, and the command of the QEMU that they are of."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .guest import SOURCES

GOLDEN = SOURCES / "tests" / "fixtures" / "golden"
#: The QEMU into which they are restored; its floppy disk, its log and its monitor are in its working directory.
COMMAND = [
    *("qemu-system-x86_64", "-name", "guest=tiny", "-S", "-accel", "tcg", "-cpu", "qemu64", "-smp", "1"),
    *("-machine", "pc-i440fx-10.0,usb=off,memory-backend=pc.ram,acpi=off", "-m", "size=16384k"),
    *("-object", "memory-backend-ram,id=pc.ram,size=16777216"),
    *("-uuid", "11111111-2222-3333-4444-555555555555"),
    *("-display", "none", "-no-user-config", "-nodefaults", "-rtc", "base=utc", "-boot", "strict=on"),
    *("-global", "isa-fdc.bootindexA=1"),
    *("-blockdev", "driver=file,filename=tiny.img,node-name=s,read-only=on"),
    *("-device", "floppy,unit=0,drive=s,id=fdc0-0-0"),
    *(
        "-chardev",
        "file,id=charserial0,path=serial.log",
        "-device",
        "isa-serial,chardev=charserial0,id=serial0,index=0",
    ),
    *("-qmp", "unix:tiny.qmp,server=on,wait=off", "-incoming", "defer"),
]


def unpack_images(directory: Path) -> Path:
    """Unpack the images into a directory, with their holes; the directory that they are in (raw.save, sparse.save)."""
    # tar(1), since Python's tarfile writes out the holes of sparse members.
    subprocess.run(["tar", "-S", "-xJf", GOLDEN / "libvirt-11.3.tar.xz", "-C", directory], check=True)
    return directory
