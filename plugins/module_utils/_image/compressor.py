# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tools of the compressed formats, and running ones: beside the caller's code, or between QEMU and the file.

The tools are those that libvirt runs (qemuSaveImageGetCompressionProgram in qemu_saveimage.c: ``TOOL -c``, for xz with
-3, and ``TOOL -dc``), with all CPUs where a tool can use them; what they write is the same format. zstd has its fastest
ordinary level, as a guest waits: with the 400 MB of a Linux system's files 0.39 GB for each second of a CPU, and 0.23
with its default level 3, for files that are a tenth smaller; with random data 2.6 and 0.9.
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
import tempfile
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageAccessError,
    ImageError,
    ImageFormatError,
    ImageSpaceError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import cure_for
from ansible_collections.vmops.qemu.plugins.module_utils._process_handle import ProcessHandle

#: Where tools are looked for beside PATH: what a shell without a login has there is often less.
_SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"

#: What to do about a tool that cannot be started.
_NOT_STARTED = "See that the task's user may run it (its mode, the file system's, limits), then run the task again"

#: Bytes of a pipe: fewer changes between QEMU and the tool (the most that a user may ask for by default).
_PIPE_SIZE = 1024 * 1024


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
    ImageFormat.ZSTD: Compressor("zstd", compress_options=("-c", "-q", "-1", "-T0"), expand_options=("-dc", "-q")),
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
        self._handle = ProcessHandle(process.pid)
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
            raise RequestError(f"{command[0]} cannot be started: {exc.strerror}", cure=_NOT_STARTED) from exc
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
                f"{self.program} {how_it_ended(code)}" + (f": {said}" if said else ""),
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
        self._handle.kill()
        await self._end()
        await self._said

    async def _end(self) -> int:
        """Its exit code, when it has ended."""
        code = await self._process.wait()
        self._handle.close()
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


@contextlib.contextmanager
def started_tool(command: list[str], stdin: int, stdout: int, stderr: int) -> t.Iterator[subprocess.Popen[bytes]]:
    """Run a tool beside the body; it has ended afterwards, whatever happens: where it still runs, it is killed.

    :raises RequestError: it cannot be started.
    """
    # A signal whose handler raises while the tool is being started would leave it to itself. The tool takes over
    # that these are blocked: they end this process, which then ends the tool by SIGKILL.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    try:
        # A session of its own: a signal for this process's group must not end it on its own.
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except BaseException as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if isinstance(error, OSError):
            raise RequestError(f"{command[0]} cannot be started: {error.strerror}", cure=_NOT_STARTED) from error
        raise
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()


@contextlib.contextmanager
def running_tool(
    command: list[str], path: str, stdin: int, stdout: int, partly: bool = False
) -> t.Iterator[subprocess.Popen[bytes]]:
    """Run a tool beside the body, as :func:`started_tool`, and see that it does its work to the end.

    :param path: the file on which it works, for the error.
    :param partly: it is of no interest how it ends.
    :raises ImageFormatError: it failed, and says why.
    """
    failure: ImageError | None = None
    with tempfile.TemporaryFile() as said:
        with started_tool(command, stdin, stdout, said.fileno()) as process:
            try:
                yield process
                if process.stdin:
                    process.stdin.close()
            except BrokenPipeError as error:
                failure = ImageAccessError(path, f"{command[0]} ended before its time")
                failure.__cause__ = error
            except ImageFormatError as error:
                # A stream that ends too early may mean that the tool found it damaged: it knows better.
                failure = error
                if process.stdout:
                    process.stdout.close()
            if not partly:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(2 if failure else None)
        said.seek(0)
        text = said.read(4096).decode(errors="replace").strip()
    if process.returncode > 0 and not partly:
        program = os.path.basename(command[0])
        if "No space left" in text or "quota exceeded" in text:
            raise ImageSpaceError(path, f"{program} failed: {text}", cure="Free space (or quota) there") from failure
        raise ImageFormatError(
            path, f"{program} failed with exit code {process.returncode}: {text or 'it said nothing'}"
        ) from failure
    if failure:
        raise failure
    if process.returncode < 0 and not partly:
        raise ImageAccessError(path, f"{os.path.basename(command[0])} was killed by signal {-process.returncode}")


def how_it_ended(code: int) -> str:
    """How a tool ended, as the rest of a sentence, by its exit code."""
    return f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
