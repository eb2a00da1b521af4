# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run cases in worker processes, and judge what each found."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Optional

from corpus.mutations import KINDS, Expect, Kind
from support.guest import COLLECTIONS

#: How many images are spoilt and looked at, and how many of ours a real QEMU is to load.
IMAGES = int(os.environ.get("CORPUS_IMAGES", "400"))
RESTORES = int(os.environ.get("CORPUS_RESTORES", "24"))
#: The same number makes the same cases again.
SEED = os.environ.get("CORPUS_SEED", "2026")

WORKER = Path(__file__).with_name("worker.py")

#: What a restore compares with the QEMU that shall load the image.
COMPARED = frozenset(("domain.name", "domain.uuid", "stream.machine", "stream.ram_blocks"))

#: The outcomes that are right, as the summary names them.
REFUSED, AT_LOADING, EXPANDING, HARMLESS = "refused", "refused at loading", "refused by the tool", "harmless"
DIGEST, SILENT = "found by the digest", "has no digest"
OUTCOMES = (REFUSED, AT_LOADING, EXPANDING, HARMLESS, DIGEST, SILENT)

Found = dict[str, Any]


def judge(kind: Kind, found: Found) -> tuple[str, str]:
    """The outcome, and what is wrong with it, or the empty string."""
    if "traceback" in found:
        return "wrong", found["traceback"]
    problems, info = found["problems"], found["info_problems"]
    if (found["state"] == "complete") is not (not info):
        return "wrong", f"info calls it {found['state']} with the problems {info}"
    if any(not text.strip() or "Traceback" in text for text in (*problems, *info)):
        return "wrong", f"a problem without a name: {problems} {info}"
    partial = found["state"] == "partial"
    if problems and not info:
        return "wrong", f"a restore finds {problems}, info finds nothing"
    if info and not problems and not found["restore"] and not found.get("digest"):
        return "wrong", f"info finds {info}, but a restore would begin"
    if problems or partial:
        if not found["restore"]:
            return "wrong", f"a restore would begin despite {problems}"
        return REFUSED, ""
    if found["restore"]:
        return REFUSED, ""
    if "facts_error" in found:
        return "wrong", f"a restore would begin, although {found['facts_error']}"
    return _judge_accepted(kind, found)


def _judge_accepted(kind: Kind, found: Found) -> tuple[str, str]:
    changed = set(found["changed"])
    if "expanded" in found and found["expanded"] != "same":
        if found["expanded"] == "broken":
            return EXPANDING, ""
        return "wrong", "the tool expands it to another stream and finds nothing wrong"
    if kind.expect is Expect.REFUSED:
        return "wrong", f"nothing is found (changed: {sorted(changed)})"
    if kind.expect is Expect.SILENT:
        if "digest" in found:
            return (DIGEST, "") if found["digest"] else ("wrong", "the digest finds nothing")
        return SILENT, ""
    if changed <= kind.may_change and (kind.why or not changed):
        return HARMLESS, ""
    if kind.expect is Expect.FITTING and changed <= kind.may_change | COMPARED:
        return AT_LOADING, ""
    return "wrong", f"not found, and it changed {sorted(changed - kind.may_change)}"


class Corpus:
    """The cases of a run and what came of them."""

    def __init__(self) -> None:
        self.counts: dict[str, collections.Counter[str]] = {kind.name: collections.Counter() for kind in KINDS}
        self.failures: list[str] = []
        self.slowest: tuple[float, Found] = (0.0, {})
        self.peak = 0
        self._kinds = {kind.name: kind for kind in KINDS}
        self._lock = threading.Lock()

    @property
    def total(self) -> collections.Counter[str]:
        """All kinds' outcomes together."""
        return sum(self.counts.values(), collections.Counter())

    def add(self, found: Found) -> None:
        """Judge what was found of a case."""
        outcome, wrong = judge(self._kinds[found["kind"]], found)
        with self._lock:
            self.counts[found["kind"]][outcome] += 1
            if wrong:
                self.failures.append(f"case {found['case']}, {found['kind']!r} of {found['image']}: {wrong}")
            self.slowest = max(self.slowest, (found.get("seconds", 0.0), found), key=lambda item: item[0])
            self.peak = max(self.peak, found.get("peak", 0))

    def run(self, configuration: Path, workers: int) -> None:
        """Do all cases of a configuration (see corpus.worker) in so many processes at a time."""
        threads = [
            threading.Thread(target=self._follow, args=(configuration, each, workers)) for each in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _follow(self, configuration: Path, first: int, step: int) -> None:
        """One worker, and another one from the next case on where it dies."""
        following: Optional[int] = first
        while following is not None:
            following = self._one_worker(configuration, following, step)

    def _one_worker(self, configuration: Path, first: int, step: int) -> Optional[int]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(COLLECTIONS),
            # Each thread's arena would count as 64 MiB of the address space that is limited.
            "MALLOC_ARENA_MAX": "1",
        }
        begun: Found = {}
        with subprocess.Popen(
            [sys.executable, str(WORKER), str(configuration), str(first), str(step)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            said: list[str] = []
            reader = threading.Thread(target=lambda: said.append(process.stderr.read()))  # type: ignore[union-attr]
            reader.start()
            for line in process.stdout:
                found = json.loads(line)
                if "begins" in found:
                    begun = found
                else:
                    begun = {}
                    self.add(found)
            reader.join()
        if process.returncode == 0 and not begun:
            return None
        how = signal.Signals(-process.returncode).name if process.returncode < 0 else f"code {process.returncode}"
        errors = "".join(said)[-2000:]
        if not begun:
            with self._lock:
                self.failures.append(f"a worker ended with {how}: {errors}")
            return None
        self.add({**begun, "traceback": f"the process ended with {how} {errors}"})
        return int(begun["case"]) + step

    def report(self) -> list[str]:
        """The table of the outcomes."""
        width = max(len(name) for name in self.counts)
        lines = [" " * width + "".join(f" {outcome:>20}" for outcome in OUTCOMES)]
        for name, counts in self.counts.items():
            lines.append(f"{name:{width}}" + "".join(f" {counts[outcome] or '':>20}" for outcome in OUTCOMES))
        total = self.total
        lines.append(f"{'all':{width}}" + "".join(f" {total[outcome]:>20}" for outcome in OUTCOMES))
        return lines

    def summary(self) -> str:
        """One line about all."""
        total = self.total
        outcomes = ", ".join(f"{total[outcome]} {outcome}" for outcome in OUTCOMES)
        seconds, found = self.slowest
        return (
            f"{sum(total.values())} mutated images: {outcomes}, {total['wrong']} wrong; the slowest took"
            f" {seconds:.1f} s of CPU ({found.get('kind')}), a process held at most {self.peak / 2**20:.0f} MiB"
        )
