# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a QEMU needs beside its disks to be started again: seen at the save; made again, or named, at the restore."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from support import find_qemu_pids, network
from support.observe import VM, Continuity, run_state, wait_until, words
from support.paused import make_disk
from support.versions import find_qemus

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")

ROM = Path("/usr/lib/ipxe/qemu/efi-e1000.rom")


@pytest.fixture
def volatile():
    """A directory on a tmpfs, in which a directory of the VM can be made."""
    if not os.path.ismount("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="vmops-needs-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


def problems(result, *kinds):
    return [problem for problem in result["problems"] if problem["kind"] in kinds]


def refused(run_module, image, kind, named):
    """The save is refused; its problem."""
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "NotRestorableError", result["msg"]
    (problem,) = [problem for problem in result["problems"] if problem["blocks"]]
    assert problem["kind"] == kind
    assert str(named) in problem["what"]
    assert words(result) == ("running", "absent")
    return problem


def not_restored(run_module, image, error, *named):
    """The restore is refused before a QEMU is started, also in check mode; the result."""
    for check in (True, False):
        result = run_module("qemu_restore", name=VM, path=str(image), check=check)
        assert result.get("error") == error, result["msg"]
        for text in named:
            assert str(text) in result["msg"]
        assert words(result) == ("saved", "kept")
        assert find_qemu_pids(VM) == []
    return result


# --- files ---


def secret(place):
    path = place / "secret"
    path.write_text("geheim")
    return path, ["-object", f"secret,id=s0,file={path}"]


def table(place):
    path = place / "text"
    path.write_text("hello")
    return path, ["-fw_cfg", f"name=opt/vmops,file={path}"]


def initrd(place):
    path = place / "loaded"
    path.write_bytes(bytes(512))
    return path, ["-device", f"loader,file={path},addr=0x3000000,force-raw=on"]


def rom_of_a_card(place):
    if not ROM.exists():
        pytest.skip("no ROMs of ipxe-qemu")
    path = Path(shutil.copy(ROM, place / "card.rom"))
    return path, ["-netdev", "user,id=n0", "-device", f"e1000,netdev=n0,romfile={path}"]


def firmware(place):
    path = Path(shutil.copy("/usr/share/seabios/bios-256k.bin", place / "bios.bin"))
    return path, ["-bios", str(path)]


@pytest.mark.parametrize("make", [secret, table, initrd, rom_of_a_card, firmware])
def test_file_that_is_not_there_any_more(make_guest, image, run_module, save, restore, tmp_path, make):
    path, arguments = make(tmp_path)
    guest = make_guest(extra_args=arguments)
    path.rename(tmp_path / "away")
    refused(run_module, image, "start_file_missing", path)
    (tmp_path / "away").rename(path)
    before = Continuity(guest)
    save(name=VM, path=str(image))
    path.rename(tmp_path / "away")
    not_restored(run_module, image, "LaunchError", path)
    (tmp_path / "away").rename(path)
    restore(name=VM, path=str(image))
    before.check()


def test_content_that_has_changed_is_all_the_same(make_guest, image, save, restore, tmp_path):
    """As a kernel's, after an update: the guest has its own in its memory."""
    path, arguments = table(tmp_path)
    before = Continuity(make_guest(extra_args=arguments))
    save(name=VM, path=str(image))
    path.write_text("another text, and a longer one")
    restore(name=VM, path=str(image))
    before.check()


def longer(path):
    """As that of a later package: its end is what the processor starts with."""
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)) + content)


def rom_of_qemus_own(place):
    """Which it finds by itself, in a directory that is looked at first."""
    path, _arguments = rom_of_a_card(place)
    path = path.rename(place / ROM.name)
    return path, ["-L", str(place), "-netdev", "user,id=n0", "-device", "e1000,netdev=n0"]


@pytest.mark.parametrize("make", [rom_of_a_card, rom_of_qemus_own, firmware])
def test_firmware_of_another_size(make_guest, image, run_module, save, restore, tmp_path, make):
    path, arguments = make(tmp_path)
    size = path.stat().st_size
    before = Continuity(make_guest(extra_args=arguments))
    save(name=VM, path=str(image))
    shutil.copy(path, tmp_path / "as-it-was")
    longer(path)
    result = not_restored(run_module, image, "MismatchError", path, size, 2 * size)
    assert "of then" in result["cure"]
    shutil.copy(tmp_path / "as-it-was", path)
    restore(name=VM, path=str(image))
    before.check()


