# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a QEMU that is started will answer; that it does needs one, and is tested with one."""

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.greeting import doors_of
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch

QMP = ("-qmp", "unix:/run/q,server=on,wait=off")
QMP_TCP = ("-qmp", "tcp:127.0.0.1:1,server=on,wait=off")
QMP_TCP_OBJECT = (
    *("-chardev", "socket,id=c0,host=127.0.0.1,port=1,server=on,wait=off"),
    *("-mon", "chardev=c0,mode=control"),
)
HUMAN = ("-monitor", "unix:/run/h,server=on,wait=off")
HUMAN_TCP = ("-monitor", "telnet:127.0.0.1:2,server=on,wait=off")


@pytest.mark.parametrize(
    ("words", "for_image", "other"),
    [
        (QMP, ["/run/q"], ["/run/q"]),
        (QMP_TCP, ["127.0.0.1:1"], ["127.0.0.1:1"]),
        (QMP_TCP + QMP, ["/run/q"], ["/run/q"]),
        (QMP_TCP + HUMAN + QMP, ["/run/q", "/run/h"], ["/run/q", "/run/h"]),
        # Through the human one a QMP server at a UNIX socket is opened, by a QEMU that can do it.
        (QMP_TCP + HUMAN, ["/run/h"], ["/run/h", "127.0.0.1:1"]),
        (QMP_TCP_OBJECT + HUMAN, ["/run/h"], ["/run/h", "127.0.0.1:1"]),
        (HUMAN_TCP + QMP_TCP, ["127.0.0.1:2"], ["127.0.0.1:2", "127.0.0.1:1"]),
    ],
)
def test_an_image_is_passed_where_it_can_be(words, for_image, other):
    how = Launch(("qemu", *words))
    assert [door.address for door in doors_of(how, "web1")] == for_image
    assert [door.address for door in doors_of(how, "web1", for_image=False)] == other


def test_the_address_that_is_asked_for():
    (door,) = doors_of(Launch(("qemu", *QMP_TCP, *HUMAN)), "web1", "127.0.0.1:1")
    assert (door.address, door.is_human) == ("127.0.0.1:1", False)


def test_no_monitor():
    with pytest.raises(LaunchError, match="web1"):
        doors_of(Launch(("qemu", "-monitor", "stdio")), "web1")
