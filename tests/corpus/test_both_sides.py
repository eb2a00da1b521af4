# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What QEMU alone does with a spoilt image, and what qemu_restore does: the first is why there is the second."""

from __future__ import annotations

import contextlib
import os
import struct

import pytest

from corpus.digest import CHECKSUM, HAS_DIGEST
from corpus.layout import read_layout
from support import Monitor, MonitorError, find_qemu_pids, wait_migration
from support.observe import VM, Continuity

#: As libvirt loads sparse images, and we do.
CAPABILITIES = [{"capability": name, "state": True} for name in ("mapped-ram", "multifd")]
#: The counter guest's pattern begins at this address.
PATTERN = 1 << 20
PAGE = 4096


@pytest.fixture
def saved(make_guest, image, save):
    """A guest that was saved, where everything is in its image, and what it must be like after a restore."""
    guest = make_guest(block_mib=4)
    continuity = Continuity(guest)
    save(name=VM, path=str(image), **CHECKSUM)
    return guest, read_layout(image), continuity


def load_without_a_look(guest, layout):
    """Have a QEMU load an image as it is; the migration's status, or None where QEMU ended."""
    guest.start(incoming=True)
    # A QEMU that ends closes its monitor.
    with contextlib.suppress(MonitorError):
        with Monitor(guest.qmp_socket) as monitor:
            monitor.execute("migrate-set-capabilities", {"capabilities": CAPABILITIES})
            uri = f"file:{layout.path},offset={layout.stream:#x}"
            monitor.execute("migrate-incoming", {"uri": uri, "exit-on-error": False})
        status = wait_migration(guest.qmp_socket)["status"]
        if guest.alive():
            return status
    guest.wait_exit()
    return None


def refused(run_module, guest, image, **options):
    """qemu_restore's error; nothing was started, and the image is there."""
    result = run_module("qemu_restore", name=VM, path=str(image), **options)
    assert result["failed"]
    assert find_qemu_pids(VM) == []
    assert image.exists()
    assert f"{VM} is not running, and its image is untouched" in result["msg"]
    return result["error"], result["msg"]


def write(image, offset, data):
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def pattern_page(layout, page=3):
    """Where a page of the guest's pattern is in the image."""
    ram = next(block for block in layout.blocks if block.name == "pc.ram")
    assert PATTERN // PAGE + page in layout.present(ram)
    return ram.pages[0] + PATTERN + page * PAGE


def test_half_an_image(saved, image, run_module, summary):
    guest, layout, _continuity = saved
    os.truncate(image, layout.size // 2)
    assert load_without_a_look(guest, layout) is None
    assert guest.exit_code is not None
    assert guest.exit_code < 0, "QEMU 10 crashes"
    summary.append(f"half an image: QEMU alone ends by signal {-guest.exit_code}, qemu_restore says what is wrong")
    error, message = refused(run_module, guest, image)
    assert error == "ImageFormatError"
    assert f"the file ends at byte {layout.size // 2}, inside RAM block" in message


def test_a_page_with_one_other_bit(saved, image, run_module, restore, summary):
    """QEMU takes it, and so do we, where no digest was asked for: the guest's memory is another one."""
    guest, layout, continuity = saved
    place = pattern_page(layout)
    write(image, place, bytes([layout.read((place, place + 1))[0] ^ 1]))
    assert load_without_a_look(guest, layout) == "completed"
    assert_other_memory(guest, continuity)
    guest.end()
    said = "there is no digest to find it with"
    if HAS_DIGEST:
        error, said = refused(run_module, guest, image, verify="full")
        assert error == "ImageFormatError"
    summary.append(f"one flipped bit in a page: QEMU alone completes with other memory; with verify: full: {said}")
    restore(name=VM, path=str(image), verify="structure")
    guest.wait_restarted()
    assert_other_memory(guest, continuity)


def assert_other_memory(guest, continuity):
    with Monitor(guest.qmp_socket) as monitor:
        if monitor.execute("query-status")["status"] != "running":
            monitor.execute("cont")
    assert guest.checksum() != continuity.checksum


def test_a_wrong_page_size(saved, image, run_module):
    """QEMU 10 takes it for the bitmap's, reads half of that, and reports success without half the memory."""
    guest, layout, continuity = saved
    ram = next(block for block in layout.blocks if block.name == "pc.ram")
    write(image, ram.numbers["page_size"][0], struct.pack(">Q", 2 * PAGE))
    assert load_without_a_look(guest, layout) == "completed"
    with Monitor(guest.qmp_socket) as monitor:
        # Its second half is empty: the firmware's tables at the memory's end are gone.
        end = ram.length - PAGE * 64
        shown = monitor.execute("human-monitor-command", {"command-line": f"xp /16384xw {end:#x}"})
    assert set(shown.split()[1:]) - {"0x00000000"} - {word for word in shown.split() if word.endswith(":")} == set()
    assert any(layout.read((ram.pages[0] + end, ram.pages[1])))
    guest.end()
    error, message = refused(run_module, guest, image)
    assert error == "ImageFormatError"
    assert "RAM block 'pc.ram' has the page size 8192, but the VM's is 4096" in message
    write(image, ram.numbers["page_size"][0], struct.pack(">Q", PAGE))
    assert not run_module("qemu_restore", name=VM, path=str(image)).get("failed")
    continuity.check()


def test_bitmaps_of_another_byte_order(saved, image, run_module):
    """Header and bitmaps of a big-endian host: whole, but QEMU reads bitmaps as this host's words."""
    guest, layout, _continuity = saved
    words = struct.unpack("=19I", layout.read((16, 92)))
    write(image, 16, struct.pack(">19I", *words))
    for block in layout.blocks:
        start, end = block.bitmap
        bitmap = struct.unpack(f"={(end - start) // 8}Q", layout.read(block.bitmap))
        write(image, start, struct.pack(f">{len(bitmap)}Q", *bitmap))
    info = run_module("qemu_save_image_info", path=str(image), verify=True)["image"]
    assert info["byte_order"] == "big"
    if not CHECKSUM:  # the bitmaps are in the digest
        assert info["problems"] == []
    error, message = refused(run_module, guest, image)
    assert error == "ImageUnsupportedError"
    assert "big-endian host" in message
