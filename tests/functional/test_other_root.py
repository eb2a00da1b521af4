# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A monitor in a mount namespace of the VM's own is reached, and no other VM's in its place."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import find_processes

from support.observe import OTHER_VM, VM, wait_until

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0,
    reason="only root can make namespaces",
)

QEMU = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-S", "-m", "16"]


@pytest.fixture
def start_inside(tmp_path):
    """Start a QEMU in a mount namespace of its own, in which the directory ``run`` is another one."""
    started = []
    (tmp_path / "run").mkdir()

    def start(*words, prepare="mount -t tmpfs -o mode=700 tests run", options=()):
        script = f"cd {shlex.quote(str(tmp_path))} && {prepare} && exec {shlex.join([*QEMU, '-name', VM, *words])}"
        started.append(subprocess.Popen(["unshare", "-m", *options, "sh", "-c", script]))
        wait_until(lambda: find_processes(VM))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def info(run_module):
    def run():
        (vm,) = run_module("qemu_vm_info", name=[VM])["vms"]
        return vm

    return run


@pytest.mark.parametrize(
    ("name", "prepare"),
    [
        ("qmp.sock", "mount -t tmpfs tests run"),
        ("vm/qmp.sock", "mount -t tmpfs tests run && mkdir run/real && ln -s ../run/./real run/vm"),
        ("vm/qmp.sock", 'mount -t tmpfs tests run && mkdir run/real && ln -s "$PWD/run/real" run/vm'),
    ],
    ids=["plain", "relative-link", "absolute-link"],
)
def test_monitor_in_a_mount_namespace(start_inside, info, save, run_module, image, tmp_path, name, prepare):
    start_inside("-qmp", f"unix:{tmp_path}/run/{name},server=on,wait=off", prepare=prepare)
    assert not (tmp_path / "run" / name).exists()
    wait_until(lambda: info()["monitor"] == "answers")
    assert info()["qmp_socket"] == f"{tmp_path}/run/{name}"
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "NotRestorableError", "it was asked, and its namespace is what is wrong"
    assert save(name=VM, path=str(image), require_restorable=False, after_save="resume")["changed"]


@pytest.mark.parametrize("option", ["-qmp", "-monitor"])
def test_port_in_a_network_namespace_is_not_reached(start_inside, info, run_module, image, option):
    start_inside(option, "tcp:127.0.0.1:4444,server=on,wait=off", prepare="ip link set lo up", options=["-n"])
    wait_until(lambda: "network namespace of its own" in info()["reason"], timeout=30)
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "MonitorMissingError"
    assert "-qmp unix:" in result["cure"]


@pytest.fixture
def in_its_namespace(start_module):
    """Run a module where a process sees its files from, but with the namespace's own root directory."""

    def run(process, module, **options):
        prefix = ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "--"]
        return start_module(module, prefix=prefix, **options).result()

    return run


#: Makes a root directory with all that QEMU needs; that of a bind mount has the inode of ours.
ROOTS = {
    "bind": "mount --rbind / root",
    "directory": """
        mount -t tmpfs tests root
        for each in /*; do
            if [ -L "$each" ]; then cp -a "$each" root/
            elif [ -d "$each" ]; then mkdir "root$each" && mount --rbind "$each" "root$each"; fi
        done
    """,
}


@pytest.fixture
def start_below_root(start_inside, tmp_path):
    """Start a QEMU with such a root directory, in which the directory ``run`` is another one; its socket is in that."""

    def start(root):
        path = tmp_path / "run" / "qmp.sock"
        qemu = shlex.join([*QEMU, "-name", VM, "-qmp", f"unix:{path},server=on,wait=off"])
        prepare = f"mkdir root && {ROOTS[root].strip()}\nmount -t tmpfs tests root$PWD/run && exec chroot root {qemu}"
        process = start_inside(prepare=prepare)
        assert os.readlink(f"/proc/{process.pid}/root") == str(tmp_path / "root")
        wait_until(lambda: os.path.exists(f"/proc/{process.pid}/root{path}"))
        return process, path

    return start


@pytest.fixture
def saved_beside(start_module, image):
    """Save with the files that a process's mount namespace has, but below the root directory of that."""

    def run(process):
        prefix = ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "--"]
        options = {"require_restorable": False, "after_save": "resume"}
        result = start_module("qemu_save", name=VM, path=str(image), prefix=prefix, **options).result()
        assert not result.get("failed"), result["msg"]
        return result

    return run


@pytest.mark.parametrize("is_taken", [False, True], ids=["free", "taken"])
@pytest.mark.parametrize("root", ROOTS)
def test_socket_below_a_root_of_its_own(start_below_root, saved_beside, root, is_taken):
    """It has its name there, whatever is at that path here."""
    process, path = start_below_root(root)
    with socket.socket(socket.AF_UNIX) as other:
        if is_taken:
            other.bind(str(path))
            other.listen()
        result = saved_beside(process)
    assert "lost its name" not in str(result.get("warnings"))


@pytest.mark.parametrize("root", ROOTS)
def test_socket_that_is_gone_below_a_root_of_its_own(start_below_root, saved_beside, root):
    process, path = start_below_root(root)
    os.unlink(f"/proc/{process.pid}/root{path}")
    assert "lost its name" in str(saved_beside(process)["warnings"])


def test_socket_that_is_gone(start_inside, info, tmp_path):
    """As one that has lost its name, it is reached all the same."""
    process = start_inside("-qmp", f"unix:{tmp_path}/run/qmp.sock,server=on,wait=off")
    wait_until(lambda: info()["monitor"] == "answers")
    enter = ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "--"]
    subprocess.run([*enter, "rm", str(tmp_path / "run" / "qmp.sock")], check=True)
    assert (info()["monitor"], info()["pid"]) == ("answers", process.pid)


def test_socket_of_another_vm_is_not_taken(start_inside, start_paused, info, run_module, image, tmp_path):
    """Its path leads to the socket of a VM on the host; its own socket, without a name now, is reached all the same."""
    other = start_paused(name=OTHER_VM)
    link = f"rm -f run/qmp.sock && ln -s {other.qmp_socket} run/qmp.sock"
    process = start_inside("-qmp", f"unix:{tmp_path}/run/qmp.sock,server=on,wait=off")
    wait_until(lambda: info()["monitor"] == "answers")
    enter = ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "--"]
    subprocess.run([*enter, "sh", "-c", f"cd {tmp_path} && {link}"], check=True)
    vm = info()
    assert (vm["monitor"], vm["name"], vm["pid"]) == ("answers", VM, process.pid)
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "NotRestorableError", "its mount namespace"
    assert VM in result["msg"]
    assert other.execute("query-status")["status"] == "prelaunch"
