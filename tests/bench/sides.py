# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who saves and restores a guest: our modules, QEMU by bare QMP, virsh. Each call returns when the thing is done."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import CounterGuest, Monitor
from support.guest import COLLECTIONS
from support.libvirt import LibvirtGuest

_MODULES = "ansible_collections.vmops.qemu.plugins.modules"
_POLL = 0.05  # seconds between two looks at a module's peak memory
_QMP_TIMEOUT = 600.0  # seconds


def run_module(module: str, **options: Any) -> tuple[dict[str, Any], int]:
    """A module as a whole process: its result, and the peak of its memory in KiB as it was last seen."""
    with tempfile.TemporaryFile("w+") as arguments, tempfile.TemporaryFile("w+") as output:
        json.dump({"ANSIBLE_MODULE_ARGS": options}, arguments)
        arguments.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", f"{_MODULES}.{module}"],
            stdin=arguments,
            stdout=output,
            env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
        )
        peak = 0
        pidfd = os.pidfd_open(process.pid)  # Popen.wait() with a timeout sees the end up to 50 ms late
        try:
            while not select.select([pidfd], [], [], _POLL)[0]:
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):  # a zombie has none
                        peak = int(line.split()[1])
        finally:
            os.close(pidfd)
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        result: dict[str, Any] = json.loads(output.read())
    if result.get("failed"):
        raise RuntimeError(f"{module}: {result['msg']}")
    return result, peak


class Side:
    """One way to save and restore, with what it tells beside the time."""

    def __init__(self, name: str, guest: CounterGuest) -> None:
        self.name = name
        self.guest = guest
        self.pause: float | None = None
        self.peak_kib = 0

    def warm(self) -> None:
        """Have its programs in the page cache, as on a host that has used them before."""
        subprocess.run([self.guest.qemu, "--version"], stdout=subprocess.DEVNULL, check=True)

    def save(self, image: Path) -> None:
        """Until the image is written; the guest's QEMU may still be ending."""
        raise NotImplementedError

    def restore(self, image: Path) -> None:
        """Until the guest runs; the image stays."""
        raise NotImplementedError


class Module(Side):
    """qemu_save and qemu_restore."""

    def __init__(self, name: str, guest: CounterGuest, save: dict[str, Any], restore: dict[str, Any]) -> None:
        super().__init__(f"vmops {name}", guest)
        self._save, self._restore = save, restore

    def warm(self) -> None:
        super().warm()
        imports = "; ".join(f"import {_MODULES}.{module}" for module in ("qemu_save", "qemu_restore"))
        environment = {**os.environ, "PYTHONPATH": str(COLLECTIONS)}
        subprocess.run([sys.executable, "-c", imports], env=environment, check=True)

    def save(self, image: Path) -> None:
        result, peak = run_module("qemu_save", name=self.guest.name, path=str(image), **self._save)
        self.peak_kib = max(self.peak_kib, peak)
        self.pause = result["pause_ms"] / 1000 if self._save.get("live") else None

    def restore(self, image: Path) -> None:
        options = {"remove_image": False, **self._restore}
        _result, peak = run_module("qemu_restore", name=self.guest.name, path=str(image), **options)
        self.peak_kib = max(self.peak_kib, peak)


class Bare(Side):
    """QEMU alone, by QMP: sparse, with O_DIRECT."""

    def __init__(self, guest: CounterGuest, channels: int) -> None:
        super().__init__(f"QMP sparse, O_DIRECT, {channels} channels", guest)
        self._channels = channels

    def _prepare(self, monitor: Monitor) -> None:
        names = ("mapped-ram", "multifd")
        capabilities = [{"capability": name, "state": True} for name in names]
        monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
        parameters = {"multifd-channels": self._channels, "direct-io": True, "max-bandwidth": 1 << 60}
        monitor.execute("migrate-set-parameters", parameters)

    def _wait(self, monitor: Monitor) -> None:
        while True:
            info = monitor.execute("query-migrate")
            if info.get("status") == "completed":
                return
            if info.get("status") in ("failed", "cancelled"):
                raise RuntimeError(f"QEMU: {info}")
            time.sleep(0.005)

    def save(self, image: Path) -> None:
        with Monitor(self.guest.qmp_socket, _QMP_TIMEOUT) as monitor:
            self._prepare(monitor)
            monitor.execute("stop")
            monitor.execute("migrate", {"uri": f"file:{image}"})
            self._wait(monitor)
            monitor.execute("quit")

    def restore(self, image: Path) -> None:
        self.guest.start(incoming=True)
        with Monitor(self.guest.qmp_socket, _QMP_TIMEOUT) as monitor:
            self._prepare(monitor)
            monitor.execute("migrate-incoming", {"uri": f"file:{image}"})
            self._wait(monitor)
            monitor.execute("cont")
            # Left on, they would be in the way of the next save.
            capabilities = [{"capability": name, "state": False} for name in ("mapped-ram", "multifd")]
            monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
            monitor.execute("migrate-set-parameters", {"direct-io": False})


class Virsh(Side):
    """virsh save and restore."""

    def __init__(self, name: str, guest: LibvirtGuest, save: list[str], restore: list[str]) -> None:
        super().__init__(f"virsh {name}", guest)
        self._virsh: Callable[..., str] = guest.libvirt.virsh
        self._save, self._restore = save, restore

    def warm(self) -> None:
        super().warm()
        self._virsh("list")

    def save(self, image: Path) -> None:
        self._virsh("save", self.guest.name, image, *self._save)

    def restore(self, image: Path) -> None:
        self._virsh("restore", image, *self._restore)
