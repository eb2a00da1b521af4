# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs whose name, monitor and machine are in a file that -readconfig names, and that file as QEMU itself reads it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import parse_configuration_file
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import find_processes, read_process

from support import CounterGuest
from support.observe import VM, Continuity, wait_until
from support.process import read_argv

QEMU = "qemu-system-x86_64"


class FileGuest(CounterGuest):
    """A counter guest of which all but its disk and serial port is in a file."""

    def argv(self, incoming: Union[bool, str] = False) -> list[str]:
        argv = super().argv(incoming)
        for option in ("-name", "-qmp", "-machine", "-m"):
            place = argv.index(option)
            del argv[place : place + 2]
        return [*argv, "-readconfig", "vm.cfg"]

    def prepare(self) -> None:
        super().prepare()
        (self.workdir / "vm.cfg").write_text(
            f"""# what this VM is
[name]
  guest = "{self.name}"
[machine]
  type = "{self.machine}"
[memory]
  size = "{self.memory_mib}M"
[chardev "monitor"]
  backend = "socket"
  path = "{self.qmp_socket}"
  server = "on"
  wait = "off"
[mon "control"]
  chardev = "monitor"
  mode = "control"
[device "rng"]
  driver = "virtio-rng-pci"
[device "rp1"]
  driver = "pcie-root-port"
"""
        )

    def adopt_restarted(self) -> bool:
        for entry in os.listdir("/proc"):
            if not self.alive() and entry.isdigit() and self._is_ours(int(entry)):
                self.adopt(int(entry))
        return self.alive()

    def _is_ours(self, pid: int) -> bool:
        argv = read_argv(pid)
        return "vm.cfg" in argv and any(str(self.boot_image) in word for word in argv)


@pytest.fixture
def file_guest(tmp_path: Path) -> Any:
    guest = FileGuest(tmp_path / "guest", VM, block_mib=8, machine="q35")
    guest.start()
    yield guest
    guest.adopt_restarted()
    guest.close()


def test_vm_whose_name_and_monitor_are_in_a_file(
    file_guest: FileGuest,
    save: Callable[..., Any],
    restore: Callable[..., Any],
    run_module: Callable[..., Any],
    image: Path,
) -> None:
    (found,) = [vm for vm in run_module("qemu_vm_info")["vms"] if vm["name"] == VM]
    assert (found["monitor"], found["launch"]["how"], found["reason"]) == ("answers", "command", "")
    assert (found["memory"], found["qmp_socket"]) == (file_guest.memory_mib << 20, str(file_guest.qmp_socket))
    continuity = Continuity(file_guest)
    saved = save(name=VM, path=str(image))
    assert saved["launch"]["how"] == "command"
    assert not save(name=VM, path=str(image))["changed"]
    file_guest.wait_exit()
    restored = restore(path=str(image))
    assert restored["changed"]
    continuity.check()
    assert save(name=VM, path=str(image))["changed"]


def test_file_that_is_gone(file_guest: FileGuest, save: Callable[..., Any], image: Path) -> None:
    (file_guest.workdir / "vm.cfg").unlink()
    options = {"path": str(image), "after_save": "resume", "require_restorable": False}
    saved = save(qmp_socket=str(file_guest.qmp_socket), **options)
    assert saved["vm"]["pid"] == file_guest.pid
    assert saved["launch"]["how"] == "none"
    assert "vm.cfg could not be read" in saved["launch"]["reason"]


def test_device_that_was_plugged_in_beside_a_file(file_guest: FileGuest, save: Callable[..., Any], image: Path) -> None:
    assert file_guest.qmp("human-monitor-command", {"command-line": "device_add e1000e,bus=rp1"}) == ""
    saved = save(name=VM, path=str(image), after_save="resume", require_restorable=False)
    assert saved["launch"]["how"] == "none"
    assert "e1000e" in saved["launch"]["reason"]


# --- the file as QEMU reads it ---


