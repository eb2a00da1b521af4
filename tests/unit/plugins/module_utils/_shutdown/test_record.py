# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is kept of VMs that were shut down: as it was, or an error, never something else that would be started."""

from __future__ import annotations

import dataclasses
import json
import os
import types
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _state_directory
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown import record
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import (
    ShutDownVm,
    forget,
    keep,
    read_again,
    read_all,
)

LAUNCH = LaunchRecord(["/usr/bin/qemu-system-x86_64", "-name", "a b\udcff"], "/srv/\udcff", "/usr/bin/qemu", 107, 107)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """Where it is kept; nothing is there yet."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr(_state_directory, "ROOT_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def vm(name="web1", **launch):
    asked: dict[str, Any] = {"pid": 4242, "birth": 1500, "boot_id": "6f1c", "ended": True}
    return ShutDownVm(name, 1764000000.5, dataclasses.replace(LAUNCH, **launch), **asked)


@pytest.mark.parametrize("name", ["web1", "a/b", "..", "", "é\udcff\n", "x" * 5000])
def test_kept_as_it_was_whatever_its_name(name):
    assert read_all() == []
    kept = vm(name, unit="vm@a.service", unit_argv=["qemu"], no_new_privileges=True, umask="0077")
    keep(kept)
    keep(vm("other"))
    assert kept in read_all()
    assert len(read_all()) == 2
    assert os.stat(kept.path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(kept.path)).st_mode & 0o777 == 0o700
    assert read_again(kept) == kept
    forget(kept)
    assert read_again(kept) is None
    assert read_all() == [vm("other")]
    forget(kept)


def test_kept_once_for_each_vm():
    keep(vm())
    keep(vm(uid=0))
    assert [found.launch.uid for found in read_all()] == [0]


def qemu(pid, birth) -> Any:
    return types.SimpleNamespace(pid=pid, birth=birth)


def test_of_an_earlier_version_nothing_is_known_of_its_end():
    kept = vm()
    keep(kept)
    with open(kept.path) as handle:
        found = json.load(handle)
    for key in ("pid", "birth", "boot_id", "ended", "surroundings"):
        del found[key]
    with open(kept.path, "w") as handle:
        json.dump(found, handle)
    (older,) = read_all()
    assert older == ShutDownVm(kept.name, kept.at, kept.launch)
    assert not older.ended
    assert not older.was_asked(qemu(0, 0))


def test_which_qemu_was_asked(monkeypatch):
    monkeypatch.setattr(record, "boot_id", lambda: "6f1c")
    assert vm().was_asked(qemu(4242, 1500))
    assert not vm().was_asked(qemu(4242, 1501))
    assert not vm().was_asked(qemu(4243, 1500))
    monkeypatch.setattr(record, "boot_id", lambda: "7a2d")
    assert not vm().was_asked(qemu(4242, 1500))


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["launch"].pop("argv"),
        lambda found: found["launch"].update(argv=[]),
        lambda found: found["launch"].update(argv="qemu"),
        lambda found: found["launch"].update(argv=["qemu", 3]),
        lambda found: found["launch"].update(argv=["qemu", "a\0b"]),
        lambda found: found["launch"].update(uid="0"),
        lambda found: found["launch"].update(uid=-1),
        lambda found: found["launch"].update(uid=True),
        lambda found: found["launch"].update(unit=None),
        lambda found: found.update(launch=None),
        lambda found: found.update(at="soon"),
        lambda found: found.update(at="inf"),
        lambda found: found.update(at=1e30),
        lambda found: found.update(pid="4242"),
        lambda found: found.update(birth=None),
        lambda found: found.update(boot_id=7),
        lambda found: found.update(ended=1),
        lambda found: found.update(name="another"),
        lambda found: found.clear(),
    ],
)
def test_what_makes_no_sense_is_an_error(change):
    kept = vm()
    keep(kept)
    with open(kept.path) as handle:
        found = json.load(handle)
    change(found)
    with open(kept.path, "w") as handle:
        json.dump(found, handle)
    with pytest.raises(ConflictError, match="how it is started again cannot be read"):
        read_all()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1" * 5000, "[" * 100_000])
def test_what_is_no_record_is_an_error(text):
    kept = vm()
    keep(kept)
    with open(kept.path, "w") as handle:
        handle.write(text)
    with pytest.raises(ConflictError, match="how it is started again cannot be read"):
        read_all()


@pytest.mark.parametrize("place", ["file", "directory"])
def test_what_others_could_have_written_is_an_error(place):
    kept = vm()
    keep(kept)
    os.chmod(kept.path if place == "file" else os.path.dirname(kept.path), 0o777)
    with pytest.raises(ConflictError, match="others could have written it"):
        read_all()


def test_what_cannot_be_kept_is_said(state):
    (state / "state").write_text("a file in the place of the directory")
    (state / "vmops.qemu").write_text("the same, where the tests are not root's")
    with pytest.raises(ConflictError, match="How web1 is started again cannot be kept"):
        keep(vm())
