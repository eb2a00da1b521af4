# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The save of VMs at their host's shutdown, of the guests of these tests alone; a scenario of molecule has systemd.

That the host goes down is only said: it shall not.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _file_system
from ansible_collections.vmops.qemu.plugins.module_utils._host import shutdown_program
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager

from support.counter import NamelessGuest
from support.observe import OTHER_VM, VM, Continuity, run_state, wait_until


@pytest.fixture
def at_shutdown(image, tmp_path, monkeypatch, capfd):
    """Run the program while the host goes down, or does not; its exit status and what it said."""
    path = tmp_path / "program" / "save_settings.json"
    path.parent.mkdir(mode=0o755)
    everyone = shutdown_program.vms_to_save

    def run(*, goes_down=True, **settings):
        known = {"save_dir": str(image.parent), "exclude": [], "parallel": 2, "timeout": 60}
        path.write_text(json.dumps({**known, **settings}))

        async def host_goes_down():
            return goes_down

        monkeypatch.setattr(shutdown_program, "_host_goes_down", host_goes_down)

        async def ours(exclude):  # guests of others run here, too
            called, nameless = await everyone(exclude)
            unnamed = [process for process in nameless if process.cwd.startswith(str(tmp_path))]
            return sorted({VM, OTHER_VM} & set(called)), unnamed

        monkeypatch.setattr(shutdown_program, "vms_to_save", ours)
        status = shutdown_program.main(str(path))
        said = capfd.readouterr()
        return status, said.out + said.err

    return run


def test_all_are_saved_and_marked_for_the_boot(make_guest, image, at_shutdown, run_module):
    guests = [make_guest(name, observer=True) for name in (VM, OTHER_VM)]
    continuities = [Continuity(guest) for guest in guests]
    status, said = at_shutdown()
    assert status == 0, said
    for guest in guests:
        guest.wait_exit()
        assert f"{guest.name} was saved in {image.parent}/{guest.name}.save" in said
        facts = read_image_head(f"{image.parent}/{guest.name}.save").domain().save_facts
        assert facts
        assert facts.managed
    back = run_module("qemu_managed_restore", save_dir=str(image.parent))
    assert not back.get("failed"), back["msg"]
    for continuity in continuities:
        continuity.check()


def test_service_that_is_stopped_while_the_host_stays_up(guest, image, at_shutdown):
    assert at_shutdown(goes_down=False) == (0, "this host does not shut down, so no VM is touched\n")
    assert run_state(guest) == "running"


