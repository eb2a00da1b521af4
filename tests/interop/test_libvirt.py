# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images go between libvirt and us, both ways, and the guest in them never notices."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Callable

import pytest

from support import qmp
from support.compatibility import record
from support.libvirt import Libvirt, LibvirtGuest
from support.observe import VM, Continuity

FORMATS = ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"]

Run = Callable[..., dict[str, Any]]


def us(libvirt: Libvirt) -> str:
    """Our name in the table."""
    return f"vmops.qemu with QEMU {libvirt.qemu_version}"


def them(libvirt: Libvirt) -> str:
    """libvirt's."""
    return f"libvirt {libvirt.version}"


def smoke(formats: list[str]) -> list[Any]:
    """Parameters for all the formats, those in the argument marked as smoke tests."""
    return [pytest.param(name, marks=pytest.mark.smoke) if name in formats else name for name in FORMATS]


def info(run_module: Run, image: Path) -> dict[str, Any]:
    """What qemu_save_image_info says of a good image."""
    result = run_module("qemu_save_image_info", path=str(image), verify=True)
    found: dict[str, Any] = result["image"]
    assert found["problems"] == []
    assert found["state"] == "complete"
    return found


# --- libvirt saves, we restore ---


def restore_from_libvirt(
    guest: LibvirtGuest,
    image: Path,
    run_module: Run,
    restore: Run,
    continuity: Continuity,
    image_format: str,
    state: str,
) -> None:
    guest.wait_exit()
    found = info(run_module, image)
    assert found["version"] == 2
    assert found["format"] == image_format
    assert found["vm_state"] == state
    assert found["name"] == VM
    assert found["uuid"] == guest.uuid
    assert found["memory"] == guest.memory_mib << 20
    assert found["vcpus"] == 1
    assert found["cookie"]
    # Also where our record is in the XML: libvirt has carried it on from an earlier image.
    assert found["launch_recorded"] is False
    assert "vmops.qemu" in found["readable_by"]
    result = restore(path=str(image), launch="command", command=guest.argv())
    assert result["launched"]
    assert result["vm"]["run_state"] == state
    assert not image.exists()
    guest.wait_restarted()
    if state == "paused":
        qmp(guest.qmp_socket, "cont")
    continuity.check()


@pytest.mark.parametrize("image_format", smoke(["sparse", "zstd"]))
def test_we_restore_what_libvirt_saved(libvirt, guest, image, run_module, restore, image_format):
    continuity = Continuity(guest)
    libvirt.virsh("save", VM, image, "--image-format", image_format)
    restore_from_libvirt(guest, image, run_module, restore, continuity, image_format, "running")
    record(writer=them(libvirt), reader=us(libvirt), format=image_format, version=2, result="restored")


@pytest.mark.parametrize("image_format", FORMATS)
def test_we_restore_what_libvirt_saved_of_a_paused_guest(libvirt, guest, image, run_module, restore, image_format):
    continuity = Continuity(guest)
    libvirt.virsh("suspend", VM)
    libvirt.virsh("save", VM, image, "--image-format", image_format)
    restore_from_libvirt(guest, image, run_module, restore, continuity, image_format, "paused")


@pytest.mark.parametrize("image_format", ["raw", "sparse"])
def test_we_restore_paused_what_libvirt_was_told_to(libvirt, guest, image, run_module, restore, image_format):
    continuity = Continuity(guest)
    libvirt.virsh("save", VM, image, "--image-format", image_format, "--paused")
    restore_from_libvirt(guest, image, run_module, restore, continuity, image_format, "paused")


@pytest.mark.parametrize("channels", [1, 4])
def test_we_restore_what_libvirt_saved_past_the_cache(libvirt, guest, image, run_module, restore, channels):
    continuity = Continuity(guest)
    how = ["--image-format", "sparse", "--bypass-cache", "--parallel-channels", str(channels)]
    libvirt.virsh("save", VM, image, *how)
    restore_from_libvirt(guest, image, run_module, restore, continuity, "sparse", "running")


# --- we save, libvirt restores ---