def qemu_reads(path: Path) -> Union[list[str], None]:
    """The names of the devices with an id that QEMU makes of the file, or None where it refuses the file."""
    commands = ("qmp_capabilities", "qom-list", "quit")
    lines = [
        {"execute": name, **({"arguments": {"path": "/machine/peripheral"}} if name == "qom-list" else {})}
        for name in commands
    ]
    options = ["-machine", "pc", "-accel", "tcg", "-S", "-display", "none", "-nodefaults", "-qmp", "stdio"]
    run = subprocess.run(
        [QEMU, *options, "-readconfig", str(path)],
        check=False,
        input="".join(json.dumps(line) for line in lines),
        capture_output=True,
        text=True,
    )
    if run.returncode:
        return None
    answer = json.loads(run.stdout.splitlines()[2])
    return sorted(item["name"] for item in answer["return"] if item["name"] != "type")


GOOD = '[device "d"]\n driver = "virtio-rng-pci"\n'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"# comment\n\n{GOOD}",
        '[device]\ndriver = "virtio-rng-pci"\nid = "inside"\n',
        '[device "first"]\ndriver = "virtio-rng-pci"\nid = "inside"\n',
        '[device "a" ] # x\ndriver   =\t"virtio-rng-pci" # x\n[device   "b"\ndriver ="virtio-rng-pci"',
        f'[device "{"d" * 70}"]\ndriver = "virtio-rng-pci"\n',
        '[device "d"]\r\n driver = "virtio-rng-pci"\r\n',
        f" # no comment\n{GOOD}",
        f"{GOOD} \n",
        f"{GOOD}\r\n",
        f" {GOOD}",
        f"\0\n{GOOD}",
    ],
)
def test_qemu_reads_it_the_same_way(text: str, tmp_path: Path) -> None:
    path = tmp_path / "vm.cfg"
    path.write_bytes(text.encode())
    try:
        settings = parse_configuration_file(text.encode(), "vm.cfg")
    except ValueError:
        ids = None
    else:
        ids = sorted(setting.keys["id"] for setting in settings)
    assert ids == qemu_reads(path)


# --- what other users' processes say of themselves ---


def test_file_of_another_mount_namespace(tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    for name in ("host", "inside"):
        (tmp_path / f"{name}.cfg").write_text(f'[name]\nguest = "{name}-{VM}"\n')
    time.sleep(0.2)
    qemu = f"{QEMU} -machine none -nodefaults -display none -readconfig host.cfg"
    # Only there has the file this content.
    script = f"mount --bind inside.cfg host.cfg && exec {qemu}"
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", script], cwd=tmp_path)
    try:
        wait_until(lambda: found_name(process.pid) is not None)
        assert found_name(process.pid) == f"inside-{VM}"
        assert [running.pid for running in find_processes(f"inside-{VM}")] == [process.pid]
        assert find_processes(f"host-{VM}") == []
    finally:
        process.kill()
        process.wait()


def found_name(pid: int) -> Union[str, None]:
    """The name of the QEMU of that process id; None where it is none (yet)."""
    running = read_process(pid)
    return running.name if running else None


def test_processes_that_only_call_themselves_qemu(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 1 << 40)
    (tmp_path / "loop").symlink_to("loop")
    names = ("fifo", "huge", "loop", "/dev/zero", "/dev/tty", "/proc/kmsg", "/dev/fd/0", "/proc/self/environ")
    program = shutil.copy("/bin/sh", tmp_path / QEMU)
    processes = [
        subprocess.Popen([QEMU, "-c", "read x", "-readconfig", name], executable=program,
                         stdin=subprocess.PIPE, cwd=tmp_path)
        for name in names
    ]  # fmt: skip
    try:
        wait_until(lambda: all(read_process(process.pid) for process in processes))
        started = time.monotonic()
        for process in processes:
            found = read_process(process.pid)
            assert found is not None
            assert len(found.configuration.unknown) == 1
            assert found.name == ""
        assert time.monotonic() - started < 1
    finally:
        for process in processes:
            process.kill()
            process.communicate()
