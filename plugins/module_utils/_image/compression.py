# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The compressed stream formats: the tool of each, and a running one between QEMU and the file.

The tools are those that libvirt runs (qemuSaveImageGetCompressionProgram in qemu_saveimage.c: C(TOOL -c), for xz with
-3, and C(TOOL -dc)), with all CPUs where a tool can use them; what they write is the same format.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageError,
    ImageFormatError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.file import open_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import cure_for
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import StreamFacts, read_plain_head

#: Where tools are looked for beside PATH: what a shell without a login has there is often less.
_SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"

#: Bytes of a pipe: fewer changes between QEMU and the tool (the most that a user may ask for by default).
_PIPE_SIZE = 1024 * 1024

#: Bytes of the expanded stream that hold its machine type and RAM blocks.
_HEAD_SIZE = 256 * 1024


@dataclasses.dataclass(frozen=True)
class Compressor:
    """A tool that compresses stdin to stdout, and back."""

    program: str
    compress_options: tuple[str, ...] = ("-c",)
    expand_options: tuple[str, ...] = ("-dc",)

    def compress_command(self) -> list[str]:
        """The command that compresses; raises RequestError where the tool is missing."""
        return [self._path(), *self.compress_options]

    def expand_command(self) -> list[str]:
        """The command that expands; raises RequestError where the tool is missing."""
        return [self._path(), *self.expand_options]

    def _path(self) -> str:
        found = shutil.which(self.program) or shutil.which(self.program, path=_SEARCH_PATH)
        if found is None:
            raise RequestError(
                f"The tool {self.program} is not installed on this host, so images in its format can be neither"
                " written nor read",
                cure=f"Install {self.program}, or choose another format",
            )
        return found


#: Whoever has written an image says in it how much memory xz takes to expand it, up to 4 GiB; that of "xz -9" takes
#: 65 MiB. The other tools have bounds of their own.
_XZ_MEMORY = "--memlimit-decompress=1GiB"

COMPRESSORS = {
    ImageFormat.GZIP: Compressor("gzip"),
    ImageFormat.BZIP2: Compressor("bzip2"),
    ImageFormat.XZ: Compressor("xz", compress_options=("-c", "-3", "-T0"), expand_options=("-dc", "-T0", _XZ_MEMORY)),
    ImageFormat.LZOP: Compressor("lzop"),
    ImageFormat.ZSTD: Compressor("zstd", compress_options=("-c", "-q", "-T0"), expand_options=("-dc", "-q")),
}


def require_tool(image_format: ImageFormat) -> None:
    """:raises RequestError: the tool of a compressed format is missing; quiet for the other formats."""
    if image_format in COMPRESSORS:
        COMPRESSORS[image_format].compress_command()


def make_pipe() -> tuple[int, int]:
    """A roomy pipe: the descriptors to read from and to write to."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    # A limit of the system's or the user's: the usual size does, too.
    with contextlib.suppress(OSError):
        fcntl.fcntl(write_end, 1031, _PIPE_SIZE)  # F_SETPIPE_SZ, which Python 3.9 does not name
    return read_end, write_end


class Filter:
    """A tool that is running between two descriptors."""

    def __init__(self, program: str, process: asyncio.subprocess.Process) -> None:
        self.program = program
        self._process = process
        # Not asyncio's own way to kill it: that would look whether it has ended, and so reap it before asyncio does.
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            self._pidfd = -1
        self._said = asyncio.ensure_future(self._read_stderr())

    @classmethod
    async def start(cls, command: list[str], stdin: int, stdout: int) -> Filter:
        """Start a tool; it gets its own copies of the descriptors.

        :raises RequestError: it cannot be executed.
        """
        try:
            # A session of its own: a signal for the module's group must not end it before QEMU is told.
            process = await asyncio.create_subprocess_exec(
                *command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as exc:
            raise RequestError(f"{command[0]} cannot be started: {exc.strerror}") from exc
        return cls(os.path.basename(command[0]), process)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def wait(self, path: str) -> None:
        """Wait for its end.

        :param path: the image, for the error.
        :raises ImageError: it failed.
        """
        code = await self._end()
        said = await asyncio.shield(self._said)
        if code != 0:
            raise ImageError(
                path,
                f"{self.program} {_how_it_ended(code)}" + (f": {said}" if said else ""),
                cure=cure_for(said) or "See what it says, then save or restore again",
            )

    async def failure(self, timeout: float = 2.0) -> str:
        """What went wrong with it, if it ends within so many seconds; the empty string where nothing did."""
        with contextlib.suppress(asyncio.TimeoutError):
            try:
                await asyncio.wait_for(self.wait(""), timeout)
            except ImageError as exc:
                return exc.problem
        return ""

    async def end(self) -> None:
        """Kill it, where it still runs, and reap it."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self._end()
        await self._said

    async def _end(self) -> int:
        """Its exit code, when it has ended."""
        code = await self._process.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return code

    async def _read_stderr(self) -> str:
        stream = self._process.stderr
        text = b""
        while stream:
            piece = await stream.read(4096)
            if not piece:
                break
            # More than that is of no use, but it must not fill the pipe.
            text = (text + piece)[:4096]
        return text.decode(errors="replace").strip()


def read_compressed_head(path: str, header: SaveImageHeader) -> StreamFacts | None:
    """What the head of a compressed stream tells (machine type, RAM blocks), by expanding that much of it.

    :returns: None for an image that is not compressed.
    :raises RequestError: the tool is missing.
    :raises ImageError: the image cannot be read, or what it expands to is no QEMU stream.
    """
    compressor = COMPRESSORS.get(header.format)
    if compressor is None:
        return None
    command = compressor.expand_command()
    image = open_image(path)
    try:
        os.lseek(image, header.stream_offset, os.SEEK_SET)
        data, code = _expand_head(command, image)
    finally:
        os.close(image)
    if len(data) < _HEAD_SIZE and code != 0:
        raise ImageFormatError(
            path, f"{compressor.program} cannot expand the stream: {_how_it_ended(code)} after {len(data)} bytes"
        )
    head = os.memfd_create("vmops-stream-head", os.MFD_CLOEXEC)
    try:
        os.write(head, data)
        return read_plain_head(head, path)
    finally:
        os.close(head)


def _expand_head(command: list[str], image: int) -> tuple[bytes, int]:
    """The first bytes of what a tool makes of an image from its position on, and the tool's exit code.

    :raises RequestError: it cannot be started.
    """
    try:
        process = subprocess.Popen(command, stdin=image, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as exc:
        raise RequestError(f"{command[0]} cannot be started: {exc.strerror}") from exc
    with process:
        data = process.stdout.read(_HEAD_SIZE) if process.stdout else b""
        if len(data) == _HEAD_SIZE:  # else it has come to an end of its own
            process.kill()
    return data, process.returncode


def _how_it_ended(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