def save_for_libvirt(guest: LibvirtGuest, image: Path, save: Run, **options: Any) -> None:
    """Save a domain behind libvirt's back, as an operator would who wants libvirt to restore it."""
    xml = guest.libvirt.virsh("dumpxml", "--migratable", VM)
    options = {"image_version": 2, "domain_xml": xml, **options}
    result = save(qmp_socket=str(guest.qmp_socket), path=str(image), **options)
    assert result["vm"]["run_state"] == "ended"
    guest.libvirt.wait_state(VM, "shut off")
    assert not guest.alive()


def restore_by_libvirt(guest: LibvirtGuest, image: Path, continuity: Continuity, state: str, *options: str) -> None:
    guest.libvirt.virsh("restore", image, *options)
    guest.wait_restarted()
    assert guest.libvirt.state(VM) == state
    if state == "paused":
        guest.libvirt.virsh("resume", VM)
    continuity.check()


def save_image_record(xml: str) -> ET.Element:
    """Our record in a domain XML, which has one only."""
    (record,) = ET.fromstring(xml).findall("metadata/{*}save-image")
    return record


@pytest.mark.parametrize("image_format", smoke(["sparse", "zstd"]))
def test_libvirt_restores_what_we_saved(libvirt, guest, image, run_module, save, image_format):
    continuity = Continuity(guest)
    save_for_libvirt(guest, image, save, format=image_format)
    found = info(run_module, image)
    assert found["format"] == image_format
    assert found["version"] == 2
    assert any(reader.startswith("libvirt") for reader in found["readable_by"])
    assert save_image_record(libvirt.virsh("save-image-dumpxml", image)).find("{*}launch") is not None
    restore_by_libvirt(guest, image, continuity, "running")
    record(writer=us(libvirt), reader=them(libvirt), format=image_format, version=2, result="restored")


@pytest.mark.parametrize("image_format", FORMATS)
def test_libvirt_restores_what_we_saved_of_a_paused_guest(libvirt, guest, image, save, image_format):
    continuity = Continuity(guest)
    libvirt.virsh("suspend", VM)
    save_for_libvirt(guest, image, save, format=image_format)
    restore_by_libvirt(guest, image, continuity, "paused")


@pytest.mark.parametrize(
    ("vm_state", "options", "state"), [("paused", [], "paused"), ("paused", ["--running"], "running")]
)
def test_libvirt_restores_into_the_state_that_we_recorded(libvirt, guest, image, save, vm_state, options, state):
    continuity = Continuity(guest)
    save_for_libvirt(guest, image, save, format="sparse", vm_state=vm_state)
    restore_by_libvirt(guest, image, continuity, state, *options)


@pytest.mark.parametrize("ours", [{"bypass_cache": True, "parallel_channels": 4}, {"bypass_cache": False}], ids=str)
@pytest.mark.parametrize("theirs", [[], ["--bypass-cache", "--parallel-channels", "4"]], ids=" ".join)
def test_libvirt_restores_sparse_in_its_own_way(libvirt, guest, image, save, ours, theirs):
    continuity = Continuity(guest)
    save_for_libvirt(guest, image, save, format="sparse", **ours)
    restore_by_libvirt(guest, image, continuity, "running", *theirs)


def test_libvirt_restores_a_live_save(libvirt, guest, image, save):
    continuity = Continuity(guest)
    save_for_libvirt(guest, image, save, format="sparse", live=True)
    restore_by_libvirt(guest, image, continuity, "running")


def test_libvirt_saves_what_we_saved_and_it_restored(libvirt, guest, image, run_module, save, restore):
    continuity = Continuity(guest)
    save_for_libvirt(guest, image, save, format="sparse")
    restore_by_libvirt(guest, image, continuity, "running")
    image.unlink()
    libvirt.virsh("save", VM, image, "--image-format", "sparse")
    guest.wait_exit()
    assert info(run_module, image)["vm_state"] == "running"
    restore(path=str(image), launch="command", command=guest.argv())
    guest.wait_restarted()
    continuity.check()