def test_rom_that_rounds_to_the_same_size(make_guest, image, save, restore, tmp_path):
    path, arguments = rom_of_a_card(tmp_path)
    before = Continuity(make_guest(extra_args=arguments))
    save(name=VM, path=str(image))
    path.write_bytes(path.read_bytes()[:-512])
    restore(name=VM, path=str(image))
    before.check()


def test_rom_with_a_size_of_its_own(make_guest, image, save, restore, tmp_path):
    path, arguments = rom_of_a_card(tmp_path)
    before = Continuity(make_guest(extra_args=[*arguments[:-1], f"{arguments[-1]},romsize=1048576"]))
    save(name=VM, path=str(image))
    longer(path)
    restore(name=VM, path=str(image))
    before.check()


def test_firmware_that_was_changed_since_the_start(make_guest, image, run_module, tmp_path):
    path, arguments = firmware(tmp_path)
    guest = make_guest(extra_args=arguments, observer=True)
    longer(path)
    refused(run_module, image, "firmware_changed", path)
    assert run_state(guest) == "running"


def test_flash_with_another_time(make_guest, image, save, restore, run_module, tmp_path):
    """The code of OVMF is in the guest's memory: an update of its package, of the same size, is all the same."""
    path = Path(shutil.copy("/usr/share/seabios/bios-256k.bin", tmp_path / "code.fd"))
    guest = make_guest(extra_args=["-drive", f"if=pflash,format=raw,readonly=on,file={path}"])
    before = Continuity(guest)
    save(name=VM, path=str(image))
    content = path.read_bytes()
    path.write_bytes(content)
    os.utime(path, (1, 1))
    restore(name=VM, path=str(image))
    before.check()
    save(name=VM, path=str(image))
    longer(path)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "DiskMismatchError", result["msg"]
    assert str(path) in result["msg"]
    path.write_bytes(content)
    restore(name=VM, path=str(image))


# --- directories ---


def sockets(directory):
    return [
        *("-chardev", f"socket,id=c0,path={directory / 'a' / 'c.sock'},server=on,wait=off"),
        *("-pidfile", str(directory / "b" / "pid")),
    ]


@pytest.fixture
def volatile_guest(make_guest, volatile):
    for name, mode in (("a", 0o750), ("b", 0o700)):
        (volatile / name).mkdir()
        (volatile / name).chmod(mode)
    return make_guest(extra_args=sockets(volatile))


def reboot(directory):
    """As far as a tmpfs is concerned."""
    for path in directory.iterdir():
        shutil.rmtree(path)


@only_root
def test_directories_are_made_again(volatile_guest, volatile, image, save, restore):
    os.chown(volatile / "a", 65534, 12)
    before = Continuity(volatile_guest)
    save(name=VM, path=str(image))
    reboot(volatile)
    restore(name=VM, path=str(image))
    before.check()
    facts = (volatile / "a").stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o7777) == (65534, 12, 0o750)
    assert (volatile / "b").stat().st_mode & 0o7777 == 0o700
    assert (volatile / "a" / "c.sock").is_socket()


@only_root
def test_directory_of_another_user_is_made_by_him(make_guest, volatile, image, save, restore):
    volatile.chmod(0o711)
    theirs = volatile / "theirs"
    for path in (theirs, theirs / "vm"):
        path.mkdir(mode=0o700)
        os.chown(path, 65534, 65534)
    before = Continuity(
        make_guest(extra_args=["-chardev", f"socket,id=c0,path={theirs / 'vm' / 's'},server=on,wait=off"])
    )
    save(name=VM, path=str(image))
    reboot(volatile)
    restore(name=VM, path=str(image))
    before.check()
    assert [path.stat().st_uid for path in (theirs, theirs / "vm")] == [65534, 65534]


@only_root
def test_link_in_the_place_of_a_directory(volatile_guest, volatile, image, save, run_module, tmp_path):
    save(name=VM, path=str(image))
    reboot(volatile)
    (tmp_path / "elsewhere").mkdir()
    (volatile / "a").symlink_to(tmp_path / "elsewhere")
    not_restored(run_module, image, "LaunchError", volatile / "a")
    assert os.listdir(tmp_path / "elsewhere") == []


