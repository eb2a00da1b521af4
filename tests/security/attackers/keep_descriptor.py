# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a QEMU, keep a duplicate of the descriptor of the image that it is handed, and rewrite the image's record.

keep_descriptor.py TEXT GO QEMU...: what is in TEXT is written over the domain XML as soon as there is a file GO; with
"end" in GO's place, as soon as QEMU has ended. Then QEMU goes on, where it has not ended, and the descriptor is kept.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
import time

_PIDFD_GETFD = 438
_HEADER_SIZE = 92
#: Bytes of zeros that are written over what stands behind the new text: less than there is before the stream.
_ROOM = 100_000

text, go, *command = sys.argv[1:]
qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL)
path = command[command.index("-qmp") + 1].split(":", 1)[1].split(",")[0]
while not os.path.exists(path):
    time.sleep(0.02)
print("ready", flush=True)


def handed():
    """The numbers of QEMU's descriptors that are of a partial image."""
    for number in os.listdir(f"/proc/{qemu.pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{qemu.pid}/fd/{number}").endswith(".partial"):
                yield int(number)


numbers = list(handed())
while not numbers:
    time.sleep(0.002)
    numbers = list(handed())
kept = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, os.pidfd_open(qemu.pid), numbers[0], 0)
if kept < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
print("kept", flush=True)
if go == "end":
    qemu.wait()
while go != "end" and not os.path.exists(go):
    time.sleep(0.02)
with open(text, "rb") as forged:
    os.pwrite(kept, forged.read().ljust(_ROOM, b"\0"), _HEADER_SIZE)
print("written", flush=True)
qemu.wait()
time.sleep(600)