@pytest.mark.parametrize("image_format", ["raw", "sparse"])
def test_we_save_what_libvirt_restored(libvirt, guest, image, save, image_format):
    """libvirt leaves its migration capabilities switched on: a sparse restore, then a save in the other format."""
    continuity = Continuity(guest)
    for step in ["sparse", image_format]:
        save_for_libvirt(guest, image, save, format=step)
        save_image_record(libvirt.virsh("save-image-dumpxml", image))
        restore_by_libvirt(guest, image, continuity, "running")
        image.unlink()


def test_libvirt_starts_from_our_image_as_its_managed_save(libvirt, guest, save):
    continuity = Continuity(guest)
    image = libvirt.managed_save(VM)
    save_for_libvirt(guest, image, save, format="sparse")
    libvirt.virsh("start", VM)
    guest.wait_restarted()
    assert libvirt.state(VM) == "running"
    assert not image.exists()
    continuity.check()


def test_libvirt_knows_that_the_guest_runs_after_a_checkpoint(libvirt, guest, image, save):
    continuity = Continuity(guest)
    save(qmp_socket=str(guest.qmp_socket), path=str(image), after_save="resume")
    libvirt.wait_state(VM, "running")
    continuity.check()
    libvirt.virsh("suspend", VM)
    libvirt.virsh("resume", VM)
    continuity.check()


@pytest.mark.parametrize("image_format", ["raw", "zstd", "sparse"])
def test_libvirt_saves_after_a_save_of_ours_that_was_given_up(
    libvirt, make_guest, image, run_module, restore, image_format
):
    guest = make_guest(block_mib=32)
    continuity = Continuity(guest)
    slowly = {"format": image_format, "bandwidth": "1M", "timeout": 1.5, "live": True, "require_restorable": False}
    result = run_module("qemu_save", name=VM, path=str(image), **slowly)
    assert result.get("error") == "OperationTimeoutError", result["msg"]
    assert list(image.parent.iterdir()) == []
    libvirt.wait_state(VM, "running")
    continuity.check()
    libvirt.virsh("save", VM, image, "--image-format", image_format)
    restore_from_libvirt(guest, image, run_module, restore, continuity, image_format, "running")


# What a domain has that people install: more devices, and with them more blocks of memory, of ROM and of state.
DEVICES = """
    <controller type='usb' model='qemu-xhci'/>
    <input type='tablet' bus='usb'/>
    <interface type='user'><model type='virtio'/></interface>
    <video><model type='vga'/></video>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='virtio'/>"""


@pytest.mark.parametrize("image_format", ["raw", "sparse"])
def test_a_guest_with_more_devices_goes_both_ways(libvirt, make_guest, image, run_module, save, restore, image_format):
    guest = make_guest(machine="q35", memory_mib=256, devices=DEVICES)
    continuity = Continuity(guest)
    save_for_libvirt(guest, image, save, format=image_format)
    restore_by_libvirt(guest, image, continuity, "running")
    image.unlink()
    libvirt.virsh("save", VM, image, "--image-format", image_format)
    restore_from_libvirt(guest, image, run_module, restore, continuity, image_format, "running")


# --- libvirt changes the XML of our images ---


@pytest.mark.parametrize("image_format", smoke(["sparse"]))
def test_our_record_survives_save_image_define(libvirt, guest, image, run_module, save, tmp_path, image_format):
    continuity = Continuity(guest)
    save_for_libvirt(guest, image, save, format=image_format)
    before = info(run_module, image)
    xml = libvirt.virsh("save-image-dumpxml", image, "--security-info")
    changed = tmp_path / "changed.xml"
    changed.write_text(xml.replace("<metadata", "<description>seen by libvirt</description>\n  <metadata", 1))
    libvirt.virsh("save-image-define", image, changed)
    after = info(run_module, image)
    assert "<description>seen by libvirt</description>" in after["domain_xml"]
    assert (after["launch_recorded"], after["vouched"]) == (True, True)
    unchanged = set(before) - {"domain_xml", "mtime", "allocated"}
    assert {key: after[key] for key in unchanged} == {key: before[key] for key in unchanged}
    assert save_image_record(after["domain_xml"]).find("{*}saved-at") is not None
    restore_by_libvirt(guest, image, continuity, "running")


