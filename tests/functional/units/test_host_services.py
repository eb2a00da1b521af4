# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the doctor and the metrics say of the services of the role host_setup, as systemd has them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._host import metrics_program

from support.units import PERSISTENT, UNAVAILABLE, of_root, systemctl

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)

SAVE, RESTORE = "vmops-save.service", "vmops-restore.service"
RUNS = "[Service]\nType=oneshot\nExecStart=/bin/true\nRemainAfterExit=yes\n[Install]\nWantedBy=default.target\n"


@pytest.fixture
def install():
    """Make one of the services, or another unit, where the role does."""
    made = []

    def make(name, text):
        path = PERSISTENT / name
        if os.path.lexists(path):
            pytest.skip(f"this host has {path}")
        PERSISTENT.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        made.append(path)
        systemctl("daemon-reload")
        return path

    yield make
    for path in made:
        systemctl("stop", path.name, check=False)
        systemctl("disable", path.name, check=False)
        path.unlink(missing_ok=True)
        shutil.rmtree(f"{path}.d", ignore_errors=True)
    systemctl("daemon-reload")
    for path in made:
        systemctl("reset-failed", path.name, check=False)


@pytest.fixture
def kinds(run_module, image):
    """The kinds of the problems of a service."""

    def look(name):
        result = run_module("qemu_host_info", save_dir=str(image.parent))
        assert not result.get("failed"), result["msg"]
        found = [problem for problem in result["problems"] if problem["subject"] == name]
        assert not any(problem["blocks"] for problem in found)
        return [problem["kind"] for problem in found]

    return look


def test_shutdown_save_that_was_stopped(install, kinds):
    assert kinds(SAVE) == ["shutdown_save_missing"]
    path = install(SAVE, RUNS)
    systemctl("enable", "--now", SAVE)
    assert kinds(SAVE) == []
    systemctl("stop", SAVE)
    assert kinds(SAVE) == ["shutdown_save_inactive"]
    systemctl("start", SAVE)
    assert kinds(SAVE) == []
    systemctl("disable", SAVE)
    assert kinds(SAVE) == ["shutdown_save_disabled"]
    # systemd forgets its stop.
    path.unlink()
    systemctl("mask", SAVE)
    systemctl("daemon-reload")
    assert kinds(SAVE) == ["shutdown_save_inactive", "shutdown_save_disabled"]


def test_shutdown_save_that_has_failed(install, kinds):
    install(SAVE, RUNS.replace("[Install]", "ExecStop=/bin/false\n[Install]"))
    systemctl("enable", "--now", SAVE)
    systemctl("stop", SAVE, check=False)
    assert kinds(SAVE) == ["shutdown_save_failed"]


def test_boot_restore_that_is_disabled(install, kinds):
    """One that was never begun, as it was installed after the boot, or has nothing to do, is no failure."""
    install(RESTORE, RUNS.replace("[Service]", "[Unit]\nConditionPathExists=/none\n[Service]"))
    assert kinds(RESTORE) == ["boot_restore_disabled"]
    systemctl("enable", RESTORE)
    assert kinds(RESTORE) == []
    systemctl("start", RESTORE)
    assert kinds(RESTORE) == []


@of_root
def test_boot_restore_whose_mount_fails(install, kinds, tmp_path):
    """systemd has it as inactive, and as a success."""
    place = tmp_path / "images"
    mount = subprocess.run(
        ["systemd-escape", "--path", "--suffix=mount", str(place)], stdout=subprocess.PIPE, text=True, check=True
    )
    install(mount.stdout.strip(), f"[Mount]\nWhat=/dev/none\nWhere={place}\nType=ext4\n")
    install(RESTORE, RUNS.replace("[Service]", f"[Unit]\nRequiresMountsFor={place}/save\n[Service]"))
    systemctl("enable", RESTORE)
    # As if it had been there at the boot.
    os.utime(PERSISTENT / "default.target.wants" / RESTORE, (0, 0), follow_symlinks=False)
    assert "failed" in systemctl("start", RESTORE, check=False)
    shown = systemctl("show", "--property=Result,ActiveState", RESTORE)
    assert sorted(shown.split()) == ["ActiveState=inactive", "Result=success"]
    assert kinds(RESTORE) == ["boot_restore_failed"]
    settings = tmp_path / "program" / "settings.json"
    settings.parent.mkdir(mode=0o755)
    settings.write_text(json.dumps({"save_dir": f"{place}/save", "file": str(settings.parent / "x.prom")}))
    assert metrics_program.main(str(settings)) == 0
    told = (settings.parent / "x.prom").read_text().splitlines()
    assert {"vmops_qemu_boot_restore_failed 1", "vmops_qemu_save_dir_readable 0"} <= set(told)