@pytest.mark.skipif(os.geteuid() != 0, reason="a user's own systemd ends with the user's session, too")
def test_directory_that_goes_with_the_host(guest, at_shutdown):
    """An image there would be lost; its unit may shut the guest down as it always does."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        status, said = at_shutdown(save_dir=place)
        assert (status, os.listdir(place)) == (1, [])
    assert f"{place} is on /dev/shm, a file system (tmpfs) that goes with this host's shutdown" in said
    assert run_state(guest) == "running"


@pytest.mark.parametrize("in_container", [False, True])
@pytest.mark.skipif(os.geteuid() != 0, reason="a user's own systemd ends with the user's session, too")
def test_directory_that_may_go_with_the_host(guest, image, at_shutdown, monkeypatch, in_container):
    monkeypatch.setattr(_file_system, "_is_container", lambda: in_container)
    monkeypatch.setattr(shutdown_program, "lasting", lambda path: _file_system.Lasting("/", "overlay", None))
    status, said = at_shutdown()
    assert status == (0 if in_container else 1), said
    assert f"{image.parent} is on /, a file system (overlay) that is not known to " in said
    if in_container:
        guest.wait_exit()
        assert read_image_head(f"{image.parent}/{VM}.save").header.complete
    else:
        assert run_state(guest) == "running"
        assert os.listdir(image.parent) == []


def test_what_cannot_be_saved_goes_on_and_is_named(make_guest, image, at_shutdown):
    guest, other = make_guest(observer=True), make_guest(OTHER_VM)
    (image.parent / f"{VM}.save").write_bytes(b"of somebody else")
    status, said = at_shutdown()
    assert status == 1
    assert f"<3>{VM}: " in said
    assert "is not a save image" in said
    assert run_state(guest) == "running"
    other.wait_exit()
    assert read_image_head(f"{image.parent}/{OTHER_VM}.save").header.complete


def test_time_that_is_over(big_guest, image, at_shutdown):
    continuity = Continuity(big_guest)
    status, said = at_shutdown(timeout=0.05)
    assert status == 1
    assert f"<3>{VM}: " in said
    assert not any(image.parent.glob("*.save"))
    continuity.check()


def test_restore_that_is_at_work_is_ended_first(make_guest, image, at_shutdown, run_module, start_module, tmp_path):
    """What it brought back behind the save would be lost; and what it has brought back by then is saved again."""
    continuities = [Continuity(make_guest(name, observer=True)) for name in (VM, OTHER_VM)]
    saved = run_module("qemu_managed_save", vms=[VM, OTHER_VM], save_dir=str(image.parent))
    assert not saved.get("failed"), saved["msg"]
    restoring = start_module(
        "qemu_managed_restore",
        vms=[VM, OTHER_VM],
        save_dir=str(image.parent),
        order=[[VM], [OTHER_VM]],
        by_vm={VM: {"health_check": ["test", "-e", str(tmp_path / "never")], "health_check_timeout": 8}},
    )
    wait_until(lambda: not (image.parent / f"{VM}.save").exists(), timeout=60)
    status, said = at_shutdown()
    assert status == 0, said
    assert f"the restore that is at work (pid {restoring.process.pid}) is told to end" in said
    assert f"{VM} was saved in {image.parent}/{VM}.save" in said
    assert restoring.result()["failed"]
    assert sorted(path.name for path in image.parent.glob("*.save")) == sorted(f"{vm}.save" for vm in (VM, OTHER_VM))
    back = run_module("qemu_managed_restore", save_dir=str(image.parent))
    assert not back.get("failed"), back["msg"]
    for continuity in continuities:
        continuity.check()


def test_another_save_is_waited_for_no_longer_than_there_is_time(
    big_guest, make_guest, image, at_shutdown, start_module
):
    """It is at work on one VM, which is left to it; the other VM is saved beside it."""
    make_guest(OTHER_VM)
    directory = str(image.parent)
    saving = start_module("qemu_managed_save", vms=[VM], save_dir=directory, bandwidth="2M", parallel_channels=1)
    wait_until(lambda: any(path.name.startswith(f".{VM}") for path in image.parent.iterdir()), timeout=60)
    status, said = at_shutdown(timeout=6)
    assert f"waiting, as a run saves VMs in {directory} (pid {saving.process.pid})" in said
    assert (
        "another run is still at work: the VMs are saved beside it, but for those on which others are at work" in said
    )
    assert f"{OTHER_VM} was saved in {directory}/{OTHER_VM}.save" in said
    assert (status, saving.process.poll()) == (1, None)


def vms_to_save(exclude=()):
    """What they are called, and the process ids of those that nothing names."""
    called, nameless = asyncio.run(shutdown_program.vms_to_save(exclude))
    return called, [process.pid for process in nameless]


def test_who_is_left_alone(make_guest):
    make_guest(extra_args=["-chardev", "null,id=charmonitor"])
    make_guest(OTHER_VM)
    found, _nameless = vms_to_save()
    assert VM not in found, "it is libvirt's"
    assert OTHER_VM in found
    assert OTHER_VM not in vms_to_save(["db*"])[0]


def test_vm_that_only_its_unit_names(make_guest, monkeypatch):
    pid = make_guest(kind=NamelessGuest).pid

    async def unit_of(process):
        return "user@1000.service/web7.service" if process.pid == pid else ""

    monkeypatch.setattr(shutdown_program, "unit_of", unit_of)
    found, nameless = vms_to_save()
    assert "user@1000.service-web7.service" in found
    assert pid not in nameless
    assert "user@1000.service-web7.service" not in vms_to_save(["user@1000.service-web7.service"])[0]


def test_vm_that_nothing_names_goes_on_and_is_told(make_guest, image, at_shutdown):
    other, guest = make_guest(OTHER_VM), make_guest(kind=NamelessGuest, observer=True)
    assert guest.pid in vms_to_save()[1]
    status, said = at_shutdown()
    assert status == 1, said
    assert f"<3>A QEMU (pid {guest.pid}) cannot be saved: it has no name, uuid or unit" in said
    other.wait_exit()
    assert run_state(guest) == "running"
    assert at_shutdown()[0] == 1, "there is nobody else now"


def test_systemd_that_cannot_be_asked(image, tmp_path, monkeypatch, capfd):
    """It is not known whether the host goes down, so no guest is touched."""
    path = tmp_path / "save_settings.json"
    tmp_path.chmod(0o755)
    path.write_text(json.dumps({"save_dir": str(image.parent), "exclude": [], "parallel": 2, "timeout": 60}))
    monkeypatch.setattr(manager, "_ENVIRONMENT", {"PATH": str(tmp_path)})
    assert shutdown_program.main(str(path)) == 1
    assert "systemctl" in capfd.readouterr().err
