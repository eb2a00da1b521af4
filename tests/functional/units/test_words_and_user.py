# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whose words and rights QEMU gets in its unit: the unit's own, as they are now, and never more than it had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.observe import VM, Continuity
from support.process import read_argv, rewrite_words
from support.record import without_record_checksum
from support.units import BY_USER, UNAVAILABLE, blocking_kinds, of_root, quoted, systemctl

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)


def test_words_that_qemu_has_forged(make_service, image, save, run_module, restore):
    """Found before the save; and where it was saved all the same, they are not what the unit starts."""
    room = "name=opt/room,string=abcdef"
    service = make_service(guest={"extra_args": ["-fw_cfg", room]})
    continuity = Continuity(service.guest)
    rewrite_words(service.guest.pid, [room], [room.replace("abcdef", "forged")])
    refused = run_module("qemu_save", name=VM, path=str(image))
    assert refused["error"] == "NotRestorableError"
    assert blocking_kinds(refused) == ["unit_changed"]
    assert "-fw_cfg" in refused["msg"]
    assert service.name in refused["cure"]
    rewrite_words(service.guest.pid, [room.replace("abcdef", "forged")], [room])
    save(name=VM, path=str(image))
    pristine = image.read_bytes()
    changed = pristine.replace(b">-fw_cfg</vmops:argument>", b">-XX_cfg</vmops:argument>", 1)
    assert changed != pristine
    image.write_bytes(without_record_checksum(changed))
    assert run_module("qemu_restore", name=VM, path=str(image))["error"] == "NotVouchedError"
    # As one who has saved it before that was found out.
    assert run_module("qemu_save_image", path=str(image), vouch=True)["changed"]
    words = read_argv(restore(name=VM, path=str(image))["vm"]["pid"])
    assert "-fw_cfg" in words
    assert "-XX_cfg" not in words
    continuity.check()


def test_unit_that_was_changed_since_its_start(make_service, image, save, run_module, restore):
    service = make_service()
    continuity = Continuity(service.guest)
    text = service.fragment.read_text()
    changed = text.replace('"-m" "64"', '"-m" "96"')
    service.fragment.write_text(changed)
    systemctl("daemon-reload")
    refused = run_module("qemu_save", name=VM, path=str(image))
    assert blocking_kinds(refused) == ["unit_changed"]
    assert "-m in the place of -m" in refused["msg"]
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    save(name=VM, path=str(image))
    service.fragment.write_text(changed)
    systemctl("daemon-reload")
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError"
    assert "another command now" in result["msg"]
    assert service.changes() == [service.guard]
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    restore(name=VM, path=str(image))
    continuity.check()


def test_variables_are_the_units_own(make_service, image, save, restore, run_module, tmp_path):
    """systemd expands them again; they are compared as they are now."""
    file = tmp_path / "variables"
    file.write_text("MORE=-no-reboot -no-shutdown\n")
    service = make_service(start=False, service=f"Environment=MEMORY=64 ODD='a b$$c'\nEnvironmentFile={file}")
    text = service.fragment.read_text().replace(
        '"-m" "64"', '"-m" ${MEMORY} $MORE $UNSET -fw_cfg name=opt/o,string=${ODD}$$x%%'
    )
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    service.start()
    words = read_argv(service.guest.pid)
    assert "-no-shutdown" in words
    assert "name=opt/o,string=a b$$c$x%" in words
    continuity = Continuity(service.guest)
    for _time in range(2):
        saved = save(name=VM, path=str(image))
        assert "warnings" not in saved
        restored = read_argv(restore(name=VM, path=str(image))["vm"]["pid"])
        assert restored[: len(words)] == words
    continuity.check()
    service.fragment.write_text(text.replace("MEMORY=64", "MEMORY=96"))
    systemctl("daemon-reload")
    assert blocking_kinds(run_module("qemu_save", name=VM, path=str(image))) == ["unit_changed"]


def test_start_option_in_a_variable(make_service, image, run_module):
    service = make_service(start=False, service="Environment=MORE=-S")
    service.fragment.write_text(service.fragment.read_text().replace('"-m" "64"', '"-m" "64" $MORE'))
    systemctl("daemon-reload")
    systemctl("start", service.name)
    service.guest.wait_restarted()
    assert blocking_kinds(run_module("qemu_save", name=VM, path=str(image))) == ["unit_command_unknown"]


