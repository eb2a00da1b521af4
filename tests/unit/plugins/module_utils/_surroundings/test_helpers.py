# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._shell_text import is_readable, starts_in_a_loop
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.helpers import (
    DiskFiles,
    Effect,
    judge_command,
    judge_script,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from hypothesis import given
from hypothesis import strategies as st

MEDIA = [
    Medium(
        "disk0",
        "",
        "n0",
        False,
        (MediumFile("/srv/vm/web1.qcow2", "qcow2"), MediumFile("/srv/base/deb.qcow2", "qcow2")),
    ),
    Medium("cd0", "", "n1", True, (MediumFile("/srv/vm/seed.iso", "raw"),)),
    Medium("disk1", "", "n2", False, (MediumFile("/dev/zvol/tank/web1-data", "raw"),)),
    Medium("disk2", "", "n3", False, (MediumFile("nbd://host/x", "raw"),)),
]
DISKS = DiskFiles(MEDIA)


def judge(text, directory="/srv/vm"):
    judged = judge_command(text, DISKS, directory)
    if judged.effect is Effect.TOUCHES:
        return "touches" if judged.writable else "touches read-only"
    return judged.effect.value


@pytest.mark.parametrize(
    "text",
    [
        "/usr/bin/qemu-img create -f qcow2 -b /srv/base/deb.qcow2 -F qcow2 /srv/vm/web1.qcow2",
        "/usr/bin/qemu-img create -f qcow2 web1.qcow2 10G",
        "/usr/bin/qemu-img create -f qcow2 ${OVERLAY} 10G",
        "qemu-img snapshot -a clean /srv/vm/web1.qcow2",
        "qemu-img commit /srv/vm/web1.qcow2",
        "qemu-img rebase -u -b x /srv/vm/web1.qcow2",
        "qemu-img resize /srv/vm/web1.qcow2 +1G",
        "qemu-img convert -O qcow2 /golden.qcow2 /srv/vm/web1.qcow2",
        "/bin/rm -f /srv/vm/web1.qcow2",
        "/bin/rm -f web1.qcow2",
        "/bin/rm -rf /srv/vm",
        "/bin/rm -f /srv/vm/../vm/web1.qcow2",
        "/bin/cp /golden.qcow2 /srv/vm/web1.qcow2",
        "/bin/cp /golden/web1.qcow2 /srv/vm/",
        "/bin/cp -a /golden/. /srv/vm/",
        "/bin/mv /srv/vm/web1.qcow2 /old",
        "/bin/mv /srv/vm /srv/old",
        "rsync -a --delete /golden/ /srv/vm/",
        "/bin/dd if=/dev/zero of=/srv/vm/web1.qcow2 bs=1M",
        "truncate -s 0 /srv/vm/web1.qcow2",
        "/usr/local/bin/reset-vm /srv/vm/web1.qcow2",
        "/usr/local/bin/reset-vm --disk=/srv/vm/web1.qcow2",
        "/usr/local/bin/reset-vm file=web1.qcow2,x=y",
        "/bin/sh -c rm -f /srv/vm/web1.qcow2",
        "/bin/sh -ec cd /srv/vm && rm -f web1.qcow2",
        "/bin/sh -c : > /srv/vm/web1.qcow2",
        "/bin/sh -c for d in /srv/vm/*.qcow2; do rm -f $$d; done",
        "/bin/sh -c rm -f /srv/vm/web*.qcow2",
        "/bin/bash -c D=/srv/vm; qemu-img create -f qcow2 $$D/web1.qcow2 1G",
        "/bin/bash -c test -e /srv/vm/web1.qcow2 && rm /srv/vm/web1.qcow2",
        "/bin/bash -c test -e /run/flag || qemu-img create -f qcow2 /srv/vm/web1.qcow2 1G",
        "/bin/sh -c if [ ! -e /srv/vm/web1.qcow2 ]; then true; else rm -f /srv/vm/web1.qcow2; fi",
        "/bin/sh -c cat /golden | tee /srv/vm/web1.qcow2 >/dev/null",
        "sudo -u vm rm -f /srv/vm/web1.qcow2",
        "/usr/bin/env LANG=C nice -n 5 rm -f /srv/vm/web1.qcow2",
        "/sbin/zfs rollback -r tank/web1-data@clean",
        "/sbin/mkfs.ext4 /dev/zvol/tank/web1-data",
        "mount -o loop /srv/vm/web1.qcow2 /mnt",
        "/bin/sed -i s/a/b/ /srv/vm/web1.qcow2",
        "/usr/bin/find /srv/vm -name *.qcow2 -delete",
        "tar -xf /golden.tar -C /srv/vm",
        "rm /srv/base/deb.qcow2",
        "/usr/bin/python3 -c import os; os.remove('/srv/vm/web1.qcow2')",
    ],
)
def test_what_touches_a_disk(text):
    assert judge(text) == "touches"


@pytest.mark.parametrize(
    "text", ["/usr/bin/cloud-localds /srv/vm/seed.iso /etc/u", "/bin/sh -c genisoimage -o seed.iso d"]
)
def test_what_touches_a_disk_that_the_guest_cannot_write_to(text):
    assert judge(text) == "touches read-only"


@pytest.mark.parametrize(
    "text",
    [
        "/bin/mkdir -p /srv/vm /run/web1",
        "/usr/bin/install -d -m 700 /srv/vm",
        "/usr/bin/test -f /srv/vm/web1.qcow2",
        "/bin/chown qemu: /srv/vm/web1.qcow2",
        "/usr/bin/qemu-img info /srv/vm/web1.qcow2",
        "/usr/bin/qemu-img check -q web1.qcow2",
        "/usr/bin/qemu-img create -f qcow2 -b /srv/base/deb.qcow2 -F qcow2 /srv/vm/other.qcow2",
        "/sbin/ip tuntap add dev tap0 mode tap user qemu",
        "/sbin/ip link set tap0 master br0",
        "/usr/bin/ip netns exec blue ip link set lo up",
        "/bin/sleep 1",
        "/usr/bin/swtpm socket --tpmstate dir=/srv/vm/tpm --ctrl type=unixio,path=/run/tpm.sock --daemon",
        "/bin/rm -f /run/web1.qmp /srv/vm/web1.pid",
        "/bin/rm -f web1.pid",
        "/bin/cp /srv/vm/web1.qcow2 /backup/web1.qcow2",
        "/bin/cp /etc/hosts /srv/vm/",
        "/bin/dd if=/srv/vm/web1.qcow2 of=/backup/x",
        "/bin/sh -c echo system_powerdown | socat - UNIX-CONNECT:/run/web1.hmp",
        "/bin/sh -c test -e /srv/vm/web1.qcow2 || qemu-img create -f qcow2 /srv/vm/web1.qcow2 10G",
        "/bin/sh -c [ -f web1.qcow2 ] || cp /golden.qcow2 web1.qcow2",
        "/bin/sh -c [ ! -f /srv/vm/web1.qcow2 ] && qemu-img create -f qcow2 /srv/vm/web1.qcow2 10G",
        "/bin/sh -c if [ ! -f /srv/vm/web1.qcow2 ]; then qemu-img create -f qcow2 /srv/vm/web1.qcow2 10G; fi",
        "/bin/sh -c for image; do test ! -e \"$$image\" || exit 1; done sh /var/lib/vmops/save/web1.save",
        "/bin/sh -c while kill -0 $MAINPID; do sleep 1; done",
        "/bin/sh -c echo started >>/var/log/web1.log 2>&1",
        "/sbin/zfs list tank/web1-data",
        "/sbin/lvchange -ay vg/web1",
        "/usr/bin/find /srv/vm -name web1.qcow2",
        "",
    ],
)  # fmt: skip
def test_what_touches_no_disk(text):
    assert judge(text) == "none"


@pytest.mark.parametrize(
    "text",
    [
        "/usr/local/bin/prepare web1",
        "/usr/local/bin/prepare",
        "prepare",
        "/bin/rm -f ${LEFTOVERS}",
        "/bin/sh -c /opt/hooks/start web1",
        "/bin/sh /no/such/script",
        "/usr/bin/python3 /no/such/script",
        "/bin/sh",
    ],
)
def test_what_is_not_known(text):
    assert judge(text) == "unknown"


@pytest.mark.parametrize(
    ("script", "effect"),
    [
        ("#!/bin/sh\nrm -f /srv/vm/web1.qcow2\n", "touches"),
        ("#!/bin/bash\nDISK=/srv/vm/$1.qcow2\nqemu-img create -f qcow2 -b /srv/base/deb.qcow2 $DISK\n", "touches"),
        ("#!/bin/bash\nqemu-img create -q -f qcow2 /srv/vm/${1%x}.qcow2\n", "touches"),
        ("#!/bin/bash\ncd /srv/vm\nfor vm in $(cat list); do rm -f $vm.qcow2; done\n", "touches"),
        ("#!/bin/sh\nD=/srv/vm\ncd $D\nrm *.qcow2\n", "touches"),
        ("#!/usr/bin/env python3\nimport os\nos.remove('/srv/vm/web1.qcow2')\n", "touches"),
        ("#!/usr/bin/python3\nprint('web1')\n", "unknown"),
        ("#!/bin/sh\nset -e\nip tuntap add tap-$1 mode tap\nip link set tap-$1 up\n", "none"),
        ("#!/bin/sh\n# rm /srv/vm/web1.qcow2\nmkdir -p /srv/vm\n", "none"),
        ("#!/bin/sh\ntest -f /srv/vm/web1.qcow2 || exit 1\nrm -f /run/web1.pid\n", "none"),
        ("#!/bin/sh\nif [ ! -e /srv/vm/$1.qcow2 ]\nthen\n  cp /golden /srv/vm/$1.qcow2\nfi\n", "none"),
        ("#!/bin/sh\n/opt/other $1\n", "unknown"),
        ("#!/bin/sh\nrm -f $PIDFILE\n", "unknown"),
        ("\x7fELF", "unknown"),
    ],
)
def test_scripts(tmp_path, script, effect):
    path = tmp_path / "helper"
    path.write_text(script)
    assert judge(f"{path} web1", "/") == effect
    if script.startswith("#!/bin/sh"):
        assert judge(f"/bin/sh {path} web1", "/") == effect
    if "python" in script:
        assert judge(f"/usr/bin/python3 -u {path} web1", "/") == effect


def test_script_that_runs_a_script(tmp_path):
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.write_text("#!/bin/sh\nrm -f $1\n")
    outer.write_text(f"#!/bin/sh\n{inner} /srv/vm/web1.qcow2\n")
    assert judge(str(outer), "/") == "touches"
    outer.write_text(f"#!/bin/sh\n{outer}\n")
    assert judge(str(outer), "/") == "unknown"


def test_script_that_is_none(tmp_path):
    os.mkfifo(tmp_path / "helper")
    assert judge(str(tmp_path / "helper")) == "unknown"
    (tmp_path / "large").write_text("#!/bin/sh\n" + "true\n" * 100_000)
    assert judge(str(tmp_path / "large")) == "unknown"
    assert judge(str(tmp_path)) == "unknown"


def test_symbolic_link_to_a_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.touch()
    (tmp_path / "link").symlink_to(disk)
    disks = DiskFiles([Medium("d", "", "", False, (MediumFile(str(disk), "raw"),))])
    assert judge_command(f"rm -f {tmp_path}/./link", disks).effect is Effect.TOUCHES


@pytest.mark.parametrize("unit", ["sudo ", "sh -c ", "\n", "\nexec ", "x=y ", "a", "A=$A$A;", "if [ ! -e x ]; then\n"])
def test_large_script_takes_a_moment(unit):
    """Anybody's, who wants to keep a save of root's busy."""
    text = unit * (256 * 1024 // len(unit))
    started = time.monotonic()
    judge_script(text, DISKS)
    if is_readable(text):
        starts_in_a_loop(text, ["x"])
    assert time.monotonic() - started < 30


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_text(text):
    judge(text)
    judge(f"/bin/sh -c {text}")
