# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each ansible-core with each Python of a host that it supports: a real VM saved and restored by its own playbook.

And with each of them ansible-test sanity and an integration target, and with each Python the unit tests of what runs on
a host. What is recorded in build/matrix is the table in docs/compatibility.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.guest import REPOSITORY
from support.observe import VM, Continuity

CACHE = REPOSITORY / ".cache"
#: Of each ansible-core the Pythons of hosts that it supports: the table in its documentation ("support matrix").
CORES = {
    "2.16": ("3.9", "3.12"),
    "2.17": ("3.9", "3.12"),
    "2.18": ("3.9", "3.13"),
    "2.19": ("3.9", "3.13"),
    "2.20": ("3.9", "3.14"),
    "2.21": ("3.9", "3.14"),
    "2.22": ("3.9", "3.14"),
}
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def home(core: str) -> Path:
    """Its virtual environment; skips the test where there is none."""
    own = Path(sys.prefix)
    place = own if f"[core {core}." in said(own / "bin" / "ansible", "--version") else CACHE / f"ansible-core-{core}"
    if not (place / "bin" / "ansible-playbook").exists():
        pytest.skip(f"no ansible-core {core} here (scripts/setup matrix)")
    return place


def said(program: Path, *arguments: str) -> str:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def python_of(version: str) -> Path:
    """The Python of a host; skips the test where it is not there."""
    place = CACHE / f"python-{version}"
    if not (place / "complete").exists():
        pytest.skip(f"no Python {version} here (scripts/setup matrix)")
    return place / "bin" / "python"


def record(row: str, column: str, result: str) -> None:
    place = REPOSITORY / "build" / "matrix"
    place.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]", "_", f"{row}-{column}.json")
    (place / name).write_text(json.dumps({"row": row, "column": column, "result": result}))


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("core", CORES)
def test_saved_and_restored(core: str, python: str, make_guest: Any, image: Path, tmp_path: Path) -> None:
    first, last = CORES[core]
    if not numbers(first) <= numbers(python) <= numbers(last):
        record(core, python, "not supported by it")
        pytest.skip(f"ansible-core {core} does not support hosts with Python {python}")
    programs, interpreter = home(core) / "bin", python_of(python)
    guest = make_guest()
    continuity = Continuity(guest)
    where = {"name": VM, "path": str(image)}
    play = [
        {"vmops.qemu.qemu_save": where},
        {"vmops.qemu.qemu_save": where, "register": "again"},
        {"ansible.builtin.assert": {"that": ["again is not changed", "'is already saved' in again.msg"]}},
        {"vmops.qemu.qemu_save_image_info": {"path": str(image), "verify": True}, "register": "info"},
        {"ansible.builtin.assert": {"that": ["info.image.complete", "info.image.problems == []"]}},
        {"vmops.qemu.qemu_restore": where},
    ]
    playbook = tmp_path / "play.json"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": play}]))
    command = [str(programs / "ansible-playbook"), "-i", "localhost,", "-c", "local", str(playbook)]
    command += ["-e", f"ansible_python_interpreter={interpreter}"]
    environment = {**os.environ, "ANSIBLE_HOME": str(tmp_path / "ansible")}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    continuity.check()
    record(core, python, "saved and restored")


@pytest.mark.parametrize("core", CORES)
def test_sanity(core: str) -> None:
    """Those of its tests that say whether it takes the collection; all of them are in make test."""
    environment = {**os.environ, "VMOPS_VENV": str(home(core))}
    command = [sys.executable, str(REPOSITORY / "scripts" / "sanity.py")]
    for name in ("compile", "import", "validate-modules"):
        done = subprocess.run([*command, "--test", name], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    record(core, "sanity", "passed")


@pytest.mark.parametrize("core", CORES)
def test_integration(core: str) -> None:
    environment = {**os.environ, "VMOPS_VENV": str(home(core))}
    command = [str(REPOSITORY / "scripts" / "integration"), "qemu_restore"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record(core, "integration", "passed")


@pytest.mark.parametrize("python", PYTHONS)
def test_units(python: str) -> None:
    tests = ["tests/unit/plugins/module_utils", "tests/unit/plugins/modules"]
    command = [str(python_of(python)), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    record("unit tests", python, "passed")
