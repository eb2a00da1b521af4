# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Some guests of one host, and the runs over all of them. No run is without a list: others' guests are on this host."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import CounterGuest
from support.module_run import Result

#: Names that no other VM of this host has.
NAMES = [f"{name}-{os.getpid()}" for name in ("db1", "web1", "web2")]


@pytest.fixture
def guests(make_guest: Callable[..., CounterGuest]) -> dict[str, CounterGuest]:
    """Three small guests that run, by name."""
    return {name: make_guest(name, block_mib=2, observer=True) for name in NAMES}


@pytest.fixture
def save_dir(tmp_path: Path) -> Path:
    """Where their images go."""
    directory = tmp_path / "save"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def managed_save(run_module: Callable[..., Result], save_dir: Path) -> Callable[..., Result]:
    """Save the guests, which may fail."""

    def run(**options: Any) -> Result:
        return run_module("qemu_managed_save", **{"vms": NAMES, "save_dir": str(save_dir), **options})

    return run


@pytest.fixture
def managed_restore(run_module: Callable[..., Result], save_dir: Path) -> Callable[..., Result]:
    """Restore what is in the directory, which may fail."""

    def run(**options: Any) -> Result:
        return run_module("qemu_managed_restore", **{"save_dir": str(save_dir), **options})

    return run


def states(result: Result) -> dict[str, str]:
    """What became of each VM."""
    return {vm["name"]: vm["state"] for vm in result["vms"]}


def files(save_dir: Path) -> list[str]:
    """What is there besides the logs of QEMUs that were started from images."""
    return sorted(os.listdir(save_dir))
