# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Forged images: copies of one of a real guest, with another command.

Most tests restore one whose command is a program that makes a file, the canary: where the restore must refuse, there is
no canary, no process and no log, and the image is as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import struct
import subprocess
import sys
import time
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import pack_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import vouch
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key

from support import CounterGuest, find_qemu_pids
from support.canary import make_canary
from support.observe import VM


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A guest that was saved in the raw format, and its image; with it other images are forged."""
    place = tmp_path_factory.mktemp("saved")
    with CounterGuest(place / "guest", VM, block_mib=1, memory_mib=32) as guest:
        guest.start()
        save = place / "save"
        save.mkdir(mode=0o700)
        module = "ansible_collections.vmops.qemu.plugins.modules.qemu_save"
        options = f'{{"ANSIBLE_MODULE_ARGS": {{"name": "{VM}", "path": "{save}/web1.save", "format": "raw"}}}}'
        environment = {**os.environ, "PYTHONPATH": os.environ["ANSIBLE_COLLECTIONS_PATH"]}
        command = [sys.executable, "-m", module]
        subprocess.run(command, input=options, text=True, env=environment, check=True, stdout=subprocess.DEVNULL)
        guest.wait_exit()
        yield save / "web1.save"


@pytest.fixture
def saved_launch(saved):
    """How the saved guest's QEMU was started, as its image records it."""
    return read_image_head(str(saved)).domain().launch


@pytest.fixture
def canary(tmp_path):
    return make_canary(tmp_path / "canary")


@pytest.fixture
def forge(saved, tmp_path):
    """Make a copy of the saved image, with another command: ``forge(argv=[...], uid=0)``."""

    def make(place=None, machine=None, **changes):
        if place is None:
            place = tmp_path / "save"
            place.mkdir(mode=0o700, exist_ok=True)
        image = place / "web1.save"
        head = read_image_head(str(saved))
        domain: Any = head.domain()
        record = dataclasses.replace(domain.launch, **changes)
        # What is refused here is refused although this host vouches for it; else nothing would be run at all.
        xml = domain_xml.embed(head.xml, domain.save_facts, record)
        with contextlib.suppress(ImageFormatError):  # it makes no sense, for whoever reads it
            xml = vouch(xml, make_key())
        header = dataclasses.replace(head.header, data_length=len(xml.encode()) + 1)
        _header, front = pack_head(str(image), header, xml, "")
        stream = saved.read_bytes()[head.header.stream_offset :]
        if machine is not None:
            (length,) = struct.unpack(">I", stream[9:13])
            stream = stream[:9] + struct.pack(">I", len(machine)) + machine.encode() + stream[13 + length :]
        image.write_bytes(front + stream)
        image.chmod(0o600)
        return image

    return make


@pytest.fixture
def forged(forge, canary):
    """An image that would run the canary with the words of the guest's QEMU."""
    argv = [str(canary.program), "-name", VM, "-qmp", f"unix:{canary.file.parent}/qmp,server=on"]
    return forge(argv=argv, executable=str(canary.program))


def wait_gone(pid):
    deadline = time.monotonic() + 20
    while pid in find_qemu_pids(VM):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def end_restored():
    """End what the tests of real QEMUs have restored."""
    yield
    for pid in find_qemu_pids(VM):
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
