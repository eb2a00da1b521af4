# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fault of QEMU's monitor at every step of a save and of a restore; then the same task runs again and must end right.

A run without a fault, through a proxy, gives the steps. Then the run is done again for each step and fault, with a real
QEMU and a real guest behind the proxy. ``MONITOR_FAULTS=all`` does every fault at every moment of every step of every
operation, which takes an hour; without it each step of a sparse save and of a restore meets faults of two kinds, and
the other operations meet some, chosen by ``MONITOR_SEED``. ``MONITOR_OPERATIONS`` names some operations, with commas
between.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings

from support import CounterGuest, GuestError, MonitorError, find_qemu_pids, gaps, listening_wrapper
from support.monitor_proxy import AFTER, BEFORE, FAULTS, Fault, MonitorProxy, Step
from support.observe import VM, Continuity, run_state, settings, wait_until, words
from support.preloaded import PreloadedModules

ALL = os.environ.get("MONITOR_FAULTS") == "all"
SEED = int(os.environ.get("MONITOR_SEED") or 1)

#: How many faults the operations meet that are not done thoroughly, and how many kinds each step of the others.
SAMPLE = 6
KINDS_EACH = 2

#: Each has a guest of its own; they wait more than they work.
WORKERS = 4

#: The product's patience, in seconds, cut down for the runs that meet a fault.
SHORT = {
    "_qemu.monitor": {"COMMAND_TIMEOUT": 3.0, "GREETING_TIMEOUT": 1.0},
    "_qemu.migration": {"LOOK_INTERVAL": 0.5},
    "_qemu.session": {"QUIT_TIMEOUT": 2.0, "DISK_TIMEOUT": 2.0, "WAY_BACK_TIMEOUT": 2.0},
    "_qemu.greeting": {"LAUNCH_TIMEOUT": 3.0},
}

#: Seconds within which such a run ends: some of these times one after the other, on a busy machine.
BOUND = 20.0

#: The same with the product's own times, of which the longest is that for one answer (60 s). A QEMU that has done
#: something in the first of these, before it was frozen, is given a second one.
PATIENT_BOUND = 200.0

#: The kinds of faults, by what they have in common.
KINDS = (
    ("cut", "cut for good"),
    ("hang", "hang for good", "QEMU frozen"),
    ("QEMU killed",),
    ("error",),
    ("no JSON", "no UTF-8", "wrong type", "hollow"),
)

#: Commands to which an answer without anything in it is a proper one: it may be false, but nobody can see that.
EMPTY_IS_PROPER = ("query-migrate", "query-name")