@only_root
def test_directory_that_is_another_users_now(volatile_guest, volatile, image, save, run_module):
    save(name=VM, path=str(image))
    reboot(volatile)
    (volatile / "a").mkdir()
    os.chown(volatile / "a", 65534, 65534)
    not_restored(run_module, image, "LaunchError", volatile / "a", "nobody's now")


@only_root
def test_directory_below_one_of_another_user(volatile_guest, volatile, image, save, run_module):
    """He could turn it to another place while it is made."""
    save(name=VM, path=str(image))
    reboot(volatile)
    os.chown(volatile, 65534, 65534)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError", result["msg"]
    assert os.listdir(volatile) == []
    os.chown(volatile, 0, 0)


# --- servers ---


def storage_daemon(place, path):
    disk = place / "d.raw"
    disk.write_bytes(bytes(2**20))
    process = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--blockdev", f"driver=file,node-name=n0,filename={disk}"),
            *("--export", f"type=vhost-user-blk,id=e0,addr.type=unix,addr.path={path},node-name=n0,writable=on"),
        ],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(path.exists)
    return process


def nbd_server(place, path):
    disk = place / "d.raw"
    disk.write_bytes(bytes(2**20))
    process = subprocess.Popen(
        ["qemu-nbd", "-t", "-f", "raw", "-k", str(path), "--shared=4", str(disk)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(path.exists)
    return process


@pytest.mark.parametrize(
    ("start", "program", "arguments"),
    [
        (
            storage_daemon,
            "qemu-storage-da",
            [
                *("-object", "memory-backend-memfd,id=mem,size=64M,share=on", "-machine", "memory-backend=mem"),
                *("-chardev", "socket,id=c0,path=PATH", "-device", "vhost-user-blk-pci,chardev=c0"),
            ],
        ),
        (nbd_server, "qemu-nbd", ["-drive", "if=virtio,format=raw,file=nbd+unix:///?socket=PATH"]),
        (
            nbd_server,
            "qemu-nbd",
            [
                "-blockdev",
                "driver=nbd,node-name=n0,server.type=unix,server.path=PATH",
                "-device",
                "virtio-blk-pci,drive=n0",
            ],
        ),
    ],
    ids=["vhost-user-blk", "nbd-url", "nbd-node"],
)
def test_server_behind_a_socket(make_guest, image, run_module, save, restore, tmp_path, start, program, arguments):
    path = tmp_path / "server.sock"
    server = start(tmp_path, path)
    again = None
    try:
        guest = make_guest(memory_mib=64, extra_args=[word.replace("PATH", str(path)) for word in arguments])
        before = Continuity(guest)
        saved = save(name=VM, path=str(image))
        (problem,) = problems(saved, "server_needed")
        assert str(path) in problem["what"]
        assert program in problem["what"]
        server.kill()
        server.wait()
        path.unlink(missing_ok=True)
        not_restored(run_module, image, "LaunchError", path, program)
        again = start(tmp_path, path)
        result = run_module("qemu_restore", name=VM, path=str(image), disks="ignore")
        assert not result.get("failed"), result["msg"]
        before.check()
    finally:
        for process in (server, again):
            if process is not None:
                process.kill()
                process.wait()


# --- networks ---


@pytest.fixture
def bridge():
    with network.new_bridge() as name:
        if name is None:
            pytest.skip("no bridge can be made here")
        yield name


@pytest.fixture
def tap_guest(make_guest, bridge):
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("no /dev/net/tun")
    name = network.new_name("vmt")
    guest = make_guest(extra_args=network.tap_words(name))
    network.put(name, bridge)
    guest.tap = name
    return guest


@only_root
def test_tap_that_somebody_put_into_a_bridge(tap_guest, bridge, image, save, restore):
    before = Continuity(tap_guest)
    save(name=VM, path=str(image))
    result = restore(name=VM, path=str(image))
    before.check()
    assert network.master_of(tap_guest.tap) == bridge
    assert tap_guest.tap not in str(result.get("warnings"))


def port(tap, flag, value=None):
    """A flag of a port in its bridge, which is set where there is a value."""
    place = Path(f"/sys/class/net/{tap}/brport/{flag}")
    if value is not None:
        place.write_text(value)
    return place.read_text().strip()


@only_root
def test_tap_that_somebody_has_set_up(tap_guest, bridge, image, save, restore):
    """Without its isolation, the guest of a bridge sees all others of it; and so on."""
    tap, before = tap_guest.tap, Continuity(tap_guest)
    wanted = {"isolated": "1", "hairpin_mode": "1", "learning": "0", "unicast_flood": "0"}
    for flag, value in wanted.items():
        assert port(tap, flag) != value
        port(tap, flag, value)
    subprocess.run(["ip", "link", "set", "dev", tap, "mtu", "9000"], check=True)
    subprocess.run(["ip", "address", "add", "10.99.77.1/30", "dev", tap], check=True)
    saved = save(name=VM, path=str(image))
    (problem,) = problems(saved, "tap_addresses")
    assert not problem["blocks"]
    assert f"{tap} has addresses (10.99.77.1)" in problem["what"]
    assert not network.exists(tap)
    result = restore(name=VM, path=str(image))
    before.check()
    assert tap not in str(result.get("warnings"))
    assert network.master_of(tap) == bridge
    assert {flag: port(tap, flag) for flag in wanted} == wanted
    assert port(tap, "multicast_flood") == "1"
    assert Path(f"/sys/class/net/{tap}/mtu").read_text() == "9000\n"


@only_root
def test_vlans_of_a_tap(tap_guest, bridge, image, save, restore):
    """Those of a bridge that keeps them apart; the guest would come back into VLAN 1."""
    if not os.path.exists(f"/sys/class/net/{bridge}/bridge/vlan_filtering"):
        pytest.skip("this kernel's bridges know no VLANs")

    def vlans():
        return subprocess.run(["bridge", "vlan", "show", "dev", tap], check=True, capture_output=True, text=True).stdout

    tap, before = tap_guest.tap, Continuity(tap_guest)
    Path(f"/sys/class/net/{bridge}/bridge/vlan_filtering").write_text("1")
    subprocess.run(["bridge", "vlan", "del", "dev", tap, "vid", "1"], check=True)
    subprocess.run(["bridge", "vlan", "add", "dev", tap, "vid", "20", "pvid", "untagged"], check=True)
    subprocess.run(["bridge", "vlan", "add", "dev", tap, "vid", "30-32"], check=True)
    found = vlans()
    save(name=VM, path=str(image))
    result = restore(name=VM, path=str(image))
    assert tap not in str(result.get("warnings"))
    assert network.master_of(tap) == bridge
    assert vlans() == found
    before.check()


@only_root
def test_tap_of_a_qemu_that_waits_already(tap_guest, bridge, image, save, restore):
    """As one does that an earlier run has started, and was killed before it came to its network."""
    before = Continuity(tap_guest)
    save(name=VM, path=str(image))
    tap_guest.start(incoming=True)
    assert network.master_of(tap_guest.tap) != bridge
    restore(name=VM, path=str(image))
    before.check()
    assert network.master_of(tap_guest.tap) == bridge


@only_root
def test_bridge_that_is_not_there_any_more(tap_guest, bridge, image, save, restore):
    before = Continuity(tap_guest)
    save(name=VM, path=str(image))
    network.delete(bridge)
    try:
        result = restore(name=VM, path=str(image))
        before.check()
        assert f"{tap_guest.tap} was in the bridge {bridge}" in str(result["warnings"])
    finally:
        network.make_bridge(bridge)


@only_root
def test_tap_that_stood_without_qemu(make_guest, bridge, image, save, run_module, restore):
    name = network.new_name("vmp")

    def make():
        subprocess.run(["ip", "tuntap", "add", "dev", name, "mode", "tap"], check=True)

    try:
        make()
    except subprocess.CalledProcessError:
        pytest.skip("no tap can be made here")
    try:
        guest = make_guest(extra_args=network.tap_words(name))
        before = Continuity(guest)
        saved = save(name=VM, path=str(image))
        assert name in problems(saved, "tap_needed")[0]["what"]
        network.delete(name)
        not_restored(run_module, image, "LaunchError", name)
        make()
        restore(name=VM, path=str(image))
        before.check()
        guest.end()
    finally:
        network.delete(name)


# --- the directory of relative names ---


def test_directory_that_qemu_has_left(make_guest, image, save, restore, tmp_path):
    """It is found by what QEMU has open: the pid file."""
    guest = make_guest(start=False, extra_args=["-daemonize", "-pidfile", "vm.pid", "-serial", "file:console"])
    guest.prepare()
    subprocess.run(guest.argv(), cwd=guest.workdir, stdin=subprocess.DEVNULL, check=True)
    guest.wait_restarted()
    guest.wait_for_counter()
    before = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    (guest.workdir / "vm.pid").unlink(missing_ok=True)
    restore(name=VM, path=str(image))
    before.check()
    assert int((guest.workdir / "vm.pid").read_text()) == guest.pid
    assert not Path("/vm.pid").exists()


def test_directory_that_cannot_be_found(make_guest, image, run_module):
    guest = make_guest(
        start=False, extra_args=["-daemonize", "-chardev", "socket,id=c0,path=c.sock,server=on,wait=off"]
    )
    guest.prepare()
    subprocess.run(guest.argv(), cwd=guest.workdir, stdin=subprocess.DEVNULL, check=True)
    guest.wait_restarted()
    refused(run_module, image, "working_directory", "c.sock")


def test_relative_disk_of_a_qemu_that_has_left(make_guest, image, run_module):
    """QEMU itself cannot save such a VM, which is found out before the guest is stopped."""
    guest = make_guest(start=False, extra_args=["-daemonize", "-drive", "if=virtio,format=qcow2,file=d.qcow2"])
    guest.prepare()
    make_disk(guest.workdir / "d.qcow2", "qcow2", size="8M")
    subprocess.run(guest.argv(), cwd=guest.workdir, stdin=subprocess.DEVNULL, check=True)
    guest.wait_restarted()
    guest.wait_for_counter()
    for options in ({}, {"require_restorable": False}):
        result = run_module("qemu_save", name=VM, path=str(image), **options)
        assert result["error"] == "NotRestorableError", result["msg"]
        assert "d.qcow2" in result["msg"]
        assert words(result) == ("running", "absent")
    guest.wait_for_counter(guest.counters()[-1] + 1)


# --- who started it ---


@pytest.mark.skipif(find_qemus()[-1].version < (10, 2), reason="QEMU has exit-with-parent from 10.2 on")
def test_qemu_that_ends_with_whoever_started_it(make_guest, image, save, restore):
    """Started again by the task it would end with that, and the guest with it."""
    guest = make_guest(qemu=find_qemus()[-1].path, extra_args=["-run-with", "exit-with-parent=on"])
    before = Continuity(guest)
    saved = save(name=VM, path=str(image))
    assert problems(saved, "ends_with_starter")
    restore(name=VM, path=str(image))
    before.check()


def test_display_that_needs_a_terminal(make_guest, image, run_module):
    """As somebody starts it who sits there."""
    ours, theirs = pty.openpty()
    guest = make_guest(start=False, extra_args=["-display", "curses"])
    guest.prepare()
    environment = {**os.environ, "TERM": "xterm"}
    qemu = subprocess.Popen(
        guest.argv(), stdin=theirs, stdout=theirs, stderr=theirs, cwd=guest.workdir, env=environment
    )
    try:
        wait_until(lambda: guest.qmp_socket.exists() or qemu.poll() is not None)
        if qemu.poll() is not None:
            pytest.skip("this QEMU has no curses")
        refused(run_module, image, "session_display", "curses")
    finally:
        qemu.kill()
        qemu.wait()
        os.close(theirs)
        os.close(ours)


# --- what a reboot takes ---


def test_what_is_on_a_tmpfs(make_guest, volatile, image, save):
    secret(volatile)
    guest = make_guest(extra_args=secret(volatile)[1])
    saved = save(name=VM, path=str(volatile / "web1.save"), require_restorable=False, after_save="resume")
    (problem,) = problems(saved, "on_tmpfs")
    assert str(volatile / "secret") in problem["what"]
    (problem,) = problems(saved, "image_on_tmpfs")
    assert "/dev/shm" in problem["what"]
    assert not problem["blocks"]
    assert not problems(save(name=VM, path=str(image), force=True, after_save="resume"), "image_on_tmpfs")
    guest.wait_for_counter(guest.counters()[-1] + 1)


@only_root
def test_tap_without_a_name_in_a_bridge(make_guest, bridge, image, save):
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("no /dev/net/tun")
    before = set(os.listdir("/sys/class/net"))
    make_guest(
        extra_args=[
            *("-netdev", "tap,id=n0,script=no,downscript=no"),
            *("-device", "virtio-net-pci,netdev=n0,romfile="),
        ]
    )
    name = next(iter(name for name in set(os.listdir("/sys/class/net")) - before if name.startswith("tap")))
    network.put(name, bridge)
    (problem,) = problems(save(name=VM, path=str(image), after_save="resume"), "bridge_lost")
    assert bridge in problem["what"]


# --- a file system that does not answer ---


@pytest.fixture
def slow_file(tmp_path):
    """A file on a file system of a program's own (FUSE), and a call that has that answer no more."""
    if shutil.which("qemu-storage-daemon") is None or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no qemu-storage-daemon, or no FUSE")
    path, data = tmp_path / "secret", tmp_path / "data"
    path.touch()
    data.write_bytes(b"x" * 512)
    server = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--blockdev", f"file,node-name=a,filename={data},read-only=on"),
            *("--export", f"fuse,id=e,node-name=a,mountpoint={path}"),
        ],
    )

    def hang():
        server.send_signal(signal.SIGSTOP)
        # The kernel answers for a second out of what it knows.
        look = ["timeout", "-s", "KILL", "1", "stat", str(path)]
        wait_until(lambda: subprocess.run(look, check=False).returncode, interval=0.2)

    try:
        while path.stat().st_size == 0:
            if server.poll() is not None:
                pytest.skip("no FUSE export")
        yield path, hang
    finally:
        # It may wait for ever for a request that was withdrawn meanwhile, and ends by no other signal.
        server.kill()
        server.wait()
        unmount = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount", "-u", "-z"]
        subprocess.run([*unmount, str(path)], check=False)


