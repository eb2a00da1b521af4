# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of more than one directory: real guests on real QEMUs, the modules run as Ansible runs them, and images.

A fixture of one directory's own subject is in the ``conftest.py`` there, and that of one file in the file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key

from support import CounterGuest, LinuxGuest
from support.agent import Agent
from support.boot_program import BOOT_PROGRAM
from support.golden import unpack_images
from support.module_run import ModuleRun, Result
from support.observe import VM
from support.paused import PausedQemu
from support.preloaded import ModuleServer


@pytest.fixture(scope="session")
def vouching_key() -> None:
    """The key with which saves vouch for images: made before the first save, as some tests count a save's steps."""
    make_key()


@pytest.fixture(scope="session")
def module_server() -> Iterator[ModuleServer]:
    """What starts modules."""
    server = ModuleServer()
    yield server
    server.close()


@pytest.fixture
def start_module(module_server: ModuleServer, tmp_path: Path, vouching_key: None) -> Iterator[Callable[..., ModuleRun]]:
    """Start a module: ``start_module("qemu_save", name=VM, check=True)``."""
    runs: list[ModuleRun] = []

    def start(module: str, *, check: bool = False, diff: bool = False, prefix: Any = (), **options: Any) -> ModuleRun:
        internal = {"_ansible_check_mode": check, "_ansible_diff": diff}
        arguments = tmp_path / f"arguments-{len(runs)}.json"
        run = ModuleRun(module_server, module, {**options, **internal}, list(prefix), arguments)
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
def make_guest(tmp_path: Path, vouching_key: None) -> Iterator[Callable[..., CounterGuest]]:
    """Make counter guests that are ended after the test, whoever started their QEMU last."""
    guests: list[CounterGuest] = []

    def make(
        name: str = VM,
        *,
        start: bool = True,
        workdir: str | None = None,
        kind: type[CounterGuest] = CounterGuest,
        **options: Any,
    ) -> CounterGuest:
        options.setdefault("block_mib", 8)
        guest = kind(tmp_path / (workdir or f"guest-{len(guests)}"), name, **options)
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
def big_guest(make_guest: Callable[..., CounterGuest]) -> CounterGuest:
    """A guest whose save takes some seconds when it is told to (bandwidth), so that it can be disturbed."""
    return make_guest(memory_mib=512, block_mib=256, observer=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Where the guest's image goes: an own directory, so that leftovers show."""
    directory = tmp_path / "save"
    directory.mkdir(mode=0o700)
    return directory / "web1.save"


@pytest.fixture
def linux(tmp_path: Path) -> Iterator[LinuxGuest]:
    """A running Linux guest with a disk, which is ended after the test, whoever started its QEMU last."""
    guest = LinuxGuest(tmp_path / "linux", f"linux-{VM}")
    guest.start()
    yield guest
    guest.adopt_restarted()
    guest.close()


@pytest.fixture
def start_paused(tmp_path: Path) -> Iterator[Callable[..., PausedQemu]]:
    """Start a QEMU whose guest never runs, with these arguments: ``start_paused("-drive", ..., place=tmp_path)``."""
    started: list[PausedQemu] = []

    def start(*arguments: str, place: Path = tmp_path, **options: Any) -> PausedQemu:
        started.append(PausedQemu(place, *arguments, **options))
        return started[-1]

    yield start
    for qemu in started:
        qemu.end()


@pytest.fixture
def agent() -> Iterator[Callable[[Path], Agent]]:
    """Hold a socket of QEMU's from now on, until the end of the test or ``close()``."""
    agents: list[Agent] = []

    def hold(path: Path) -> Agent:
        agents.append(Agent(path))
        return agents[-1]

    yield hold
    for each in agents:
        each.close()


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the images that libvirt made (``raw.save``, ``sparse.save``, ...); not to be written to."""
    return unpack_images(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The archive that restores a host's saved VMs at boot, in a directory that nobody else may write to."""
    # Only here: the machine of make test-units has not all that ansible-core needs.
    from ansible_collections.vmops.qemu.plugins.lookup.restore_program import make_program

    path = tmp_path / "program" / "restore_saved_vms.pyz"
    path.parent.mkdir(mode=0o755)
    with path.open("wb") as archive:
        make_program(BOOT_PROGRAM, archive)
    return path


@pytest.fixture
def run_program(program: Path, image: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start it, with the directory of the image; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(**settings: Any) -> subprocess.Popen[str]:
        path = program.parent / "settings.json"
        known = {"save_dir": str(image.parent), "order": [], "parallel": 2, "timeout": 60}
        path.write_text(json.dumps({**known, **settings}))
        path.chmod(0o644)
        started.append(
            subprocess.Popen(
                [sys.executable, "-I", str(program), str(path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
                cwd="/",
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
