# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a restore that was killed leaves in QEMU, at each stage, and how the next run ends it.

Killing at random moments is the torture's; here each stage is made on purpose: the run is killed while it waits, or
its note is put into a QEMU that is as far as it had come.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image.identity import ImageIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._restore.in_qemu import RestoreRecord
from ansible_collections.vmops.qemu.plugins.module_utils._restore.load_note import LoadNote
from ansible_collections.vmops.qemu.plugins.module_utils._state_directory import state_path

from support import Monitor
from support.observe import VM, Continuity, run_state, settings, wait_until, words
from support.paused import PausedQemu, make_disk

CHANGED = {"multifd": False, "mapped-ram": False}


def leave_note(guest, image, *, expanded=False, used=None, **parameters):
    """What a restore from the image notes, in the guest's QEMU, with settings that it would have changed."""
    record = RestoreRecord(
        image=str(image),
        identity=used or ImageIdentity.of(str(image)),
        expanded=expanded,
        capabilities=CHANGED,
        parameters=parameters,
    )
    descriptor = os.open(image if image.exists() else guest.boot_image, os.O_RDONLY)
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("add-fd", {"opaque": record.opaque()}, fd=descriptor)
        on = [{"capability": name, "state": True} for name in CHANGED]
        monitor.execute("migrate-set-capabilities", {"capabilities": on})
    os.close(descriptor)