def with_secret(path):
    return ["-object", f"secret,id=s0,file={path},format=raw"]


def test_save_ends_within_its_time_though_a_file_system_does_not_answer(make_guest, image, start_module, slow_file):
    path, hang = slow_file
    guest = make_guest(observer=True, extra_args=with_secret(path))
    hang()
    begin = time.monotonic()
    result = start_module("qemu_save", name=VM, path=str(image), timeout=5).result(timeout=15)
    assert time.monotonic() - begin < 14
    assert result["error"] == "OperationTimeoutError"
    assert run_state(guest) == "running"
    assert not image.exists()


@only_root
def test_save_ends_at_a_signal_though_a_file_system_does_not_answer(
    make_guest, image, start_module, slow_file, tmp_path
):
    path, hang = slow_file
    waiting = tmp_path / "fuse" / str(os.minor(path.stat().st_dev)) / "waiting"
    guest = make_guest(observer=True, extra_args=with_secret(path))
    hang()
    run = start_module("qemu_save", name=VM, path=str(image))
    waiting.parents[1].mkdir()
    subprocess.run(["mount", "-t", "fusectl", "none", str(waiting.parents[1])], check=True)
    try:
        wait_until(lambda: int(waiting.read_text()) > 0)
    finally:
        subprocess.run(["umount", str(waiting.parents[1])], check=True)
    run.process.send_signal(signal.SIGTERM)
    assert run.result(timeout=10)["error"] == "InterruptedOperationError"
    assert run_state(guest) == "running"


def test_what_cannot_be_looked_at_is_a_problem_of_the_save(make_guest, image, run_module, slow_file):
    path, hang = slow_file
    guest = make_guest(observer=True, extra_args=with_secret(path))
    hang()
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "NotRestorableError", result["msg"]
    assert "need_unknown" in [problem["kind"] for problem in result["problems"] if problem["blocks"]]
    assert run_state(guest) == "running"


def test_restore_starts_nothing_where_a_file_system_does_not_answer(make_guest, image, save, run_module, slow_file):
    path, hang = slow_file
    guest = make_guest(observer=True, extra_args=with_secret(path))
    save(name=VM, path=str(image))
    hang()
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError", result["msg"]
    assert not guest.adopt_restarted()
    assert image.exists()
