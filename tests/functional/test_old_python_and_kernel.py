# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""On a Python without pidfd and memfd, and on a kernel that refuses them, all is done as elsewhere."""

from __future__ import annotations

import shutil

import pytest

from support import find_qemu_pids
from support.guest import COLLECTIONS
from support.module_run import check_error
from support.observe import VM, Continuity

#: What the Pythons of conda and of uv lack, as they were built with an old C library.
LACKING = """
import os, signal
del os.pidfd_open, os.memfd_create, signal.pidfd_send_signal
"""

CALLS = ("pidfd_open", "pidfd_send_signal", "memfd_create")


def python_without(directory):
    """A Python that lacks these functions."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(LACKING)
    return ["env", f"PYTHONPATH={directory}:{COLLECTIONS}"]


def kernel_without(error):
    """A kernel that lacks the system calls (ENOSYS), or a filter that forbids them (EPERM)."""
    # Without -f: strace would stay for as long as the QEMU that a restore starts.
    refused = [word for call in CALLS for word in ("-e", f"inject={call}:error={error}")]
    return ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={','.join(CALLS)}", *refused]


@pytest.fixture(params=["python", "ENOSYS", "EPERM", "python-and-ENOSYS"])
def prefix(request, tmp_path):
    """What a module is to be executed by."""
    python = python_without(tmp_path / "python") if request.param.startswith("python") else []
    kernel = kernel_without(request.param.rpartition("-")[2]) if request.param != "python" else []
    if kernel and not shutil.which("strace"):
        pytest.skip("no strace")
    return [*python, *kernel]


#: The others differ from these in nothing that comes after the look whether there is a pidfd.
worst = pytest.mark.parametrize("prefix", ["python-and-ENOSYS", "EPERM"], indirect=True)


@pytest.mark.parametrize("image_format", ["sparse", "zstd"])
def test_saved_and_restored(prefix, image_format, guest, image, start_module):
    continuity = Continuity(guest)
    saved = start_module("qemu_save", prefix=prefix, name=VM, path=str(image), format=image_format).result()
    assert not saved.get("failed"), saved["msg"]
    assert not guest.alive()
    looked = start_module("qemu_save_image_info", prefix=prefix, path=str(image), stream=True).result()
    assert looked["image"]["stream"]["ram_blocks"] or image_format == "zstd"
    restored = start_module("qemu_restore", prefix=prefix, name=VM, path=str(image)).result()
    assert not restored.get("failed"), restored["msg"]
    continuity.check()
    assert not image.exists()


@worst
def test_qemu_of_no_use_is_ended(prefix, guest, image, start_module, save):
    """It was started for the image, and does not fit it."""
    save(name=VM, path=str(image))
    command = [word if word != "64" else "128" for word in guest.argv()]
    result = start_module(
        "qemu_restore", prefix=prefix, name=VM, path=str(image), launch="command", command=command
    ).result()
    check_error(result, "MismatchError", "memory", guest="saved")
    assert find_qemu_pids(VM) == []
    assert image.exists()


@worst
def test_tool_is_ended_with_its_save(prefix, big_guest, image, start_module):
    """The time is up while a tool compresses: tool and save are ended, and the guest goes on."""
    continuity = Continuity(big_guest)
    slow = {"format": "gzip", "bandwidth": "8M", "timeout": 2}
    result = start_module("qemu_save", prefix=prefix, name=VM, path=str(image), **slow).result()
    check_error(result, "OperationTimeoutError", guest="running")
    continuity.check()
    assert list(image.parent.iterdir()) == []
