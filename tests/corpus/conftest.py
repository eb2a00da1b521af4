# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures: good images to spoil, libvirt's and our own; and a summary of what came of them, at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus.digest import CHECKSUM
from corpus.layout import Layout, read_layout
from support import CounterGuest
from support.golden import COMMAND
from support.module_run import ModuleRun
from support.observe import VM
from support.preloaded import ModuleServer

_SUMMARY = pytest.StashKey[list[str]]()


@pytest.fixture
def summary(pytestconfig: pytest.Config) -> list[str]:
    """Lines that are shown after the run, whether it passed or not."""
    return pytestconfig.stash.setdefault(_SUMMARY, [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show what the tests have to say."""
    lines = config.stash.get(_SUMMARY, [])
    if lines:
        terminalreporter.section("mutated images")
        for line in lines:
            terminalreporter.write_line(line)


class OwnImages:
    """A guest in four images, a little older in each; its QEMU has ended."""

    def __init__(self, server: ModuleServer, place: Path) -> None:
        place.mkdir(mode=0o700)
        self.guest = CounterGuest(place / "guest", VM, memory_mib=32, block_mib=2, uuid=_UUID)
        self.guest.start()
        try:
            self.guest.wait_for_counter(2)
            self.checksum = self.guest.checksum()
            self.paths: dict[str, Path] = {}
            for image_format in ("sparse", "raw"):
                for version in (3, 2):
                    name = f"{image_format}-{version}"
                    self.paths[name] = place / f"{name}.save"
                    options = {"path": str(self.paths[name]), "format": image_format, "image_version": version}
                    self._run(server, place, "qemu_save", name=VM, after_save="resume", **options, **CHECKSUM)
        finally:
            self.guest.end()

    @staticmethod
    def _run(server: ModuleServer, place: Path, module: str, **options: Any) -> None:
        run = ModuleRun(server, module, options, [], place / "arguments.json")
        try:
            result = run.result()
        finally:
            run.close()
        assert not result.get("failed"), result["msg"]


_UUID = "b5a6ea1e-1d26-4f59-8d1c-7cbd4e29cc81"


@pytest.fixture(scope="session")
def own_images(module_server: ModuleServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnImages]:
    """Images of qemu_save, of one guest: sparse and raw, in both versions."""
    images = OwnImages(module_server, tmp_path_factory.mktemp("own") / "images")
    yield images
    images.guest.close()


@pytest.fixture(scope="session")
def own_layouts(own_images: OwnImages) -> dict[str, Layout]:
    """Where everything is in them."""
    return {name: read_layout(path) for name, path in own_images.paths.items()}


@pytest.fixture(scope="session")
def all_images(golden: Path, own_images: OwnImages) -> dict[str, tuple[Path, dict[str, Any]]]:
    """All good images, and the options with which each would be restored."""
    libvirts = {"name": "tiny", "launch": "command", "command": COMMAND}
    return {
        **{f"libvirt-{path.stem}": (path, libvirts) for path in golden.glob("*.save")},
        **{name: (path, {"name": VM}) for name, path in own_images.paths.items()},
    }
