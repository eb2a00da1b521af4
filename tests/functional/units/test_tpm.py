# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The server of an emulated TPM is started again by whoever started it: its own unit, the VM's, or nobody's."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd

from support.observe import VM, Continuity, wait_until, words
from support.tpm import Swtpm
from support.units import UNAVAILABLE, UNITS, known_as, quoted, systemctl

pytestmark = [
    pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE),
    pytest.mark.skipif(shutil.which("swtpm") is None, reason="no swtpm"),
]


@pytest.fixture
def tpm(tmp_path):
    place = tmp_path / "vm"
    place.mkdir()
    server = Swtpm(place)
    yield server
    server.kill()


@pytest.fixture
def tpm_service(tpm):
    """A unit of its own for it, which runs; its name."""
    name = f"vmops-test-{os.getpid()}-{os.urandom(4).hex()}-tpm.service"
    UNITS.mkdir(parents=True, exist_ok=True)
    fragment = UNITS / name
    program = shutil.which("swtpm") or ""
    fragment.write_text(f"[Service]\nExecStart={quoted([program, *tpm.argv()[1:]])}\n")
    systemctl("daemon-reload")
    systemctl("start", name)
    wait_until(tpm.socket.exists)
    yield name
    systemctl("stop", name, check=False)
    fragment.unlink()
    systemctl("daemon-reload")


def is_inactive(unit):
    return systemctl("show", "--property=ActiveState", "--value", unit) in ("inactive", "failed")


@pytest.mark.parametrize("by_unit", [True, False])
def test_unit_of_its_own(make_service, make_guest, tpm, tpm_service, image, save, restore, by_unit):
    options = {"extra_args": tpm.qemu_args()}
    guest = make_service(guest=options).guest if by_unit else make_guest(**options)
    before = Continuity(guest)
    save(name=VM, path=str(image))
    wait_until(lambda: is_inactive(tpm_service))
    restore(name=VM, path=str(image))
    before.check()
    (pid,) = tpm.pids()
    assert systemd.unit_of_process(pid) == known_as(tpm_service)


@pytest.fixture
def logs():
    """A directory that is not made again, as it is on a disk."""
    directory = Path(tempfile.mkdtemp(dir="/var/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_unit_of_its_own_is_stopped_with_a_restore_that_fails(
    make_guest, tpm, tpm_service, image, save, run_module, logs
):
    make_guest(extra_args=[*tpm.qemu_args(), "-serial", f"file:{logs / 'console'}"])
    save(name=VM, path=str(image))
    wait_until(lambda: is_inactive(tpm_service))
    shutil.rmtree(logs)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError", result["msg"]
    assert words(result) == ("saved", "kept")
    assert tpm.pids() == []
    assert is_inactive(tpm_service)


def test_unit_of_the_vm(make_service, tpm, image, save, restore):
    program = shutil.which("swtpm") or ""
    before_start = f"ExecStartPre={quoted([program, *tpm.argv()[1:], '--daemon'])}"
    service = make_service(service=before_start, guest={"extra_args": tpm.qemu_args()})
    before = Continuity(service.guest)
    saved = save(name=VM, path=str(image))
    assert "server_needed" not in str(saved["problems"])
    wait_until(lambda: not tpm.pids())
    restore(name=VM, path=str(image))
    before.check()
    (pid,) = tpm.pids()
    assert systemd.unit_of_process(pid) == service.known_as


def test_transient_unit(make_guest, tpm, image, save, restore):
    """Beside QEMU's own, so that it does not end with whoever ran the restore."""
    tpm.start()
    before = Continuity(make_guest(extra_args=tpm.qemu_args()))
    save(name=VM, path=str(image))
    wait_until(lambda: not tpm.pids())
    restore(name=VM, path=str(image))
    before.check()
    (pid,) = tpm.pids()
    assert systemd.unit_of_process(pid) == known_as(f"vmops-qemu-{systemd.escape_unit_name(VM)}\\x2dtpm.service")