def test_save_image_edit(libvirt, guest, image, run_module, save, tmp_path):
    continuity = Continuity(guest)
    save_for_libvirt(guest, image, save, format="sparse")
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nexec sed -i 's|^  <memory |  <title>edited</title>\\n&|' \"$1\"\n")
    editor.chmod(0o755)
    answer = libvirt.virsh("save-image-edit", image, "--paused", EDITOR=str(editor), VISUAL=str(editor))
    assert "edited" in answer
    found = info(run_module, image)
    assert "<title>edited</title>" in found["domain_xml"]
    assert found["launch_recorded"] is True
    assert found["vm_state"] == "paused"
    restore_by_libvirt(guest, image, continuity, "paused")


def test_our_own_restore_takes_what_libvirt_edited(libvirt, guest, image, save, restore, tmp_path):
    continuity = Continuity(guest)
    save_for_libvirt(guest, image, save, format="sparse")
    changed = tmp_path / "changed.xml"
    changed.write_text(libvirt.virsh("save-image-dumpxml", image, "--security-info"))
    libvirt.virsh("save-image-define", image, changed)
    restore(path=str(image), launch="command", command=guest.argv())
    guest.wait_restarted()
    continuity.check()


# --- we change images that libvirt reads ---


def change(run_module: Run, image: Path, **options: Any) -> None:
    """Run qemu_save_image, which must change the image."""
    result = run_module("qemu_save_image", path=str(image), **options)
    assert not result.get("failed"), result["msg"]
    assert result["changed"]


def test_libvirt_restores_what_we_made_its_image(libvirt, guest, image, run_module, save):
    """Saved as if there were no libvirt, and only later given to it: its version of the header, and its XML."""
    continuity = Continuity(guest)
    xml = libvirt.virsh("dumpxml", "--migratable", VM)
    save(name=VM, path=str(image))
    libvirt.wait_state(VM, "shut off")
    change(run_module, image, image_version=2, domain_xml=xml)
    found = info(run_module, image)
    assert (found["version"], found["format"], found["launch_recorded"]) == (2, "sparse", True)
    restore_by_libvirt(guest, image, continuity, "running")


@pytest.mark.parametrize("image_format", ["sparse", "zstd"])
def test_libvirt_restores_its_own_image_that_we_changed(libvirt, guest, image, run_module, image_format):
    continuity = Continuity(guest)
    libvirt.virsh("save", VM, image, "--image-format", image_format)
    guest.wait_exit()
    cookie = info(run_module, image)["cookie"]
    xml = libvirt.virsh("save-image-dumpxml", image, "--security-info")
    described = xml.replace("  <memory ", "  <title>seen by us</title>\n  <memory ", 1)
    change(run_module, image, vm_state="paused", domain_xml=described)
    assert info(run_module, image)["cookie"] == cookie
    assert "<title>seen by us</title>" in libvirt.virsh("save-image-dumpxml", image)
    restore_by_libvirt(guest, image, continuity, "paused")


@pytest.mark.parametrize("image_format", ["raw", "sparse"])
def test_libvirt_restores_its_own_image_from_our_archive(libvirt, guest, image, run_module, image_format):
    continuity = Continuity(guest)
    libvirt.virsh("save", VM, image, "--image-format", image_format)
    guest.wait_exit()
    change(run_module, image, archive="zstd")
    assert not image.exists()
    change(run_module, image, archive="none")
    restore_by_libvirt(guest, image, continuity, "running")


def test_we_restore_libvirts_image_as_version_3(libvirt, guest, image, run_module, restore):
    continuity = Continuity(guest)
    libvirt.virsh("save", VM, image, "--image-format", "sparse")
    guest.wait_exit()
    change(run_module, image, image_version=3)
    assert info(run_module, image)["features"] == ["mapped-ram"]
    assert "image version is not supported" in libvirt.refusal("restore", image)
    restore(path=str(image), launch="command", command=guest.argv())
    guest.wait_restarted()
    continuity.check()


# --- the header and the XML ---


