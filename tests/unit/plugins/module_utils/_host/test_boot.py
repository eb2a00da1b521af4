# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What becomes of images for which no QEMU is started; those that are restored are in the functional tests."""

from __future__ import annotations

import asyncio
import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import HostRunError
from ansible_collections.vmops.qemu.plugins.module_utils._host import turns
from ansible_collections.vmops.qemu.plugins.module_utils._host.boot_program import request_of
from ansible_collections.vmops.qemu.plugins.module_utils._host.restore import HostRestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_lock import image_lock
from ansible_collections.vmops.qemu.plugins.module_utils._names import VmNames

#: No QEMU of this host has it.
NAME = "vm-of-a-unit-test"
SETTINGS = {"save_dir": "/save", "order": [["db*"], ["web*"]], "parallel": 2, "timeout": 60}


class Lines:
    """What was told, in order; complaints with a mark of their own."""

    def __init__(self):
        self.told = []
        #: Called with each line.
        self.then = lambda text: None

    def say(self, text):
        self.told.append(text)
        self.then(text)

    def complain(self, text):
        self.say(f"! {text}")


@pytest.fixture
def lines():
    return Lines()


@pytest.fixture
def saved(builder, tmp_path, monkeypatch):
    """Make images of VMs with these names, and let one that is busy be tried again soon."""
    monkeypatch.setattr(turns, "BUSY_INTERVAL", 0.5)
    tmp_path.chmod(0o700)

    def make(*names):
        for name in names:
            builder.path = tmp_path / f"{name}.save"
            builder.xml = f"<domain type='qemu'><name>{name}</name></domain>"
            builder.write().chmod(0o600)
        return [str(tmp_path / f"{name}.save") for name in names]

    return make


def run(tmp_path, lines, during=None, **settings):
    """Run the operation; ``during`` gets it once it has begun."""
    request = request_of({**SETTINGS, "save_dir": str(tmp_path), **settings})

    async def restore_all():
        operation = HostRestoreOperation(request, lines)
        if during:
            asyncio.get_running_loop().call_soon(during, operation)
        try:
            await operation.run()
        except HostRunError:
            return False
        return True

    return asyncio.run(restore_all())


# --- what is asked for ---


def test_settings():
    request = request_of({**SETTINGS, "parallel": "3", "timeout": "1.5", "more": 1})
    assert (request.save_dir, request.order, request.parallel) == ("/save", [["db*"], ["web*"]], 3)
    assert (request.option(VmNames("web1"), "timeout"), request.images) == (1.5, "all")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({key: value for key, value in SETTINGS.items() if key != "order"}, "order"),
        ({**SETTINGS, "order": None}, "NoneType"),
        ({**SETTINGS, "parallel": "many"}, "many"),
        ([], "list"),
    ],
)
def test_settings_that_make_no_sense(settings, problem):
    with pytest.raises((KeyError, ValueError, TypeError), match=problem):
        request_of(settings)


# --- what becomes of the images ---


def test_no_directory(tmp_path, lines):
    assert run(tmp_path / "none", lines)
    assert lines.told == [f"there is no directory {tmp_path / 'none'}: nothing to restore"]


def test_empty_directory(tmp_path, lines):
    assert run(tmp_path, lines)
    assert lines.told == []


def test_group_by_group(tmp_path, lines, saved):
    """Nobody vouches for them, so that each is refused in its turn, and the others go on."""
    paths = saved(f"a-{NAME}", f"db-{NAME}", f"web-{NAME}")
    assert not run(tmp_path, lines)
    assert [line.split(": ")[0] for line in lines.told] == [f"! {paths[place]}" for place in (1, 2, 0)]
    assert all(os.path.exists(path) for path in paths)


def test_damaged_and_partial_images(tmp_path, lines, saved):
    damaged, partial = saved(f"a-{NAME}", f"b-{NAME}")
    os.truncate(damaged, 50)
    with open(partial, "r+b") as file:
        file.write(b"LibvirtQemudPart")
    assert not run(tmp_path, lines)
    assert [line[: len(f"! {damaged}: not restored, ") + 7] for line in lines.told] == [
        f"! {damaged}: not restored, invalid",
        f"! {partial}: not restored, partial",
    ]


# --- another run at work ---


def test_another_run_for_too_long(tmp_path, lines, saved):
    (path,) = saved(NAME)
    with image_lock(path):
        assert not run(tmp_path, lines, timeout=1.5)
    (line,) = lines.told
    assert line.startswith(f"! {path}: ")
    assert "another run" in line


def test_another_run_that_restores_it(tmp_path, lines, saved):
    (path,) = saved(NAME)

    def restored_soon(_operation):
        # When it has given way, which takes a second.
        asyncio.get_running_loop().call_later(1.3, os.unlink, path)

    with image_lock(path):
        assert run(tmp_path, lines, during=restored_soon)
    assert lines.told == [f"{path}: another run has restored it"]


# --- an end from outside ---


def test_stopped_while_another_run_is_at_work(tmp_path, lines, saved):
    (path,) = saved(NAME)

    def stop(operation):
        operation.stop("SIGTERM")
        operation.stop("SIGINT")

    with image_lock(path):
        assert not run(tmp_path, lines, during=stop)
    (line,) = lines.told
    assert "SIGTERM" in line
    assert "SIGINT" not in line
    assert os.path.exists(path)


def test_nothing_begins_after_a_stop(tmp_path, lines, saved):
    paths = saved(f"a-{NAME}", f"b-{NAME}", f"db-{NAME}")

    def stop_at_the_first_line(operation):
        lines.then = lambda _text: operation.stop("X")

    assert not run(tmp_path, lines, during=stop_at_the_first_line)
    assert [line for line in lines.told if "Not begun, since X came before" in line] == [
        f"! {path}: Not begun, since X came before" for path in paths[:2]
    ]