@of_root
def test_script_that_gives_rights_up(make_service, image, save, restore):
    """A restore executes QEMU in its place, by its own words, as the user and with the rights that it has now."""
    service = make_service(start=False)
    drop = "/usr/bin/setpriv --reuid=nobody --regid=nogroup --clear-groups --no-new-privs"
    service.fragment.write_text(service.fragment.read_text().replace("ExecStart=", f"ExecStart={drop} "))
    systemctl("daemon-reload")
    for place in service.guest.workdir, *service.guest.workdir.iterdir(), service.guest.qmp_socket.parent:
        os.chown(place, 65534, 65534)
    service.start()
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    restored = restore(name=VM, path=str(image))
    status = Path(f"/proc/{restored['vm']['pid']}/status").read_text()
    assert restored["unit"] == service.name
    assert "Uid:\t65534\t65534\t65534\t65534" in status
    assert "NoNewPrivs:\t1" in status
    continuity.check()


@of_root
def test_script_that_drops_the_units_capabilities(make_service, image, save, restore):
    service = make_service(start=False, service="User=nobody\nAmbientCapabilities=CAP_NET_RAW CAP_CHOWN")
    drop = "/usr/bin/setpriv --inh-caps=-net_raw --ambient-caps=-net_raw"
    service.fragment.write_text(service.fragment.read_text().replace("ExecStart=", f"ExecStart={drop} "))
    systemctl("daemon-reload")
    for place in service.guest.workdir, *service.guest.workdir.iterdir(), service.guest.qmp_socket.parent:
        os.chown(place, 65534, 65534)
    service.start()
    save(name=VM, path=str(image))
    status = Path(f"/proc/{restore(name=VM, path=str(image))['vm']['pid']}/status").read_text()
    assert "CapEff:\t0000000000000001\n" in status


@of_root
def test_script_that_becomes_another_user_than_the_units(make_service, image, run_module):
    service = make_service(start=False, service="User=daemon\nAmbientCapabilities=CAP_SETUID CAP_SETGID")
    drop = "/usr/bin/setpriv --reuid=nobody --regid=nogroup --clear-groups"
    service.fragment.write_text(service.fragment.read_text().replace("ExecStart=", f"ExecStart={drop} "))
    systemctl("daemon-reload")
    for place in service.guest.workdir, *service.guest.workdir.iterdir(), service.guest.qmp_socket.parent:
        os.chown(place, 65534, 65534)
    service.start()
    refused = run_module("qemu_save", name=VM, path=str(image))
    assert "unit_user" in blocking_kinds(refused)
    assert "daemon" in refused["msg"]


@of_root
def test_qemu_of_root_that_gives_root_up_in_its_unit(make_service, image, save, restore):
    """The words are the unit's, so root may run them: QEMU opens what is root's, and becomes nobody as before."""
    service = make_service(guest={"extra_args": ["-run-with", "user=nobody"]})
    assert os.stat(f"/proc/{service.guest.pid}").st_uid == 65534
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    restored = restore(name=VM, path=str(image))
    assert os.stat(f"/proc/{restored['vm']['pid']}").st_uid == 65534
    assert "user=nobody" in read_argv(restored["vm"]["pid"])
    continuity.check()


def test_hardened_unit_with_a_script(make_service, image, save, restore, tmp_path):
    """What the unit sets is set again, filters and capabilities among it."""
    script = tmp_path / "start-vm"
    service = make_service(
        start=False,
        service="NoNewPrivileges=yes\nRestrictRealtime=yes\n"
        + ("" if BY_USER else "CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_FOWNER"),
        command=str(script),
    )
    script.write_text(f"#!/bin/sh\nexec {quoted(service.guest.argv())}\n")
    script.chmod(0o755)
    service.start()
    before = Path(f"/proc/{service.guest.pid}/status").read_text()
    save(name=VM, path=str(image))
    after = Path(f"/proc/{restore(name=VM, path=str(image))['vm']['pid']}/status").read_text()
    for key in ("CapPrm", "CapBnd", "NoNewPrivs", "Seccomp_filters"):
        lines = [next(line for line in text.splitlines() if line.startswith(f"{key}:")) for text in (before, after)]
        assert lines[0] == lines[1]
