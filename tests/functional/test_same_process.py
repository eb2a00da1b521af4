# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Does the QEMU of a restored VM run where the saved one ran, with what it had, and write where it wrote?"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from support.observe import VM, Continuity, wait_until

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make namespaces")

LIMITS = ("core file size", "open files", "locked memory", "address space", "stack size", "file size")


@pytest.fixture
def start_by(make_guest):
    """Start a guest by somebody else, whose output goes nowhere: ``start_by(["taskset", "-c", "0"])``."""
    starters = []

    def start(prefix=(), options=("-nic", "none"), output=subprocess.DEVNULL, **facts):
        guest = make_guest(start=False, extra_args=options, **facts)
        guest.prepare()
        command = [*prefix, *guest.argv()]
        starters.append(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=guest.workdir,
                start_new_session=True,
            )
        )
        guest.wait_restarted()
        guest.wait_for_counter()
        return guest

    yield start
    for starter in starters:
        starter.kill()
        starter.wait()


@dataclasses.dataclass(frozen=True)
class Standing:
    """What the kernel says of a process, of which a restore is to make the same."""

    cpus: frozenset[int]
    policy: tuple[int, int]
    nice: int
    io: str
    oom_score: str
    limits: tuple[str, ...]
    umask: str
    user: str
    network: str

    @classmethod
    def of(cls, pid: int) -> Standing:
        status = dict(re.findall(r"^(\w+):[ \t]*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        io = subprocess.run(["ionice", "-p", str(pid)], check=True, stdout=subprocess.PIPE, text=True).stdout
        return cls(
            frozenset(os.sched_getaffinity(pid)),
            (os.sched_getscheduler(pid), os.sched_getparam(pid).sched_priority),
            os.getpriority(os.PRIO_PROCESS, pid),
            io,
            Path(f"/proc/{pid}/oom_score_adj").read_text(),
            tuple(line for line in limits if line.startswith(tuple(f"Max {name}" for name in LIMITS))),
            status["Umask"],
            status["Uid"] + status["Gid"] + status["Groups"],
            os.readlink(f"/proc/{pid}/ns/net"),
        )


def threads_of(guest):
    """How each thread with a name of its own runs."""
    found = {f"cpu {entry['cpu-index']}": entry["thread-id"] for entry in guest.qmp("query-cpus-fast")}
    found.update({entry["id"]: entry["thread-id"] for entry in guest.qmp("query-iothreads")})
    return {name: (os.sched_getaffinity(tid), os.getpriority(os.PRIO_PROCESS, tid)) for name, tid in found.items()}


def check_same(guest, image, save, restore, times=2):
    """Saved and restored, it is as before, and so is its next save."""
    continuity = Continuity(guest)
    before = Standing.of(guest.pid)
    for _time in range(times):
        saved = save(name=VM, path=str(image))
        kinds = {problem["kind"] for problem in saved["problems"]} - {"supervisor_unknown"}
        assert not kinds, saved["problems"]
        guest.wait_exit()
        restored = restore(name=VM, path=str(image))
        continuity.check()
        assert Standing.of(guest.pid) == before
        assert not restored.get("warnings")
    return restored


# --- what it may use ---


CPUS = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "prefix",
    [
        ["taskset", "-c", str(CPUS[-1])],
        ["nice", "-n", "7"],
        ["ionice", "-c", "2", "-n", "6"],
        ["ionice", "-c", "3"],
        ["chrt", "--batch", "0"],
        ["chrt", "--idle", "0"],
        pytest.param(["chrt", "--rr", "3"], marks=only_root),
        ["prlimit", "--memlock=1048576:2097152", "--core=0"],
        ["prlimit", "--nofile=777"],
        ["prlimit", "--fsize=1099511627776"],
        ["choom", "-n", "300", "--"],
    ],
    ids=" ".join,
)
def test_what_it_may_use(start_by, image, save, restore, prefix):
    guest = start_by(prefix)
    usual = Standing.of(os.getpid())
    assert Standing.of(guest.pid) != usual
    check_same(guest, image, save, restore, times=1)


def test_all_of_it_at_once(start_by, image, save, restore):
    """Twice, so that what a restore has given is seen by the next save as what others have."""
    taskset, limits = ["taskset", "-c", str(CPUS[0])], ["prlimit", "--nofile=1777:2777", "--stack=4194304:8388608"]
    prefix = [*taskset, *limits, "choom", "-n", "123", "--", "nice", "-n", "3", "ionice", "-c", "2", "-n", "7"]
    guest = start_by(["sh", "-c", 'umask 027; exec "$@"', "sh", *prefix])
    check_same(guest, image, save, restore)


@only_root
def test_what_another_users_may_use(start_by, image, save, restore, tmp_path):
    """Given by root, before it becomes that user."""
    uid, gid = 12345, 12346
    prefix = ["nice", "-n", "-9", "taskset", "-c", str(CPUS[0]), "setpriv", f"--reuid={uid}", f"--regid={gid}"]
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    code = 'chown -R "$0" . && chmod 755 . && exec "$@"'
    guest = start_by(["sh", "-c", code, f"{uid}:{gid}", *prefix, "--clear-groups", "--"])
    check_same(guest, image, save, restore)


def test_what_is_said_in_the_verdict(start_by, run_module):
    """Nothing: it is given again."""
    start_by(["nice", "-n", "7"])
    (vm,) = run_module("qemu_vm_info", name=VM)["vms"]
    assert {problem["kind"] for problem in vm["problems"]} <= {"supervisor_unknown"}


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU")
def test_virtual_cpus_and_io_threads_on_cpus_of_their_own(start_by, image, save, restore):
    options = ["-smp", "2", "-object", "iothread,id=io1", "-nic", "none"]
    guest = start_by(options=options)
    tids = {f"cpu {entry['cpu-index']}": entry["thread-id"] for entry in guest.qmp("query-cpus-fast")}
    (io,) = guest.qmp("query-iothreads")
    os.sched_setaffinity(tids["cpu 0"], {CPUS[0]})
    os.sched_setaffinity(tids["cpu 1"], {CPUS[1]})
    os.setpriority(os.PRIO_PROCESS, tids["cpu 1"], 14)
    os.sched_setaffinity(io["thread-id"], {CPUS[1]})
    before = threads_of(guest)
    assert before["cpu 1"] == ({CPUS[1]}, 14)
    check_same(guest, image, save, restore)
    assert threads_of(guest) == before


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU")
def test_virtual_cpu_of_a_qemu_that_waits_already(guest, image, save, restore):
    """As one does that an earlier run has started, and was killed before it came to its threads."""
    for entry in guest.qmp("query-cpus-fast"):
        os.sched_setaffinity(entry["thread-id"], {CPUS[1]})
    before = threads_of(guest)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.start(incoming=True)
    assert threads_of(guest) != before
    assert not restore(name=VM, path=str(image)).get("warnings")
    continuity.check()
    assert threads_of(guest) == before


def test_thread_that_has_no_name(start_by, image, save):
    """One of QEMU's own, that a later one has not: it is said."""
    guest = start_by()
    named = {entry["thread-id"] for entry in guest.qmp("query-cpus-fast")}
    # The first one that QEMU makes, which stays.
    tid = min(int(t) for t in os.listdir(f"/proc/{guest.pid}/task") if int(t) not in {guest.pid, *named})
    os.setpriority(os.PRIO_PROCESS, tid, 15)
    saved = save(name=VM, path=str(image))
    (problem,) = [problem for problem in saved["problems"] if problem["kind"] == "priority"]
    assert f"the thread {tid} " in problem["what"]
    assert not problem["blocks"]


@only_root
def test_what_cannot_be_given_costs_no_guest(start_by, image, save, start_module):
    """The tools are not there any more, and one limit only a mightier root could raise: the guest comes back."""
    guest = start_by(["taskset", "-c", str(CPUS[0]), "nice", "-n", "7", "prlimit", "--nofile=1777"])
    nice = Standing.of(guest.pid).nice
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    hide = 'for tool in taskset renice; do mount --bind /bin/false "$(command -v "$tool")"; done; exec "$@"'
    run = start_module("qemu_restore", name=VM, path=str(image), prefix=["unshare", "--mount", "sh", "-c", hide, "sh"])
    result = run.result()
    assert not result.get("failed"), result["msg"]
    continuity.check()
    said = str(result["warnings"])
    assert f"the CPUs {CPUS[0]} " in said
    assert f"the nice value {nice} " in said
    assert "open files" not in said
    assert Standing.of(guest.pid).nice == nice - 7


# --- its network namespace ---


@pytest.fixture
def netns():
    """A network namespace with a tap, and a file of its own for /etc."""
    name = f"vmops-{os.getpid()}-{os.urandom(2).hex()}"
    made = Path("/etc/netns", name)

    def make():
        subprocess.run(["ip", "netns", "add", name], check=True)

    def delete():
        subprocess.run(["ip", "netns", "delete", name], check=True)

    make()
    made.mkdir(parents=True)
    # What debootstrap leaves, too; ip binds it only where it is there.
    (made / "issue").write_text(f"{name}\n")
    yield name, make, delete
    shutil.rmtree(made)
    if name in os.listdir("/run/netns"):
        delete()


def inode_of(name):
    return f"net:[{os.stat(f'/run/netns/{name}').st_ino}]"


TAP = ("-netdev", "tap,id=n0,ifname=vmt0,script=no,downscript=no", "-device", "e1000,netdev=n0")


def check_tap(guest, name):
    """It is in the namespace, and QEMU holds its other end; there is none on the host."""
    carrier = ["ip", "netns", "exec", name, "sh", "-c", "ip link set vmt0 up; cat /sys/class/net/vmt0/carrier"]
    assert subprocess.run(carrier, check=True, stdout=subprocess.PIPE, text=True).stdout == "1\n"
    held = [path.read_text() for path in Path(f"/proc/{guest.pid}/fdinfo").iterdir()]
    assert any("iff:\tvmt0" in text for text in held)
    assert not os.path.exists("/sys/class/net/vmt0")


@only_root
@pytest.mark.parametrize("prefix", ["ip netns exec", "nsenter"])
def test_named_network_namespace(start_by, image, save, restore, netns, prefix):
    name, _make, _delete = netns
    words = ["ip", "netns", "exec", name] if prefix != "nsenter" else ["nsenter", f"--net=/run/netns/{name}"]
    guest = start_by(words, options=TAP)
    own_mounts = os.readlink(f"/proc/{guest.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    assert own_mounts == (prefix != "nsenter")
    check_tap(guest, name)
    check_same(guest, image, save, restore)
    assert os.readlink(f"/proc/{guest.pid}/ns/net") == inode_of(name)
    assert (os.readlink(f"/proc/{guest.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")) == own_mounts
    assert (name in Path(f"/proc/{guest.pid}/root/etc/issue").read_text()) == own_mounts
    check_tap(guest, name)


@only_root
def test_network_namespace_that_was_made_again(start_by, image, save, restore, run_module, netns):
    """As after a reboot: by its name. Without it nothing is started elsewhere."""
    name, make, delete = netns
    guest = start_by(["ip", "netns", "exec", name], options=TAP)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    delete()
    for check in (True, False):
        result = run_module("qemu_restore", name=VM, path=str(image), check=check)
        assert result["error"] == "LaunchError"
        assert name in result["msg"]
        assert f"ip netns add {name}" in result["cure"]
        assert image.exists()
    # What is no namespace, and what leads to that of the host.
    place = Path("/run/netns", name)
    for plant in (place.touch, lambda: place.symlink_to("/proc/1/ns/net")):
        plant()
        assert run_module("qemu_restore", name=VM, path=str(image))["error"] == "LaunchError"
        place.unlink()
    assert not guest.adopt_restarted()
    make()
    restore(name=VM, path=str(image))
    continuity.check()
    assert os.readlink(f"/proc/{guest.pid}/ns/net") == inode_of(name)
    check_tap(guest, name)


@only_root
def test_network_namespace_that_is_held_elsewhere(start_by, image, save, restore, tmp_path):
    """As container engines do it: any file on which it is mounted."""
    place = tmp_path / "held"
    place.touch()
    subprocess.run(["unshare", f"--net={place}", "true"], check=True)
    try:
        guest = start_by(["nsenter", f"--net={place}"], options=TAP)
        check_same(guest, image, save, restore)
        assert os.readlink(f"/proc/{guest.pid}/ns/net") == f"net:[{os.stat(place).st_ino}]"
        guest.end()
    finally:
        subprocess.run(["umount", str(place)], check=True)


@only_root
def test_vm_that_reaches_nothing(start_by, image, save, restore):
    """A namespace without a name is made anew for it, rather than that of the host be given to it."""
    guest = start_by(["unshare", "--net"])
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image))
    assert "network_namespace" not in {problem["kind"] for problem in saved["problems"]}
    restore(name=VM, path=str(image))
    continuity.check()
    assert os.readlink(f"/proc/{guest.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert len(Path(f"/proc/{guest.pid}/net/dev").read_text().splitlines()) == 3, "two lines of titles, and lo"


@only_root
def test_other_files_by_the_same_names(start_by, image, run_module, netns):
    """In a named network namespace, but with a mount that ip does not make: a path may be another file there."""
    name, _make, _delete = netns
    script = 'mount --bind /var/tmp /mnt; exec "$@"'
    guest = start_by(["ip", "netns", "exec", name, "sh", "-c", script, "sh"], options=TAP)
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "NotRestorableError"
    assert "mount_namespace" in {problem["kind"] for problem in result["problems"]}
    assert guest.alive()


@only_root
def test_what_the_host_mounts_later(start_by, image, run_module, netns, tmp_path):
    """Elsewhere it is of no matter; over a directory of the VM's it would be another file to the next QEMU."""
    name, _make, _delete = netns
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    guest = start_by(["ip", "netns", "exec", name], options=TAP)
    for place, refused in ((elsewhere, False), (guest.workdir, True)):
        subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
        try:
            result = run_module("qemu_save", name=VM, path=str(image), check=True)
            is_shared = f" {place} " in Path(f"/proc/{guest.pid}/mountinfo").read_text()
        finally:
            subprocess.run(["umount", str(place)], check=True)
        kinds = {problem["kind"] for problem in result["problems"]}
        assert ("mount_namespace" in kinds) == (refused and not is_shared)


# --- where it writes ---


def log_of_vm():
    return Path("/var/log/vmops.qemu" if os.geteuid() == 0 else "/nonexistent", f"{VM}.log")


def test_output_goes_on_where_it_went(start_by, image, save, restore, tmp_path):
    """What is there stays, and nothing grows beside the image."""
    place = tmp_path / "console.log"
    place.write_text("earlier\n")
    with place.open("ab") as output:
        guest = start_by(output=output, options=["-serial", "stdio", "-nic", "none"])
    check_same(guest, image, save, restore)
    for number in (1, 2):
        assert os.readlink(f"/proc/{guest.pid}/fd/{number}") == str(place)
        flags = re.findall(r"flags:\t(\d+)", Path(f"/proc/{guest.pid}/fdinfo/{number}").read_text())
        assert int(flags[0], 8) & os.O_APPEND
    assert place.read_text().startswith("earlier\n")
    assert list(image.parent.iterdir()) == []


PLANTS = {
    "link": lambda place, victim: place.symlink_to(victim),
    "second-name": lambda place, victim: os.link(victim, place),
    "fifo": lambda place, _victim: os.mkfifo(place),
    "directory": lambda place, _victim: place.mkdir(),
    "others-can-write": lambda place, _victim: (place.touch(), place.chmod(0o666)),
    "nothing": lambda _place, _victim: None,
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_what_is_in_the_place_of_its_output(start_by, image, save, restore, tmp_path, plant):
    """It is not written to, and the guest comes back."""
    place, victim = tmp_path / "console.log", tmp_path / "victim"
    with place.open("ab") as output:
        guest = start_by(output=output)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    victim.write_text("precious\n")
    place.unlink()
    plant(place, victim)
    restore(name=VM, path=str(image))
    continuity.check()
    assert os.readlink(f"/proc/{guest.pid}/fd/1").startswith("pipe:")
    assert victim.read_text() == "precious\n"


def test_console_on_stdout_without_an_end(start_by, image, save, restore):
    """Written to a terminal that is gone: its beginning is in a log, and QEMU never waits for a reader."""
    guest = start_by(options=["-serial", "stdio", "-device", "virtio-serial", "-nic", "none"])
    check_same(guest, image, save, restore)
    assert list(image.parent.iterdir()) == []
    output = os.readlink(f"/proc/{guest.pid}/fd/1")
    assert output.startswith("pipe:")
    # As QEMU's own end of it: what it writes there is taken, however much it is.
    with open(f"/proc/{guest.pid}/fd/1", "wb", buffering=0) as console:
        writer = threading.Thread(target=lambda: [console.write(b"x" * 2**16) for _time in range(64)], daemon=True)
        writer.start()
        writer.join(20)
        assert not writer.is_alive()
    if os.geteuid() == 0:
        assert log_of_vm().stat().st_size == 2**20
        assert log_of_vm().stat().st_mode & 0o777 == 0o600
    Continuity(guest).check()
    guest.end()
    if os.geteuid() == 0:
        log_of_vm().unlink()


def test_what_an_earlier_version_began_beside_the_image_grows_no_more(start_by, image, save, restore):
    log = Path(f"{image}.log")
    with log.open("ab") as output:
        guest = start_by(output=output)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    continuity.check()
    assert os.readlink(f"/proc/{guest.pid}/fd/2").startswith("pipe:")


def test_console_of_a_configuration_file_keeps_its_history(start_by, image, save, restore, tmp_path):
    """By -readconfig, as Proxmox and Incus do it; twice, and each time what it said since."""
    console, copy = tmp_path / "console", tmp_path / "copy"
    configuration = tmp_path / "vm.conf"
    configuration.write_text(
        f'[chardev "c0"]\n  backend = "file"\n  path = "{console}"\n'
        f'[chardev "c1"]\n  backend = "null"\n  logfile = "{copy}"\n'
        '[device "s0"]\n  driver = "isa-serial"\n  chardev = "c0"\n  index = "2"\n'
        '[device "s1"]\n  driver = "isa-serial"\n  chardev = "c1"\n  index = "3"\n'
    )
    guest = start_by(options=["-readconfig", str(configuration), "-nic", "none"])
    console.write_text("what it had said\n")
    copy.write_text("and this\n")
    check_same(guest, image, save, restore)
    wait_until(console.exists)
    assert console.read_text().startswith("what it had said\n")
    assert copy.read_text().startswith("and this\n")
    words = Path(f"/proc/{guest.pid}/cmdline").read_text().split("\0")
    assert words.count("-set") == 2