ERRORS = {name for name, kind in vars(_errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}


@dataclasses.dataclass(frozen=True)
class Operation:
    """A run that meets the faults."""

    name: str
    module: str
    options: dict[str, Any]
    #: The options of the run after it, where they are not the same.
    again: Optional[dict[str, Any]] = None
    #: A fault that it always meets; the others follow it, as it is rolled back.
    first_faults: tuple[Fault, ...] = ()
    #: Whether the module starts the QEMU, in a wrapper that stays beside it.
    launches: bool = False
    #: Whether each step meets a fault, also in a short run of the tests.
    thorough: bool = False


def refused(command: str, times: int = 1) -> tuple[Fault, ...]:
    return tuple(Fault(Step(command, number), BEFORE, "error") for number in range(1, times + 1))


ATTACH = {"launch": "attach"}

OPERATIONS = (
    Operation("save sparse", "qemu_save", {"format": "sparse"}, thorough=True),
    Operation("restore", "qemu_restore", ATTACH, thorough=True),
    Operation("save raw", "qemu_save", {"format": "raw"}),
    Operation("save zstd", "qemu_save", {"format": "zstd"}),
    Operation("save live", "qemu_save", {"live": True}),
    Operation("save and go on", "qemu_save", {"after_save": "resume"}),
    Operation("save that QEMU refuses", "qemu_save", {}, first_faults=refused("migrate")),
    Operation("save past its time", "qemu_save", {"bandwidth": "1M", "parallel_channels": 1, "timeout": 0.5}, again={}),
    Operation("restore with a QEMU of its own", "qemu_restore", {"launch": "command"}, launches=True),
    # The second time without exit-on-error.
    Operation("restore that QEMU refuses", "qemu_restore", ATTACH, first_faults=refused("migrate-incoming", times=2)),
    Operation("restore that is not prepared", "qemu_restore", ATTACH, first_faults=refused("stop")),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """How guest and image are after a run."""

    alive: bool
    #: QEMU's run state; empty where it has ended.
    run_state: str
    #: Whether the image is complete.
    complete: bool
    #: Whether QEMU's settings and fdsets are what they were.
    as_before: bool

    @property
    def runs(self) -> bool:
        return self.run_state == "running"


#: When each word for the guest is true. That it is not known may be said only where it cannot be.
GUEST: dict[str, Callable[[Found], bool]] = {
    "running": lambda found: found.runs,
    "paused": lambda found: found.alive and found.run_state not in ("running", "inmigrate"),
    "saved": lambda found: found.complete and found.run_state in ("", "inmigrate"),
    "ended": lambda found: not found.alive,
    "unknown": lambda found: True,
}

#: Which words for the image are true, by whether it is complete.
IMAGE = {True: ("complete", "kept"), False: ("absent", "removed")}

#: Commands by which a run learns what VM it is that answers; before their answers it knows nothing of the guest.
LOOKING = (
    "qmp_capabilities",
    "query-name",
    "query-uuid",
    "query-memory-size-summary",
    "query-memory-devices",
    "qom-get",
    "query-kvm",
    "query-status",
    "query-cpus-fast",
    "query-target",
)


class Stand:
    """One guest, its image, and what is done to them."""

    def __init__(self, scratch: Path, number: int, constants: dict[str, dict[str, float]], bound: float) -> None:
        """constants: for the runs that meet a fault; bound: seconds within which these must end."""
        self.constants = constants
        self.bound = bound
        self.name = f"{VM}-{number}"
        self.image = scratch / "save" / "web1.save"
        self.image.parent.mkdir(parents=True, mode=0o700)
        self.guest = CounterGuest(scratch / "guest", self.name, memory_mib=16, block_mib=4, line_ms=20, observer=True)
        self.modules = PreloadedModules()
        self.socket = self.guest.observer_socket.with_name("proxy.sock")
        self.boot()
        self.settings = settings(self.guest)
        self.succeed("qemu_save", after_save="resume")
        #: What an undisturbed save records of the guest's disks.
        self.media = self.recorded_media()
        self.image.unlink()
        #: Where the counter was set back: QEMU was killed when the guest had gone on, and its image was still there.
        self.set_back: list[tuple[int, int]] = []

    def close(self) -> None:
        self.guest.adopt_restarted()
        self.guest.close()
        self.modules.__exit__(None, None, None)

    # --- the ground of a case ---

    def boot(self) -> None:
        self.guest.serial_log.unlink(missing_ok=True)
        self.set_back = []
        self.guest.start()
        self.guest.wait_for_counter()

    def reset(self) -> None:
        """After a case that failed: nothing of it may be left."""
        self.guest.end()
        shutil.rmtree(self.image.parent)
        self.image.parent.mkdir(mode=0o700)
        self.boot()

    def ready(self, operation: Operation) -> None:
        """The guest runs, before a save; or it is in its image and a QEMU waits, before a restore."""
        module = operation.module
        runs = self.guest.adopt_restarted()
        if module == "qemu_save" and not runs:
            if self.image.exists():
                self.succeed("qemu_restore")
            else:
                self.boot()
        elif module == "qemu_restore":
            if not runs:
                # A run before it may have saved in another format.
                if not self.image.exists():
                    self.boot()
                    runs = True
                elif read_image_head(str(self.image)).header.format is not ImageFormat.SPARSE:
                    self.succeed("qemu_restore")
                    runs = self.guest.adopt_restarted()
            if runs:
                self.succeed("qemu_save")
                self.guest.wait_exit()
            if not operation.launches:
                self.guest.start(incoming=True)

    # --- runs ---

    def run(self, module: str, **options: Any) -> dict[str, Any]:
        """Run to the end, which must come by itself and in time."""
        self.modules.start(module, name=self.name, path=str(self.image), **options)
        watchdog = threading.Timer(self.bound, self.modules.send_signal, (signal.SIGKILL,))
        watchdog.start()
        try:
            result = self.modules.wait()
        finally:
            watchdog.cancel()
        assert result is not None, f"it had not ended after {self.bound:g} seconds"
        return result

    def succeed(self, module: str, **options: Any) -> dict[str, Any]:
        self.modules.constants = {}
        result = self.run(module, **options)
        assert not result.get("failed"), f"{module} again: {result['msg']} [{result.get('error')}]"
        return result

    def run_through_proxy(self, operation: Operation, faults: Sequence[Fault]) -> tuple[dict[str, Any], MonitorProxy]:
        self.modules.constants = self.constants
        options, handover = operation.options, None
        if operation.launches:
            handover = self.socket.with_name("handover.sock")
            wrapper = [sys.executable, listening_wrapper.__file__, str(self.socket), str(handover)]
            options = {**options, "command": [*wrapper, *self.guest.argv()]}
        with MonitorProxy(self.socket, self.guest.qmp_socket, self.qemu_pid, faults, handover) as proxy:
            return self.run(operation.module, qmp_socket=str(self.socket), **options), proxy

    def qemu_pid(self) -> int:
        for pid in find_qemu_pids(self.name):
            return pid
        raise ProcessLookupError("it has ended already")

    def record(self, operation: Operation) -> list[Step]:
        """The steps of an undisturbed run, from the first fault on that it always meets."""
        self.ready(operation)
        first = operation.first_faults
        result, proxy = self.run_through_proxy(operation, list(first))
        assert bool(result.get("failed")) == bool(first or operation.again is not None), result["msg"]
        self.converge(operation, proxy)
        return proxy.steps[proxy.steps.index(first[-1].step) + 1 if first else 0 :]

    # --- a case ---

    def case(self, operation: Operation, fault: Fault) -> str:
        """One fault, and the run after it; the outcome in a word."""
        self.ready(operation)
        result, proxy = self.run_through_proxy(operation, [*operation.first_faults, fault])
        reached = fault in proxy.done
        if result.get("failed"):
            self.check_error(result)
        found = self.look()
        assert found.alive or found.complete or fault.kind == "QEMU killed", f"the guest is lost: {result['msg']}"
        if not result.get("failed"):
            outcome = "success" if reached else "not reached"
            if operation.module == "qemu_save":
                assert self.recorded_media() == self.media, "success, but not all is recorded"
            if operation.module == "qemu_save" and "after_save" not in operation.options:
                assert found.complete, f"success, but {found}"
                self.guest.wait_exit()
            elif fault.kind != "QEMU killed":
                assert found.runs, f"success, but {found}"
        else:
            outcome = str(result["error"])
            # When QEMU is killed after the last answer, there is nobody left to see it.
            if fault.kind != "QEMU killed" or fault.moment != AFTER or fault.step != proxy.steps[-1]:
                self.check_words(operation, fault, result, found)
            if operation.module == "qemu_save" and result["guest"] != "unknown":
                assert self.leftovers() == set(), f"{result['msg']}"
        self.converge(operation, proxy)
        return outcome

    def check_error(self, result: dict[str, Any]) -> None:
        assert result.get("error") in ERRORS, result["msg"]
        assert result["guest_state"], f"no guest_state: {result['msg']}"
        assert result["cure"], f"no cure: {result['msg']}"
        assert "\n" not in result["msg"]

    def check_words(self, operation: Operation, fault: Fault, result: dict[str, Any], found: Found) -> None:
        """What is said of guest and image is so."""
        guest, image = words(result)
        # A frozen QEMU goes on when the run has ended, and does what it was told last.
        has_quit = (fault.kind, fault.step.command) == ("QEMU frozen", "quit") and GUEST["saved"](found)
        assert GUEST[guest](found) or (guest == "paused" and has_quit), f"it says {guest}, but {found}: {result['msg']}"
        assert image in IMAGE[found.complete], f"it says {image}, but {found}: {result['msg']}"
        if fault.kind == "error" and fault.step.command not in LOOKING:
            assert guest != "unknown", f"QEMU refused one command alone: {result['msg']}"
        lasting = fault.kind.endswith("for good") or fault.kind.startswith("QEMU")
        if operation.module == "qemu_save" and (guest, image) == ("running", "absent") and not lasting:
            assert found.as_before, result["msg"]

    def recorded_media(self) -> list[object]:
        """What the image records of its guest's disks, without what is another in each save."""
        facts = read_image_head(str(self.image)).domain().save_facts
        assert facts
        return [
            (medium.backend, medium.read_only, [(file.path, file.format, file.uncheckable) for file in medium.files])
            for medium in Surroundings.parse(facts.surroundings).media
        ]

    def look(self) -> Found:
        complete = self.image.exists() and self.image.read_bytes()[:16] == b"LibvirtQemudSave"
        try:
            return Found(True, run_state(self.guest), complete, settings(self.guest) == self.settings)
        except MonitorError as error:
            # One that is dying has closed its monitor already.
            with contextlib.suppress(GuestError):
                self.guest.wait_exit()
            assert not self.guest.adopt_restarted(), f"it cannot be looked at: {error}"
            return Found(False, "", complete, False)

    def is_checkpoint(self) -> bool:
        return self.image.exists() and read_image_head(str(self.image)).header.checkpoint

    def leftovers(self) -> set[str]:
        return set(os.listdir(self.image.parent)) - {self.image.name}

    def converge(self, operation: Operation, proxy: MonitorProxy) -> None:
        """The same task again, without proxy and fault."""
        options = operation.options if operation.again is None else operation.again
        killed = any(fault.kind == "QEMU killed" for fault in proxy.done)
        lost = not self.guest.adopt_restarted() and not self.image.exists()
        if operation.module == "qemu_save" and lost:
            assert killed, "the guest is lost"
            result = self.run("qemu_save", **options)
            assert result["error"] == "VmNotFoundError", result["msg"]
        elif operation.module == "qemu_save" and not self.guest.alive() and self.is_checkpoint():
            # Its guest may have gone on, so that this is not its state: the run must not say that it is saved.
            assert killed, "the guest is lost"
            result = self.run("qemu_save", **options)
            assert result["error"] == "VmNotFoundError", result["msg"]
            assert self.is_checkpoint(), "the checkpoint is lost"
            self.image.unlink()
        elif operation.module == "qemu_save":
            goes_on = options.get("after_save") == "resume"
            if goes_on and self.guest.alive() and self.image.exists():
                # Complete, and the guest may run: that it is to be replaced, only force may say.
                options = {**options, "force": True}
            self.succeed("qemu_save", **options)
            assert self.image.exists()
            if goes_on and self.guest.alive():
                self.image.unlink()
                self.check_running()
            else:
                self.guest.wait_exit()
                assert not self.guest.adopt_restarted(), "a QEMU runs beside the image"
        elif lost:
            assert killed, "the guest is lost"
        else:
            if operation.launches:
                options = {**options, "command": self.guest.argv()}
            elif self.image.exists() and not self.guest.alive():
                self.guest.start(incoming=True)
            self.succeed("qemu_restore", **options)
            assert not self.image.exists(), "the image is still there beside the guest"
            self.check_running(killed)
        assert self.leftovers() == set()

    def check_running(self, killed: bool = False) -> None:
        assert self.guest.adopt_restarted(), "no QEMU"
        assert settings(self.guest) == self.settings
        self.guest.wait_for_counter(self.guest.counters()[-1])
        found = gaps(self.guest.counters())
        if killed:
            self.set_back = found
        assert found == self.set_back
        assert self.guest.boots() == 1


Case = tuple[Operation, Fault]


def choose(operation: Operation, steps: Sequence[Step], choices: random.Random) -> list[Fault]:
    """The faults that an operation meets in this run of the tests."""
    each = KINDS_EACH if operation.thorough and not ALL else len(KINDS)
    groups = [
        [
            Fault(step, moment, kind)
            for kind in kinds
            for moment in FAULTS[kind]
            if not (kind == "hollow" and step.command in EMPTY_IS_PROPER)
        ]
        for step in steps
        for kinds in choices.sample(KINDS, each)
    ]
    if ALL:
        return [fault for group in groups for fault in group]
    if not operation.thorough:
        groups = choices.sample(groups, SAMPLE)
    return [choices.choice(group) for group in groups]


#: A fault that is waited for with the product's own patience: QEMU hangs in the middle of the save.
PATIENT_CASE = (OPERATIONS[0], Fault(Step("migrate", 1), AFTER, "QEMU frozen"))


class Workers:
    """They take saves and restores in turn, as the one leads to the other."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.lock = threading.Lock()
        self.queues = {
            module: collections.deque(case for case in cases if case[0].module == module)
            for module in ("qemu_save", "qemu_restore")
        }
        self.counts: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []

    def work(self, stand: Stand) -> None:
        while any(self.queues.values()):
            for queue in self.queues.values():
                with self.lock:
                    case = queue.popleft() if queue else None
                if case:
                    self.do(stand, *case)

    def do(self, stand: Stand, operation: Operation, fault: Fault) -> None:
        try:
            outcome = stand.case(operation, fault)
        except Exception as error:  # each case is told of, not the first one alone
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.problems.append(f"{operation.name}, {fault}: {error} [{place.name}, line {place.lineno}]")
            outcome = "PROBLEM"
            stand.reset()
        with self.lock:
            self.counts[f"{operation.name}: {outcome}"] += 1


@pytest.fixture
def stands(tmp_path: Path) -> Iterator[list[Stand]]:
    made: list[Stand] = []
    try:
        for number in range(WORKERS):
            made.append(Stand(tmp_path / str(number), number, SHORT, BOUND))
        made.append(Stand(tmp_path / "patient", WORKERS, {}, PATIENT_BOUND))
        yield made
    finally:
        for stand in made:
            stand.close()


@pytest.mark.slow
def test_faults_of_the_monitor(stands: list[Stand], capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    choices = random.Random(SEED)
    steps = {operation.name: stands[0].record(operation) for operation in OPERATIONS}
    wanted = os.environ.get("MONITOR_OPERATIONS")
    cases = [
        (operation, fault)
        for operation in OPERATIONS
        if not wanted or operation.name in wanted.split(",")
        for fault in choose(operation, steps[operation.name], choices)
    ]
    workers = Workers(cases)
    *busy, patient = stands
    threads = [threading.Thread(target=workers.work, args=(stand,)) for stand in busy]
    threads.append(threading.Thread(target=workers.do, args=(patient, *PATIENT_CASE)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with capsys.disabled():
        seconds = time.monotonic() - started
        number = sum(len(taken) for taken in steps.values())
        print(f"\nmonitor, seed {SEED}: {len(cases) + 1} faults at {number} steps in {seconds:.0f} s")
        print("\n".join(f"  {count:5d}  {what}" for what, count in sorted(workers.counts.items())))
    if workers.problems:
        pytest.fail("\n".join(workers.problems), pytrace=False)


def test_load_that_takes_longer_than_one_answer_may(
    make_guest: Callable[..., CounterGuest], image: Path, tmp_path: Path
) -> None:
    """While QEMU loads it answers nothing; as long as it is seen to read, that is no reason to end it."""
    guest = make_guest(observer=True)
    continuity = Continuity(guest)
    with PreloadedModules() as modules:
        modules.start("qemu_save", name=VM, path=str(image), format="raw")
        saved = modules.wait()
        assert saved
        assert not saved.get("failed"), saved["msg"]
        guest.wait_exit()
        guest.start(incoming=True)
        slow = ["-e", "trace=readv,preadv,pread64", "-e", "inject=readv,preadv,pread64:delay_exit=16000"]
        trace = ["strace", "-f", "-qq", "-o", os.devnull, *slow, "-p", str(guest.pid)]
        with subprocess.Popen(trace) as tracer:
            wait_until(lambda: "TracerPid:\t0" not in Path(f"/proc/{guest.pid}/status").read_text())
            modules.constants = {"_qemu.monitor": {"COMMAND_TIMEOUT": 1.5}}
            started = time.monotonic()
            modules.start("qemu_restore", name=VM, path=str(image), launch="attach")
            restored = modules.wait()
            seconds = time.monotonic() - started
            tracer.terminate()
        assert restored
        assert not restored.get("failed"), restored["msg"]
        assert seconds > 4, "it was not slow"
        continuity.check()
