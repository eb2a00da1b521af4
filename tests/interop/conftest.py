# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures: a libvirt of the tests' own, its guests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from support.libvirt import Libvirt, LibvirtGuest
from support.observe import VM


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "smoke: the few that show in a minute that libvirt and we read each other")


@pytest.fixture
def save(run_module: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Save a domain, which has descriptors that only libvirt can give it: it comes back by libvirt, or by a command."""

    def run(**options: Any) -> dict[str, Any]:
        result = run_module("qemu_save", require_restorable=False, **options)
        assert not result.get("failed"), result["msg"]
        return result

    return run


@pytest.fixture(scope="session")
def libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirt]:
    """One libvirtd for all tests; without libvirt they fail, they are not skipped."""
    libvirt = Libvirt(tmp_path_factory.mktemp("libvirt"))
    yield libvirt
    libvirt.close()


@pytest.fixture
def make_guest(libvirt: Libvirt, tmp_path: Path) -> Iterator[Callable[..., LibvirtGuest]]:
    """Make counter guests that libvirt runs."""
    guests: list[LibvirtGuest] = []

    def make(**options: Any) -> LibvirtGuest:
        guest = LibvirtGuest(libvirt, tmp_path / "guest", VM, **{"block_mib": 4, **options})
        guests.append(guest)
        guest.start()
        return guest

    yield make
    for guest in guests:
        guest.close()


@pytest.fixture
def guest(make_guest: Callable[..., LibvirtGuest]) -> LibvirtGuest:
    """A running counter guest of libvirt's."""
    return make_guest()
