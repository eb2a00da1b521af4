# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images to test with: copies of those that libvirt made, and small ones built byte by byte."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _state_directory
from ansible_collections.vmops.qemu.plugins.module_utils._image.digest import stream_digest
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import embed
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import pack_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import SaveFacts

PAGE = 4096
ALIGNMENT = 1024 * 1024


@pytest.fixture(autouse=True)
def own_key(monkeypatch, tmp_path_factory) -> Path:
    """Where the key is that vouches for images in a test: not the host's."""
    place = tmp_path_factory.mktemp("key")
    monkeypatch.setattr(_state_directory, "ROOT_DIRECTORY", str(place / "vmops.qemu"))
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    return place / "vmops.qemu" / "vouching.key"


@pytest.fixture
def copy_of(golden, tmp_path):
    """Copy a golden image, with its holes, to spoil the copy."""

    def copy(name: str) -> Path:
        target = tmp_path / name
        subprocess.run(["cp", "--sparse=always", str(golden / name), str(target)], check=True)
        return target

    return copy


class ImageBuilder:
    """Writes a sparse image as QEMU would; the attributes say what is special about it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = SaveImageHeader(3, ImageFormat.SPARSE, True, complete=True)
        self.xml = "<domain type='qemu'><name>web1</name><memory unit='KiB'>128</memory></domain>"
        self.machine = b"pc-q35-10.0"
        self.capabilities = [b"mapped-ram"]
        self.before_ram = b""
        self.blocks: list[tuple[bytes, int, set[int]]] = [(b"pc.ram", 64 * PAGE, {0, 1, 63}), (b"vga", 3 * PAGE, {2})]
        self.page_size = PAGE
        self.unwritten: set[tuple[bytes, int]] = set()
        self.description = {"devices": [{"name": "cpu", "instance_id": 1, "version": 12, "fields": [{"name": "x"}]}]}
        self.after = b""
        self.ram_end = struct.pack(">Q", 0x10) + b"\x7e\0\0\0\x02"

    def write(self) -> Path:
        text = self.xml.encode() + b"\0"
        offset = 65536
        header = SaveImageHeader(
            self.header.version,
            self.header.format,
            self.header.was_running,
            self.header.complete,
            offset - 92,
            byte_order=self.header.byte_order,
            checkpoint=self.header.checkpoint,
        )
        with self.path.open("wb") as file:
            file.write(header.pack() + text)
            file.seek(offset)
            file.write(b"QEVM\0\0\0\3\x07" + struct.pack(">I", len(self.machine)) + self.machine)
            if self.capabilities:
                name = b"configuration/capabilities"
                file.write(bytes([5, len(name)]) + name + struct.pack(">II", 1, len(self.capabilities)))
                file.write(b"".join(bytes([len(item)]) + item for item in self.capabilities))
            file.write(self.before_ram)
            file.write(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04")
            file.write(struct.pack(">Q", sum(block[1] for block in self.blocks) | 4))
            for name, length, present in self.blocks:
                file.write(bytes([len(name)]) + name + struct.pack(">Q", length))
                if b"x-ignore-shared" in self.capabilities:
                    file.write(bytes(8))
                self._write_mapped_block(file, name, length, present)
            file.write(self.ram_end + b" device state \0")
            description = json.dumps(self.description).encode()
            file.write(b"\x06" + struct.pack(">I", len(description)) + description + self.after)
        return self.path

    def _write_mapped_block(self, file, name: bytes, length: int, present: set[int]) -> None:
        words = [0] * -(-(length // self.page_size) // 64)
        for page in present:
            words[page // 64] |= 1 << page % 64
        bitmap = struct.pack(f"{'<' if self.header.byte_order == 'little' else '>'}{len(words)}Q", *words)
        bitmap_offset = file.tell() + 28
        pages_offset = -(-(bitmap_offset + len(bitmap)) // ALIGNMENT) * ALIGNMENT
        file.write(struct.pack(">IQQQ", 1, self.page_size, bitmap_offset, pages_offset) + bitmap)
        for page in sorted(present):
            if (name, page) not in self.unwritten:
                file.seek(pages_offset + page * self.page_size)
                file.write(os.urandom(self.page_size))
        file.seek(pages_offset + length)


@pytest.fixture
def builder(tmp_path) -> ImageBuilder:
    return ImageBuilder(tmp_path / "web1.save")


@pytest.fixture
def record_checksum():
    """``record_checksum(path, digest=None)``: put a digest into an image's record, by default its own; the digest."""

    def record(path: Path, digest: str | None = None) -> str:
        digest = digest or stream_digest(str(path))
        head = read_image_head(str(path))
        facts = SaveFacts("0.1.0", "10.0.2", "2026-03-01T09:30:00Z", digest=digest)
        # Without libvirt's cookie: a record in an image of libvirt's own is not believed.
        _header, data = pack_head(str(path), head.header, embed(head.xml, facts), "")
        with path.open("r+b") as file:
            file.write(data)
        return digest

    return record


_STEPS = ("pwrite", "fsync", "ftruncate", "rename", "unlink", "link")


def _die_at_step(step: int, torn: bool) -> None:
    """Have this process kill itself at its step-th call that changes a file; in the middle of it with ``torn``."""
    count = 0

    def wrap(name):
        real = getattr(os, name)

        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == step:
                if torn and name == "pwrite":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], arguments[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        setattr(os, name, call)

    for name in _STEPS:
        wrap(name)


def _run_and_die(step: int, torn: bool, work) -> bool:
    """Whether the work came to its end in a process that is killed at that step."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _die_at_step(step, torn)
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed otherwise than by being killed"
    return not os.WIFSIGNALED(status)


@pytest.fixture
def kill_at_each_step():
    """``kill_at_each_step(set_up, work, check)``: for each of its steps, kill the work there and check what is left."""

    def run(set_up, work, check, at_least: int, torn_too: bool = False) -> None:
        for torn in (False, True) if torn_too else (False,):
            step = 0
            finished = False
            while not finished:
                step += 1
                set_up()
                finished = _run_and_die(step, torn, work)
                check(finished)
            assert step > at_least

    return run
