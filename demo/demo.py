# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Start a guest, let demo.yml save and restore it, and end whatever is left, also on a failure or a signal."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from support import CounterGuest, GuestError  # noqa: E402

MEMORY = 512  # MiB
BLOCK = 128  # MiB, filled with a pattern and checksummed by the guest
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLEAN_UP_SECONDS = 30.0
PR_SET_CHILD_SUBREAPER = 36


def stop_on_signal(number: int, _frame: object) -> None:
    """Leave by the way of an exception, so that all is cleaned up."""
    print(f"\ndemo: stopped by {signal.Signals(number).name}", file=sys.stderr)
    raise SystemExit(128 + number)


def adopt_orphans() -> None:
    """Become the parent of every process that is started from here and loses its own, such as the restored QEMU."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> list[int]:
    """The processes whose parent this one is."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def reap() -> None:
    """Collect the children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_children(deadline: float) -> None:
    """Tell all children to end (a module then puts the guest back first), and wait; kill those that do not."""
    told: set[int] = set()
    while True:
        reap()
        left = children()
        if not left:
            return
        late = time.monotonic() > deadline
        for pid in left:
            if late or pid not in told:
                told.add(pid)
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.05)


def run_playbook(work: Path, guest: CounterGuest) -> int:
    """Run ansible-playbook to its end; its exit code."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    environment.update(ANSIBLE_CONFIG=str(HERE / "ansible.cfg"), ANSIBLE_HOME=str(work / "ansible"), LC_ALL="C.UTF-8")
    facts = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "ansible_remote_tmp": str(work / "ansible" / "remote"),
        "demo_vm": guest.name,
        "demo_pid": guest.pid,
        "demo_block": BLOCK,
        "demo_save_dir": str(work / "save"),
        "demo_guest": [sys.executable, str(HERE.parent / "tests" / "guests" / "counter_guest.py")],
        "demo_workdir": str(guest.workdir),
    }
    ansible_playbook = str(Path(sys.executable).with_name("ansible-playbook"))
    command = [ansible_playbook, "-i", "localhost,", "-e", json.dumps(facts), str(HERE / "demo.yml")]
    playbook = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
    while True:
        # QEMU too is a child of this process, and counts as running until it is collected.
        pid, status = os.wait()
        if pid == playbook.pid:
            playbook.returncode = os.waitstatus_to_exitcode(status)
            return playbook.returncode


def main() -> int:
    """Run the demo; the exit code is 0 only if the guest went on exactly where it was saved."""
    for number in SIGNALS:
        signal.signal(number, stop_on_signal)
    adopt_orphans()
    started = time.monotonic()
    # Not in the tree: a recorded command is run only from a directory that nobody else can write to.
    directory = tempfile.TemporaryDirectory(prefix="vmops-demo-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    try:
        guest = CounterGuest(Path(directory.name, "vm"), f"demo{os.getpid()}", memory_mib=MEMORY, block_mib=BLOCK)
        print(f"Starting the VM {guest.name}: {MEMORY} MiB of memory, of which its guest fills {BLOCK} MiB", flush=True)
        guest.start()
        code = run_playbook(Path(directory.name), guest)
    except GuestError as error:
        print(f"demo: {error}", file=sys.stderr)
        code = 1
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        end_children(time.monotonic() + CLEAN_UP_SECONDS)
        directory.cleanup()
    verdict = "the guest went on exactly where it was saved" if code == 0 else "FAILED"
    print(f"demo: {verdict} ({time.monotonic() - started:.0f} s; the VM and its files are gone)")
    return code


if __name__ == "__main__":
    sys.exit(main())
