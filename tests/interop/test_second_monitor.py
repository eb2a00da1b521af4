# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A running domain of libvirt's gets a QMP monitor beside libvirt's own, by which it is saved; libvirt restores it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.libvirt import Libvirt, LibvirtGuest
from support.observe import VM, Continuity


@pytest.fixture
def guest(libvirt: Libvirt, make_guest):
    if tuple(map(int, libvirt.qemu_version.split("."))) < (11, 1):
        pytest.skip(f"QEMU {libvirt.qemu_version} opens no second monitor; Debian forky's does")
    return make_guest()


def tell(libvirt: Libvirt, *commands: str) -> None:
    """Tell QEMU through libvirt's own monitor; it says nothing where it obeys."""
    for command in commands:
        assert libvirt.virsh("qemu-monitor-command", VM, "--hmp", command).strip() == ""


def open_monitor(libvirt: Libvirt, place: Path) -> None:
    tell(
        libvirt,
        f"chardev-add socket,id=vmops,path={place},server=on,wait=off",
        "object_add monitor-qmp,id=vmops,chardev=vmops",
    )


def restore_by_libvirt(guest: LibvirtGuest, image: Path) -> None:
    guest.libvirt.virsh("restore", image)
    guest.wait_restarted()
    image.unlink()


def test_it_is_opened_used_and_removed(libvirt, guest, image, save, tmp_path):
    continuity = Continuity(guest)
    place = tmp_path / "second.sock"
    open_monitor(libvirt, place)
    xml = libvirt.virsh("dumpxml", "--migratable", VM)
    save(qmp_socket=str(place), path=str(image), domain_xml=xml, image_version=2, after_save="resume")
    tell(libvirt, "object_del vmops", "chardev-remove vmops")
    assert not place.exists()
    libvirt.wait_state(VM, "running")
    continuity.check()


def test_there_and_back(libvirt, guest, image, save, tmp_path):
    """Twice: a domain that came back has libvirt's monitor alone, and gets another one."""
    continuity = Continuity(guest)
    for number in range(2):
        place = tmp_path / f"second-{number}.sock"
        open_monitor(libvirt, place)
        xml = libvirt.virsh("dumpxml", "--migratable", VM)
        save(qmp_socket=str(place), path=str(image), domain_xml=xml, image_version=2, format="sparse")
        libvirt.wait_state(VM, "shut off")
        restore_by_libvirt(guest, image)
        continuity.check()


def test_libvirts_save_is_restored_here_and_libvirt_has_it_again(
    libvirt, guest, image, run_module, save, restore, tmp_path
):
    continuity = Continuity(guest)
    xml = libvirt.virsh("dumpxml", "--migratable", VM)
    libvirt.virsh("save", VM, image, "--image-format", "sparse")
    guest.wait_exit()
    restore(path=str(image), launch="command", command=guest.argv())
    guest.wait_restarted()
    continuity.check()
    save(qmp_socket=str(guest.qmp_socket), path=str(image), domain_xml=xml, image_version=2, format="sparse")
    restore_by_libvirt(guest, image)
    open_monitor(libvirt, tmp_path / "second.sock")
    continuity.check()