@pytest.mark.parametrize("image_format", ["raw", "sparse"])
def test_libvirt_reads_the_xml_that_we_generate(libvirt, guest, image, save, image_format):
    save(qmp_socket=str(guest.qmp_socket), path=str(image), image_version=2, format=image_format)
    root = ET.fromstring(libvirt.virsh("save-image-dumpxml", image))
    assert root.findtext("name") == VM
    assert root.findtext("uuid") == guest.uuid
    memory = root.find("memory")
    assert memory is not None
    assert (memory.text, memory.get("unit")) == (str(guest.memory_mib << 10), "KiB")
    assert root.findtext("vcpu") == "1"
    assert root.findtext("devices/emulator") == guest.qemu
    machine = root.find("os/type")
    assert machine is not None
    assert machine.get("machine") in guest.argv()[guest.argv().index("-machine") + 1]
    save_image_record(ET.tostring(root, encoding="unicode"))


def test_libvirt_refuses_to_start_from_the_xml_that_we_generate(libvirt, guest, image, save, tmp_path):
    """It describes no devices, and libvirt lets nobody add them; docs/libvirt.md says so."""
    save(name=VM, path=str(image), image_version=2, format="raw")
    libvirt.wait_state(VM, "shut off")
    whole = tmp_path / "whole.xml"
    whole.write_text(libvirt.virsh("dumpxml", "--inactive", VM))
    libvirt.refusal("restore", image)
    assert "differs" in libvirt.refusal("restore", image, "--xml", whole)
    assert libvirt.state(VM) == "shut off"
    assert image.exists()


def test_we_refuse_to_start_libvirts_command_line(libvirt, guest, image, run_module, restore, save):
    """It has descriptors that only libvirt can hand to QEMU."""
    continuity = Continuity(guest)
    save_for_libvirt(guest, image, save, format="sparse")
    result = run_module("qemu_restore", path=str(image))
    assert result["error"] == "LaunchError"
    assert "descriptor" in result["msg"]
    restore(path=str(image), launch="command", command=guest.argv())
    guest.wait_restarted()
    continuity.check()


@pytest.mark.parametrize("image_format", smoke(["raw", "sparse"]))
def test_libvirt_refuses_version_3(libvirt, guest, image, run_module, save, image_format):
    save_for_libvirt(guest, image, save, format=image_format, image_version=3)
    found = info(run_module, image)
    assert found["version"] == 3
    assert not [reader for reader in found["readable_by"] if "libvirt" in reader]
    refusal = libvirt.refusal("restore", image)
    assert "image version is not supported" in refusal
    assert libvirt.state(VM) == "shut off"
    assert image.exists()
    record(writer=us(libvirt), reader=them(libvirt), format=image_format, version=3, result=f"refused: {refusal}")


def test_libvirt_accepts_an_image_without_a_cookie(libvirt, guest, image, run_module, save):
    continuity = Continuity(guest)
    save_for_libvirt(guest, image, save, format="raw")
    assert info(run_module, image)["cookie"] == ""
    restore_by_libvirt(guest, image, continuity, "running")


def test_libvirt_refuses_a_partial_image(libvirt, guest, image, save):
    save_for_libvirt(guest, image, save, format="raw")
    with open(image, "r+b") as file:
        file.write(b"LibvirtQemudPart")
    assert "save image is incomplete" in libvirt.refusal("restore", image)


# --- beside libvirt ---


@pytest.mark.parametrize("forget", [True, False], ids=["forgotten", "not-forgotten"])
def test_managed_save_that_we_restored_is_forgotten_by_libvirt(libvirt, guest, restore, forget):
    """Until then libvirt takes it for one that is still to be restored."""
    continuity = Continuity(guest)
    libvirt.virsh("managedsave", VM)
    guest.wait_exit()
    image = libvirt.managed_save(VM)
    restore(path=str(image), launch="command", command=guest.argv(), remove_image=not forget)
    guest.wait_restarted()
    assert has_managed_save(libvirt)
    libvirt.virsh("managedsave-remove", VM) if forget else libvirt.refusal("undefine", VM)
    assert has_managed_save(libvirt) is not forget
    continuity.check()
    if not forget:
        libvirt.virsh("undefine", "--managed-save", VM)


def has_managed_save(libvirt: Libvirt) -> bool:
    """What libvirt says of its domain."""
    return "Managed save:   yes" in libvirt.virsh("dominfo", VM)
