# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is left of a command line of libvirt's for a QEMU without libvirt, whichever libvirt has composed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.libvirt import without_libvirt

BEFORE = [
    *("/usr/bin/qemu-system-x86_64", "-name", "guest=web1,debug-threads=on", "-S"),
    *("-object", '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/libvirt/master-key.aes"}'),
    *("-machine", "pc-i440fx-10.0", "-m", "size=65536k"),
    *("-object", '{"qom-type":"memory-backend-ram","id":"pc.ram","size":67108864}'),
]
AFTER = [
    *("-rtc", "base=utc", "-boot", "strict=on"),
    *("-add-fd", "set=0,fd=25,opaque=serial0-log"),
    *("-chardev", "socket,id=charserial0,fd=23,server=on,wait=off,logfile=/dev/fdset/0,logappend=on"),
    *("-device", '{"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0}'),
    *("-chardev", "socket,id=monitor,path=/a,server=on", "-qmp", "unix:/run/web1.qmp,server=on,wait=off"),
    *("-msg", "timestamp=on"),
]
MONITORS = {
    "11.3": ["-chardev", "socket,id=charmonitor,fd=22,server=on,wait=off", "-mon", "chardev=charmonitor,id=monitor"],
    "12.8": [
        *("-chardev", "socket,id=charmonitor,fd=22,server=on,wait=off"),
        *("-object", '{"qom-type":"monitor-qmp","id":"monitor","chardev":"charmonitor"}'),
    ],
    "json": [
        *("-chardev", '{"backend":"socket","id":"charmonitor","fd":"22"}'),
        *("-object", "{'qom-type': 'monitor-qmp', 'chardev': 'charmonitor', 'id': 'monitor'}"),
    ],
    "keys": ["-object", "monitor-qmp,id=monitor,chardev=charmonitor"],
}


@pytest.mark.parametrize("monitor", MONITORS.values(), ids=MONITORS)
def test_what_is_left(monitor):
    assert without_libvirt([*BEFORE, *monitor, *AFTER], Path("/vm/serial.sock"), Path("/vm/serial.log")) == [
        *("/usr/bin/qemu-system-x86_64", "-name", "guest=web1,debug-threads=on"),
        *("-machine", "pc-i440fx-10.0", "-m", "size=65536k"),
        *("-object", '{"qom-type":"memory-backend-ram","id":"pc.ram","size":67108864}'),
        *("-rtc", "base=utc", "-boot", "strict=on"),
        "-chardev",
        "socket,id=charserial0,path=/vm/serial.sock,server=on,wait=off,logfile=/vm/serial.log,logappend=on",
        *("-device", '{"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0}'),
        *("-chardev", "socket,id=monitor,path=/a,server=on", "-qmp", "unix:/run/web1.qmp,server=on,wait=off"),
    ]
