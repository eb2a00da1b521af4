# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU itself says which of its options take an argument."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line

from support.versions import OLD_QEMU


def listed_options(qemu: str) -> set[str]:
    """The options that QEMU's help lists."""
    text = subprocess.run([qemu, "-help"], check=True, stdout=subprocess.PIPE, text=True).stdout
    names: set[str] = set()
    for line in text.splitlines():
        head = re.match(r"--?[\w-]+(?:(?:/| or )-[\w-]+)*", line)
        if head:
            names.update(re.findall(r"(?:^|/| or )--?([\w-]+)", head.group()))
    return names


def takes_argument(qemu: str, name: str) -> bool | None:
    """Whether an option wants an argument; None where this QEMU does not know it.

    QEMU looks at all options before it does what the first one says: to print its version.
    """
    command = [qemu, "-version", f"-{name}"]
    run = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode == 0:
        return False
    if "requires an argument" in run.stdout:
        return True
    assert "invalid option" in run.stdout
    return None


@pytest.mark.parametrize("qemu", ["qemu-system-x86_64", str(OLD_QEMU)], ids=["installed", "7.2"])
def test_the_options_without_argument(qemu: str) -> None:
    if qemu == str(OLD_QEMU) and not OLD_QEMU.exists():
        pytest.skip("no old QEMU here")
    listed = listed_options(qemu)
    assert len(listed) > 90
    assert {"h", "help", "fda", "fdb", "preconfig", "s", "S", "no-user-config", "dtb"} <= listed
    names = sorted(listed | command_line._OPTIONS_WITHOUT_ARGUMENT)
    with ThreadPoolExecutor() as pool:
        answers = dict(zip(names, pool.map(lambda name: takes_argument(qemu, name), names)))
    assert {name for name in listed if answers[name] is None} == set()
    known = {name: answer for name, answer in answers.items() if answer is not None}
    found = {name: name not in command_line._OPTIONS_WITHOUT_ARGUMENT for name in known}
    assert found == known
