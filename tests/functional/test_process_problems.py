# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who starts a VM, and where: what of that a restore would not give again is found before the VM is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from functional.conftest import OLD_QEMU

from support.observe import VM, Continuity

needs_old_qemu = pytest.mark.skipif(not OLD_QEMU.exists(), reason="QEMU 7.2 is not set up")

# --- files to which QEMU writes on the host ---


@pytest.mark.parametrize("qemu", ["qemu-system-x86_64", pytest.param(str(OLD_QEMU), marks=needs_old_qemu)])
def test_console_keeps_its_history(make_guest, image, save, restore, tmp_path, qemu):
    """Twice, and whatever the form in which the file is named."""
    logs = {name: tmp_path / f"{name}, log" for name in ("short", "monitor", "chardev", "copy", "short-copy")}
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    doubled = {name: str(path).replace(",", ",,") for name, path in logs.items()}
    words = [
        *("-serial", f"file:{logs['short']}"),
        *("-monitor", f"file:{logs['monitor']}"),
        *("-chardev", f"file,id=written,path={doubled['chardev']}", "-device", "isa-serial,chardev=written,index=2"),
        *("-chardev", f"null,id=copied,logfile={doubled['copy']}", "-device", "isa-serial,chardev=copied,index=3"),
        *("-monitor", f"unix:{sockets}/hmp,server=on,wait=off,logfile={doubled['short-copy']}"),
    ]
    guest = make_guest(extra_args=words, qemu=qemu, machine="pc-i440fx-7.2" if "7.2" in qemu else "pc")
    continuity = Continuity(guest)
    told = {path: f"what {name} had said\n" for name, path in logs.items()}
    for path, text in told.items():
        path.write_text(text)
    for _time in range(2):
        save(name=VM, path=str(image))
        guest.wait_exit()
        restore(name=VM, path=str(image))
        continuity.check()
        for path, text in told.items():
            assert path.read_text().startswith(text)
            # Through what QEMU has open now, and where its end is now.
            told[path] = path.read_text()
    argv = Path(f"/proc/{guest.pid}/cmdline").read_text().split("\0")
    assert len([word for word in argv if "append=on" in word]) == 6  # one of them is the guest's own


def test_console_shared_with_a_monitor_keeps_its_history(make_guest, image, save, restore, tmp_path):
    log = tmp_path / "console"
    guest = make_guest(extra_args=["-serial", f"mon:file:{log}"])
    continuity = Continuity(guest)
    log.write_text("what it had said\n")
    for _time in range(2):
        save(name=VM, path=str(image))
        restore(name=VM, path=str(image))
        continuity.check()
    assert log.read_text().startswith("what it had said\n")
    labels = {device["label"] for device in guest.qmp("query-chardev")}
    assert {"serial1", "serial1-base"} <= labels, "it is a multiplexer still"
