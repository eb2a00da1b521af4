# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests that a runner starts: the program itself, as Debian or PyPI has it, in .cache/runners (``scripts/setup``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.process import Process

#: What stands before the real QEMU in a runner's PATH: the tests' guests run without KVM and vsock, on which some
#: runners insist, and are reached by nobody on the network.
_WITHOUT_KVM = """\
#!/bin/bash
words=()
for word in "$@"; do
    case $previous/$word in
        */-enable-kvm) continue ;;
        -cpu/host*) word=max ;;
        -accel/kvm*) word=tcg ;;
        -device/vhost-vsock-*) unset 'words[-1]'; continue ;;
        -machine/*) word=${word//accel=kvm/accel=tcg} ;;
        -netdev/*) word=${word//hostfwd=tcp::/hostfwd=tcp:127.0.0.1:} ;;
    esac
    words+=("$word")
    previous=$word
done
exec "$REAL_QEMU" "${words[@]}"
"""

#: And what a host with KVM says of its CPUs.
_CPU_WITH_KVM = """\
#!/bin/sh
PATH=/usr/bin:/bin lscpu "$@" | sed 's/^Flags: */&vmx svm /'
"""


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory in which runners may make sockets, whose paths have 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="vmops-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def environment(tmp_path: Path, short_directory: Path) -> dict[str, str]:
    """What runners are started with: directories of their own for all that they keep."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("qemu-system-x86_64", _WITHOUT_KVM), ("lscpu", _CPU_WITH_KVM)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    home = short_directory
    places = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("DATA", "CONFIG", "STATE", "CACHE")}
    runtime = home / "run"
    runtime.mkdir(mode=0o700)
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm",
        "REAL_QEMU": str(shutil.which("qemu-system-x86_64")),
        "XDG_RUNTIME_DIR": str(runtime),
        **places,
    }


@pytest.fixture
def start_runner(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a runner that stays beside its VM, in a session of its own; it is ended after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: object, cwd: Path = tmp_path, **options: Any) -> subprocess.Popen[bytes]:
        with open(tmp_path / "runner.log", "ab") as log:
            process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=options.pop("stdin", subprocess.DEVNULL),
                stdout=options.pop("stdout", log),
                stderr=log,
                cwd=cwd,
                env=environment,
                start_new_session=True,
                **options,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def run_runner(tmp_path: Path, environment: dict[str, str]) -> Callable[..., str]:
    """Run a command of a runner's to its end, which must be a good one; what it said."""

    def run(*argv: object, cwd: Path = tmp_path, status: int = 0, **env: str) -> str:
        # A VM that it leaves behind has its output: a file, as a pipe would not end.
        with open(tmp_path / "command.log", "w+b") as log:
            done = subprocess.run(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env={**environment, **env},
                check=False,
                timeout=120,
            )
            log.seek(0)
            said = log.read().decode("utf-8", "replace")
        assert done.returncode == status, said
        return said

    return run


@pytest.fixture
def end_later() -> Iterator[Callable[[int], None]]:
    """End a process after the test, by its number."""
    processes: list[Process] = []
    yield lambda pid: processes.append(Process(pid))
    for process in processes:
        process.kill()
