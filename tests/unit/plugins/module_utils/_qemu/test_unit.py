# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The texts that change a unit; what systemd makes of them is seen in tests/functional/units, where it runs."""

from __future__ import annotations

import asyncio
import dataclasses
import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import SUFFIXES, all_forms
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import unit as unit_module
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.systemd import StartCommand
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import (
    free_unit,
    guard_path,
    guard_text,
    is_guarded_for,
    require_guardable,
)

QEMU = "/usr/bin/qemu-system-x86_64"
ARGV = (QEMU, "-name", "web1", "-S", "-incoming", "defer")


@pytest.fixture
def at_root(monkeypatch):
    """Images on the root file system."""
    monkeypatch.setattr(unit_module, "mount_point", lambda _directory: "/")


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_guard(at_root):
    assert lines(guard_text(["/var/lib/x/web1.save", "/var/lib/x/web1.save.tar.zst"])) == [
        "[Unit]",
        "ConditionPathExists=!/var/lib/x/web1.save",
        "ConditionPathExists=!/var/lib/x/web1.save.tar.zst",
        "[Service]",
        'ExecCondition=+"/bin/sh" "-c" "for image; do test ! -e \\x22$$image\\x22 || exit 1; done" "sh"'
        ' "/var/lib/x/web1.save" "/var/lib/x/web1.save.tar.zst"',
    ]


def test_guard_looks_for_every_form_of_the_image(at_root):
    forms = all_forms("/var/lib/x/web1.save")
    assert len(forms) == 1 + len(SUFFIXES)
    text = guard_text(forms)
    assert all(f"ConditionPathExists=!{form}\n" in text and f' "{form}"' in text for form in forms)


def test_guard_of_another_file_system(monkeypatch):
    monkeypatch.setattr(unit_module, "mount_point", lambda _directory: "/srv/sa-ve")
    found = lines(guard_text(["/srv/sa-ve/x/web1.save"]))
    assert found[:5] == [
        "[Unit]",
        r"Wants=srv-sa\x2dve.mount",
        r"After=srv-sa\x2dve.mount",
        "ConditionPathIsMountPoint=/srv/sa-ve",
        "ConditionPathExists=!/srv/sa-ve/x/web1.save",
    ]
    # With those, the VM would be stopped with the mount.
    assert not any(line.startswith(("Requires", "BindsTo")) for line in found)


@pytest.mark.parametrize("name", ["a b", "50%", "q'u\"o"])
def test_guard_of_an_odd_path(at_root, name):
    assert f"ConditionPathExists=!/x/{name.replace('%', '%%')}\n" in guard_text([f"/x/{name}"])


@pytest.mark.parametrize("name", ["new\nline", "end ", "end\\", "\x85", "\udcff"])
def test_guard_of_a_path_that_fits_in_no_line(at_root, name):
    """Then the command alone looks for it, in whose words there may be anything."""
    text = guard_text([f"/x/{name}"])
    assert "ConditionPathExists" not in text
    assert len(lines(text)) == 3
    text.encode("ascii")


def test_guard_without_links_on_the_way(at_root, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = f"{tmp_path}/real/web1.save"
    assert f"ConditionPathExists=!{path}\n" in guard_text([f"{tmp_path}/link/web1.save"])


def test_only_root_can_guard(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnitError, match=r"Only root may keep qemu@web1\.service from starting"):
        require_guardable("qemu@web1.service")
    with pytest.raises(UnitError, match="not the name of a systemd unit"):
        require_guardable("../qemu.service")


def test_only_its_user_can_guard_a_unit_of_his_own(monkeypatch, tmp_path):
    unit = "user@54321.service/web1.service"
    for uid in (0, 54322):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        with pytest.raises(UnitError, match=r"Only 54321 may keep .*web1\.service from starting"):
            require_guardable(unit)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(manager, "_home", lambda _uid: str(tmp_path))
    require_guardable(unit)  # the directory is made by the guard
    assert guard_path(unit) == f"{tmp_path}/.config/systemd/user/web1.service.d/50-vmops-saved.conf"
    assert not any(tmp_path.iterdir())


def test_guard_of_another_users_unit_is_no_evidence(monkeypatch, tmp_path):
    """He could have written it himself."""
    monkeypatch.setattr(manager, "_home", lambda _uid: str(tmp_path))
    unit, image = "user@54321.service/web1.service", "/srv/save/web1.save"
    path = guard_path(unit)
    os.makedirs(os.path.dirname(path))
    with open(path, "w", encoding="ascii") as file:
        file.write(guard_text([image]))
    assert not is_guarded_for(unit, image)
    assert not asyncio.run(free_unit(unit, None))
    assert os.path.exists(path)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert is_guarded_for(unit, image)


def loaded(service_type="simple", **facts):
    words = "Id=a.service\nLoadState=loaded\nActiveState=inactive\n"
    return dataclasses.replace(systemd.parse_units(words)[0], service_type=service_type, **facts)


def test_user_of_a_unit():
    own = StartCommand(QEMU, "")
    assert unit_module.start_user(loaded(), own) == 0
    assert unit_module.start_user(loaded(user="nobody"), own) == 65534
    assert unit_module.start_user(loaded(user="1234"), own) == 1234
    assert unit_module.start_user(loaded(user="nobody"), StartCommand(QEMU, "+")) == 0
    assert unit_module.start_user(loaded(user="no such user"), own) is None
    assert unit_module.start_user(loaded(dynamic_user=True), own) is None
    assert unit_module.start_user(loaded(name="user@1000.service/a.service"), own) == 1000
