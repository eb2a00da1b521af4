# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures: real guests on real QEMUs, and the modules run as Ansible runs them, in a process of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key

from support import CounterGuest
from support.observe import VM

REPOSITORY = Path(__file__).resolve().parents[2]
COLLECTIONS = REPOSITORY / "build" / "collections"
OLD_QEMU = REPOSITORY / ".cache" / "qemu-7.2" / "qemu-system-x86_64"

Result = dict[str, Any]


@pytest.fixture(scope="session", autouse=True)
def vouching_key() -> None:
    """The key with which saves vouch for images: made before the tests, some of which count a save's steps."""
    make_key()


class ModuleRun:
    """A module that runs in the background."""

    def __init__(self, module: str, options: dict[str, Any], prefix: list[str], arguments: Path) -> None:
        arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
        arguments.chmod(0o600)
        command = [sys.executable, "-m", f"ansible_collections.vmops.qemu.plugins.modules.{module}", str(arguments)]
        self.process = subprocess.Popen(
            [*prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
            text=True,
        )

    def result(self, timeout: float = 120) -> Result:
        """Its result; there must be exactly one, and never a traceback beside it."""
        try:
            output, errors = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        assert "Traceback" not in errors, errors
        result: Result = json.loads(output)
        assert "exception" not in result, result["exception"]
        return result

    def close(self) -> None:
        """Kill it where it still runs."""
        if self.process.returncode is None:
            self.process.kill()
        with contextlib.suppress(ValueError):  # its output was read already
            self.process.communicate()


@pytest.fixture
def start_module(tmp_path: Path) -> Iterator[Callable[..., ModuleRun]]:
    """Start a module: C(start_module("qemu_save", name=VM, check=True))."""
    runs: list[ModuleRun] = []

    def start(module: str, *, check: bool = False, diff: bool = False, prefix: Any = (), **options: Any) -> ModuleRun:
        internal = {"_ansible_check_mode": check, "_ansible_diff": diff}
        run = ModuleRun(module, {**options, **internal}, list(prefix), tmp_path / f"arguments-{len(runs)}.json")
        runs.append(run)
        return run

    yield start
    for run in runs:
        run.close()


@pytest.fixture
def run_module(start_module: Callable[..., ModuleRun]) -> Callable[..., Result]:
    """Run a module to its end and return its result, which may be a failure."""

    def run(module: str, **options: Any) -> Result:
        return start_module(module, **options).result()

    return run


@pytest.fixture
def save(run_module: Callable[..., Result]) -> Callable[..., Result]:
    """Run qemu_save, which must succeed."""

    def run(**options: Any) -> Result:
        result = run_module("qemu_save", **options)
        assert not result.get("failed"), result["msg"]
        return result

    return run


@pytest.fixture
def restore(run_module: Callable[..., Result]) -> Callable[..., Result]:
    """Run qemu_restore, which must succeed."""

    def run(**options: Any) -> Result:
        result = run_module("qemu_restore", **options)
        assert not result.get("failed"), result["msg"]
        return result

    return run


@pytest.fixture
def make_guest(tmp_path: Path) -> Iterator[Callable[..., CounterGuest]]:
    """Make counter guests that are ended after the test, whoever started their QEMU last."""
    guests: list[CounterGuest] = []

    def make(name: str = VM, *, start: bool = True, workdir: str | None = None, **options: Any) -> CounterGuest:
        options.setdefault("block_mib", 8)
        guest = CounterGuest(tmp_path / (workdir or f"guest-{len(guests)}"), name, **options)
        guests.append(guest)
        if start:
            guest.start()
        return guest

    yield make
    for guest in guests:
        guest.adopt_restarted()
        guest.close()


@pytest.fixture
def guest(make_guest: Callable[..., CounterGuest]) -> CounterGuest:
    """A running counter guest with a second monitor to look through."""
    return make_guest(observer=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Where the guest's image goes: an own directory, so that leftovers show."""
    directory = tmp_path / "save"
    directory.mkdir(mode=0o700)
    return directory / "web1.save"