def test_killed_before_qemu_loads(guest, image, save, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.start(incoming=True)
    before = settings(guest)
    leave_note(guest, image)
    result = restore(name=VM, path=str(image))
    assert result["changed"]
    assert settings(guest) == before
    continuity.check()


def test_killed_when_the_guest_is_loaded(guest, image, save, restore):
    """The guest stands in QEMU and was never told to go on."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.start(incoming=True)
    before = settings(guest)
    restore(name=VM, path=str(image), state="paused", remove_image=False)
    leave_note(guest, image)
    checked = restore(name=VM, path=str(image), check=True)
    assert checked["changed"]
    assert run_state(guest) == "paused"
    pid = guest.pid
    result = restore(name=VM, path=str(image))
    assert result["changed"]
    assert "earlier run" in result["msg"]
    assert result["vm"]["run_state"] == run_state(guest) == "running"
    assert guest.pid == pid
    assert not image.exists()
    assert settings(guest) == before
    continuity.check()
    assert not restore(name=VM, path=str(image))["changed"]


def test_killed_when_the_guest_is_loaded_and_then_all_are_restored(guest, image, save, restore, run_module):
    """As at boot: the image is a checkpoint by then."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format="raw")
    restore(name=VM, path=str(image), state="paused", remove_image=False)
    guest.wait_restarted()
    leave_note(guest, image)
    result = run_module("qemu_managed_restore", save_dir=str(image.parent), include=[VM], images="all")
    assert [vm["name"] for vm in result["vms"]] == [VM], result["msg"]
    assert result["changed"]
    assert run_state(guest) == "running"
    assert not image.exists()
    continuity.check()


@pytest.mark.parametrize("marked", [False, True])
def test_killed_when_the_guest_is_loaded_and_its_disks_are_others_since(
    make_guest, tmp_path, image, save, restore, run_module, marked
):
    """Nothing keeps another QEMU from the disks of a guest that has not run yet (QEMU 10.0)."""
    disk = make_disk(tmp_path / "disk.img")
    arguments = ["-drive", f"if=virtio,format=raw,file={disk}"]
    guest = make_guest(observer=True, extra_args=arguments)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    used = None if marked else ImageIdentity.of(str(image))
    guest.start(incoming=True)
    restore(name=VM, path=str(image), state="paused", remove_image=False)
    leave_note(guest, image, used=used)
    with PausedQemu(tmp_path, *arguments, name="elsewhere") as other:
        other.write("virtio0")
        other.quit()
    for check in (True, False):
        result = run_module("qemu_restore", name=VM, path=str(image), check=check)
        assert result.get("error") == "DiskMismatchError", result["msg"]
        assert (str(disk) in result["msg"], result["guest"]) == (True, "paused")
    assert run_state(guest) == "paused"
    restore(name=VM, path=str(image), disks="ignore")
    continuity.check()


def test_killed_when_the_guest_runs_but_its_image_is_there(guest, image, save, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.start(incoming=True)
    before = settings(guest)
    restore(name=VM, path=str(image), remove_image=False)
    leave_note(guest, image)
    assert restore(name=VM, path=str(image))["changed"]
    assert not image.exists()
    assert settings(guest) == before
    continuity.check()


def test_killed_when_the_guest_runs_that_shall_be_paused(guest, image, save, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.start(incoming=True)
    before = settings(guest)
    restore(name=VM, path=str(image), remove_image=False)
    leave_note(guest, image)
    result = restore(name=VM, path=str(image), state="paused")
    assert result["vm"]["run_state"] == run_state(guest) == "paused"
    assert not image.exists()
    assert settings(guest) == before
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("cont")
    continuity.check()


def test_killed_when_the_image_was_gone_and_the_guest_is_paused_that_shall_run_now(guest, image, save, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.start(incoming=True)
    before = settings(guest)
    used = ImageIdentity.of(str(image))
    restore(name=VM, path=str(image), state="paused")
    leave_note(guest, image, used=used)
    result = restore(name=VM, path=str(image), state="running")
    assert result["vm"]["run_state"] == run_state(guest) == "running"
    assert settings(guest) == before
    continuity.check()


def test_a_newer_image_is_not_taken_for_the_one_that_was_restored(guest, image, save, restore):
    save(name=VM, path=str(image), after_save="resume")
    leave_note(guest, image, used=ImageIdentity("0:0:0", ""))
    restore(name=VM, path=str(image))
    assert image.exists()


def test_a_save_replaces_the_image_that_a_killed_restore_left(guest, image, save):
    """No force is needed: the note says that the guest which runs came from this image."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image), after_save="resume")
    before = settings(guest)
    leave_note(guest, image)
    assert save(name=VM, path=str(image), after_save="resume")["changed"]
    assert settings(guest) == before
    continuity.check()


def test_a_save_does_not_guess_about_a_guest_that_is_loaded_but_does_not_run(guest, image, save, run_module):
    save(name=VM, path=str(image), after_save="resume")
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("stop")
    leave_note(guest, image)
    result = run_module("qemu_save", name=VM, path=str(image), force=True)
    assert result["error"] == "ConflictError"
    assert f"qemu_restore with path {image}" in result["cure"]
    assert image.exists()


def test_restored_from_another_image(guest, image, save, run_module):
    other = image.with_name("other.save")
    save(name=VM, path=str(other), after_save="resume")
    leave_note(guest, other)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "ConflictError"
    assert str(other) in result["cure"]
    assert other.exists()


def test_an_expanded_image_whose_end_nobody_saw_is_loaded_anew(guest, image, save, restore):
    """Whether the tool met an error at the stream's end is known only to the run that was killed."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format="zstd")
    restore(name=VM, path=str(image), state="paused", remove_image=False)
    guest.wait_restarted()
    leave_note(guest, image, expanded=True)
    pid = guest.pid
    result = restore(name=VM, path=str(image))
    assert result["changed"]
    assert result["vm"]["pid"] != pid
    continuity.check()


@pytest.mark.parametrize("stopped_later", [False, True])
def test_guest_of_an_expanded_image_that_is_gone_is_not_ended(guest, image, save, restore, stopped_later):
    """The image is removed only after the expander's end was seen: this QEMU has the guest's only copy."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format="zstd")
    used = ImageIdentity.of(str(image))
    restore(name=VM, path=str(image), state="running" if stopped_later else "paused")
    guest.wait_restarted()
    leave_note(guest, image, expanded=True, used=used)
    if stopped_later:
        guest.wait_for_counter(continuity.last + 1)
        with Monitor(guest.observer_socket) as monitor:
            monitor.execute("stop")
    pid = guest.pid
    result = restore(name=VM, path=str(image), state="running")
    assert result["vm"]["pid"] == pid
    assert run_state(guest) == "running"
    continuity.check()


def restore_uncheckable(make_guest, image, save, restore):
    """A guest with a disk that cannot be compared, paused beside its image, which is marked, and was not before."""
    guest = make_guest(observer=True, extra_args=["-drive", "if=virtio,driver=null-co,size=1M"])
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format="zstd")
    unmarked = ImageIdentity.of(str(image))
    restore(name=VM, path=str(image), state="paused", remove_image=False)
    guest.wait_restarted()
    return guest, continuity, unmarked


def test_killed_when_an_expanded_image_was_marked(make_guest, image, save, restore):
    guest, continuity, unmarked = restore_uncheckable(make_guest, image, save, restore)
    leave_note(guest, image, expanded=True, used=unmarked)
    pid = guest.pid
    assert restore(name=VM, path=str(image))["vm"]["pid"] == pid
    assert not image.exists()
    continuity.check()


def test_guest_is_not_ended_whose_image_would_be_refused(make_guest, image, save, restore, run_module):
    """It was a checkpoint already when it was restored: that the guest has gone on since cannot be known."""
    guest, continuity, _unmarked = restore_uncheckable(make_guest, image, save, restore)
    leave_note(guest, image, expanded=True)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert (result.get("error"), result["guest"]) == ("DiskMismatchError", "paused"), result["msg"]
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("cont")
    continuity.check()


def test_guest_is_not_ended_whose_image_was_replaced(guest, image, save, restore, run_module):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format="zstd")
    used = ImageIdentity.of(str(image))
    copy = image.with_name("copy")
    shutil.copy2(image, copy)
    restore(name=VM, path=str(image), state="paused")
    guest.wait_restarted()
    copy.rename(image)
    leave_note(guest, image, expanded=True, used=used)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert (result.get("error"), result["guest"]) == ("ConflictError", "paused"), result["msg"]
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("cont")
    continuity.check()


@pytest.mark.parametrize("image_format", ["raw", "zstd"])
def test_killed_while_its_qemu_starts(guest, image, save, restore, start_module, image_format):
    """QEMU is started and stands still while the run that started it is killed; then it goes on alone."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format=image_format)
    run = start_module("qemu_restore", name=VM, path=str(image))
    guest.wait_restarted()
    os.kill(guest.pid, signal.SIGSTOP)
    run.process.kill()
    run.process.communicate()
    os.kill(guest.pid, signal.SIGCONT)
    assert restore(name=VM, path=str(image))["vm"]["run_state"] == "running"
    assert not image.exists()
    continuity.check()


# --- a disk in memory, of which the image holds the contents ---


SIZE = 64 * 2**20
LOADING = Path(state_path("loading"))


def nvdimm(path):
    return [
        *("-object", f"memory-backend-file,id=nv,size={SIZE},mem-path={path},share=on"),
        *("-device", "nvdimm,memdev=nv,id=nv0", "-machine", "nvdimm=on", "-m", "768,slots=2,maxmem=2G"),
    ]


def is_written_since(path, mtime_ns):
    return path.stat().st_mtime_ns != mtime_ns


@pytest.mark.parametrize(
    ("image_format", "number", "error"),
    [
        ("sparse", signal.SIGTERM, "InterruptedOperationError"),
        ("raw", signal.SIGTERM, "InterruptedOperationError"),
        ("sparse", signal.SIGKILL, None),
        ("zstd", signal.SIGKILL, None),
    ],
)
def test_cut_off_while_an_nvdimm_is_written_anew(
    make_guest, image, tmp_path, save, restore, start_module, image_format, number, error
):
    path = tmp_path / "nvdimm"
    precious = b"precious" * (SIZE // 8)
    path.write_bytes(precious)
    guest = make_guest(memory_mib=768, block_mib=500, extra_args=nvdimm(path))
    continuity = Continuity(guest)
    notes = set(LOADING.glob("*"))
    arguments = {"bypass_cache": False, "parallel_channels": 1} if image_format == "sparse" else {}
    for _attempt in range(5):  # on a busy machine all may be over before this one is back at work
        save(name=VM, path=str(image), format=image_format)
        before = path.stat().st_mtime_ns
        run = start_module("qemu_restore", name=VM, path=str(image), **arguments)
        wait_until(functools.partial(is_written_since, path, before), interval=0.0005)
        run.process.send_signal(number)
        run.process.wait()
        if image.exists():
            break
        guest.wait_restarted()
    if error:
        result = run.result()
        assert (result["error"], words(result)) == (error, ("saved", "kept"))
        assert "nv is incomplete" in result["guest_state"]
        # A stream is written in the order of the memory, so that each page is as it was before or after.
        assert (path.read_bytes() == precious) == (image_format == "raw")
    assert restore(name=VM, path=str(image))["changed"]
    assert path.read_bytes() == precious
    assert set(LOADING.glob("*")) == notes
    continuity.check()


def test_killed_when_a_guest_with_an_nvdimm_is_loaded_and_its_image_marked(make_guest, image, tmp_path, save, restore):
    """The load has written the nvdimm anew, which is no write of others."""
    path = tmp_path / "nvdimm"
    path.write_bytes(b"precious" * (SIZE // 8))
    guest = make_guest(observer=True, extra_args=nvdimm(path))
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    head, unmarked = read_image_head(str(image)), ImageIdentity.of(str(image))
    guest.start(incoming=True)
    restore(name=VM, path=str(image), state="paused", remove_image=False)
    leave_note(guest, image, used=unmarked)
    note = LoadNote.of(head).write()
    assert restore(name=VM, path=str(image))["changed"]
    assert not os.path.exists(note.path)
    continuity.check()


def test_nvdimm_that_was_written_to_by_others_is_refused_without_a_word_of_removing_the_image(
    make_guest, image, tmp_path, save, restore, run_module
):
    path = tmp_path / "nvdimm"
    path.write_bytes(b"precious" * (SIZE // 8))
    make_guest(extra_args=nvdimm(path))
    save(name=VM, path=str(image))
    path.write_bytes(b"other" + bytes(SIZE - 5))
    refused = run_module("qemu_restore", name=VM, path=str(image))
    assert refused["error"] == "DiskMismatchError"
    assert "remove the image" not in refused["msg"]
    assert "keep the image" in refused["msg"]
    assert restore(name=VM, path=str(image), disks="ignore")["changed"]
    assert path.read_bytes() == b"precious" * (SIZE // 8)


def without_rng(guest):
    """The command of a QEMU that cannot load the guest's state."""
    words = [word for word in guest.argv() if "virtio-rng" not in word]
    words.pop(max(index for index, word in enumerate(words) if word == "-device"))
    return words


def test_load_that_qemu_rejects_leaves_an_nvdimm_that_can_be_loaded_again(
    make_guest, image, tmp_path, save, restore, run_module
):
    path = tmp_path / "nvdimm"
    path.write_bytes(b"precious" * (SIZE // 8))
    guest = make_guest(extra_args=[*nvdimm(path), "-device", "virtio-rng-pci"])
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    other = without_rng(guest)
    failed = run_module("qemu_restore", path=str(image), launch="command", command=other)
    assert failed["error"] == "MigrationError", failed["msg"]
    assert "keep it" in failed["guest_state"]
    restore(name=VM, path=str(image))
    assert path.read_bytes() == b"precious" * (SIZE // 8)
    continuity.check()


def test_vm_that_was_started_from_a_disk_of_which_the_image_has_the_rest(
    make_guest, image, tmp_path, save, restore, run_module
):
    path = tmp_path / "nvdimm"
    path.write_bytes(b"precious" * (SIZE // 8))
    guest = make_guest(extra_args=[*nvdimm(path), "-device", "virtio-rng-pci"])
    save(name=VM, path=str(image))
    failed = run_module("qemu_restore", path=str(image), launch="command", command=without_rng(guest))
    assert failed["error"] == "MigrationError", failed["msg"]
    guest.start()
    started = run_module("qemu_restore", path=str(image))
    assert started["error"] == "ConflictError", started["msg"]
    assert "keep it" in started["msg"]
    assert "remove the image" not in started["msg"]
    guest.end()
    restore(name=VM, path=str(image))
    assert path.read_bytes() == b"precious" * (SIZE // 8)
