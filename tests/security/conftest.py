# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An unprivileged user of the host, played with real system calls, and the modules as root runs them.

Memory is bounded in these tests (``BOUNDED``), so that a module that would take all of it fails instead.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from support.attacker import Attacker

#: A module's memory at most, as a prefix of its command: ten times what it needs.
BOUNDED = ("prlimit", f"--data={512 * 1024 * 1024}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason="the modules run as root here, and an attacker as nobody"))


@pytest.fixture
def attacker() -> Iterator[Attacker]:
    place = Path(tempfile.mkdtemp(prefix="vmops-attacker-", dir="/tmp"))
    attacker = Attacker(place)
    yield attacker
    attacker.close()
    shutil.rmtree(place)


@pytest.fixture
def run_bounded(start_module: Callable[..., Any]) -> Callable[..., tuple[dict[str, Any], float]]:
    """Run a module with bounded memory; its result, and the seconds that it took."""

    def run(module: str, **options: Any) -> tuple[dict[str, Any], float]:
        started = time.monotonic()
        result = start_module(module, prefix=BOUNDED, **options).result(timeout=60)
        return result, time.monotonic() - started

    return run
