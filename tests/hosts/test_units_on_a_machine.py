# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The functional tests of systemd units, on a machine that systemd runs: this host may have another init.

The machine has no pytest and no ansible-core: what is pure Python of this tree's virtual environment goes along.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from support.counter import build_counter
from support.guest import REPOSITORY
from support.machine_tool import UNAVAILABLE, finish, start

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)

#: Where all of it is on the machine; it has room there, and every user may look into it.
PLACE = "/opt/run"
COPIED = (
    "build/collections",
    "tests/conftest.py",
    "tests/functional",
    "tests/support",
    "tests/guests",
    "pyproject.toml",
)
PACKAGES = ("_pytest", "ansible", "iniconfig", "packaging", "pluggy", "py", "pygments", "pytest")
TIMEOUT = 900  # seconds
#: More arguments of pytest on the machine, such as ``-k shutdown``.
CHOSEN = os.environ.get("UNITS_ARGS", "")


def _own(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Files of root's, without what Python made of them."""
    if "__pycache__" in info.name:
        return None
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def archive() -> bytes:
    """The collection, its tests, the guest's boot image, and the packages."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in COPIED:
            tar.add(REPOSITORY / name, name, filter=_own)
        # After its source, so that it is newer there, too: nothing is to be built, and nothing could be.
        tar.add(build_counter(), "build/guests/counter.img", filter=_own)
        for package in PACKAGES:
            found = importlib.util.find_spec(package)
            assert found is not None
            assert found.origin is not None
            path, name = Path(found.origin), f"packages/{package.replace('.', '/')}"
            if path.name == "__init__.py":
                tar.add(path.parent, name, filter=_own)
            else:
                tar.add(path, f"{name}.py", filter=_own)
    return buffer.getvalue()


@pytest.fixture
def machine(tmp_path):
    """A command that runs another one on a machine of its own."""
    directory = tmp_path / "machines"
    finish(start("create", str(directory), "hv1"))
    try:
        yield ["ssh", "-F", str(directory / "ssh_config"), "hv1"]
    finally:
        finish(start("destroy", str(directory)))


def test_units(machine, capsys):
    unpack = f"mkdir -p {PLACE} && tar -C {PLACE} -xf - && touch {PLACE}/build/guests/counter.img"
    subprocess.run([*machine, unpack], input=archive(), check=True, timeout=120)
    # Where every Python finds them, also that of a module, whose PYTHONPATH is another.
    site = "$(python3 -c 'import site; print(site.getsitepackages()[0])')"
    installed = f'mkdir -p "{site}" && echo {PLACE}/packages >"{site}/packages.pth"'
    subprocess.run([*machine, installed], check=True, timeout=60)
    paths = ":".join(f"{PLACE}/{name}" for name in ("tests", "build/collections"))
    # Not on the machine's /tmp, a tmpfs, of which each save would warn.
    pytest_words = f"python3 -m pytest -q --basetemp={PLACE}/tmp tests/functional/units {CHOSEN}"
    command = f"cd {PLACE} && PYTHONPATH={paths} LC_ALL=C.UTF-8 {pytest_words}"
    done = subprocess.run([*machine, command], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    closing = done.stdout.strip().splitlines()[-1]
    with capsys.disabled():
        print(f"\ntests of units on a machine of their own: {closing}")
    passed = re.match(r"(\d+) passed", closing)
    assert passed, done.stdout
    assert CHOSEN or int(passed[1]) > 50
