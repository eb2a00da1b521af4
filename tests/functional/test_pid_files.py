# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whoever stops a VM by a pid file stops it after a restore, too: the file has the new number, or it is said."""

from __future__ import annotations

import os

import pytest

from support.observe import VM, Continuity, wait_until

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")


def number_in(path):
    return int(path.read_text())


def test_up_to_date_after_a_restore(make_guest, image, save, restore):
    guest = make_guest()
    path = guest.workdir / "vm.pid"
    path.write_text(f"{guest.pid}\n")
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image))
    assert "vm.pid" not in str(saved["warnings"])
    restored = restore(name=VM, path=str(image))
    assert number_in(path) == restored["vm"]["pid"]
    assert "vm.pid" not in str(restored.get("warnings"))
    continuity.check()


def test_what_qemu_writes_itself(make_guest, image, save, restore):
    guest = make_guest(extra_args=["-pidfile", "qemu.pid"])
    path = guest.workdir / "qemu.pid"
    assert number_in(path) == guest.pid
    save(name=VM, path=str(image))
    wait_until(lambda: not path.exists())
    restored = restore(name=VM, path=str(image))
    assert number_in(path) == restored["vm"]["pid"]


def test_in_check_mode_nothing_is_written(make_guest, image, save, run_module):
    guest = make_guest()
    path = guest.workdir / "vm.pid"
    path.write_text(f"{guest.pid}\n")
    save(name=VM, path=str(image))
    assert run_module("qemu_restore", name=VM, path=str(image), check=True)["changed"]
    assert number_in(path) == guest.pid


def test_where_others_may_write_it_is_said(make_guest, image, save, restore):
    guest = make_guest()
    place = guest.workdir / "run"
    path = place / "vm.pid"
    place.mkdir()
    path.write_text(f"{guest.pid}\n")
    place.chmod(0o777)
    (guest.workdir / "link.pid").symlink_to(path)
    saved = save(name=VM, path=str(image))
    assert f"{path} has the number of its QEMU's process ({guest.pid})" in str(saved["warnings"])
    before = guest.pid
    restore(name=VM, path=str(image))
    assert number_in(path) == before


def test_image_for_which_nobody_vouches(make_guest, image, save, run_module, restore):
    """Whoever can write an image cannot have a file written to."""
    guest = make_guest()
    path = guest.workdir / "vm.pid"
    path.write_text(f"{guest.pid}\n")
    save(name=VM, path=str(image))
    text = image.read_bytes()
    at = text.index(b"voucher=") + 12
    image.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
    before = number_in(path)
    restore(name=VM, path=str(image), launch="command", command=guest.argv(), verify="none")
    assert number_in(path) == before
