# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An emulated TPM comes back with its guest: its server (swtpm) is started again, or the run says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from support import LinuxGuest, find_qemu_pids
from support.observe import VM, Continuity, wait_until, words
from support.tpm import Swtpm, extend_register, extended, read_register

pytestmark = pytest.mark.skipif(shutil.which("swtpm") is None, reason="no swtpm")

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture
def place(tmp_path):
    """A directory for the TPM, which may be another user's."""
    directory = tmp_path / "vm"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def make_tpm(place):
    made = []

    def make(**options):
        made.append(Swtpm(place, **options))
        made[-1].start()
        return made[-1]

    yield make
    for tpm in made:
        tpm.kill()


@pytest.fixture
def saved(make_guest, image, save):
    """Save a guest with this TPM; what shows afterwards that it went on."""

    def run(tpm, **options):
        guest = make_guest(extra_args=tpm.qemu_args())
        before = Continuity(guest)
        result = save(name=VM, path=str(image), **options)
        guest.wait_exit()
        wait_until(lambda: not tpm.pids())  # QEMU has told it to end
        return before, result

    return run


def user_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}").st_uid


@pytest.mark.parametrize("device", ["tpm-tis", "tpm-crb"])
def test_guest_finds_the_same_tpm(make_tpm, tmp_path, image, save, restore, device):
    tpm = make_tpm()
    guest = LinuxGuest(tmp_path / "linux", VM, extra_args=tpm.qemu_args(device))
    try:
        guest.start()
        assert read_register(guest) == "0" * 64
        extend_register(guest)
        before = read_register(guest)
        assert before == extended("0" * 64)
        saved = save(name=VM, path=str(image))
        assert "TPM" not in str(saved.get("warnings"))
        guest.wait_exit()
        wait_until(lambda: not tpm.pids())
        restore(name=VM, path=str(image))
        guest.wait_restarted()
        assert read_register(guest) == before
        extend_register(guest)
        assert read_register(guest) == extended(before)
        assert len(tpm.pids()) == 1
    finally:
        guest.adopt_restarted()
        guest.close()


@pytest.mark.parametrize("options", [(), ("--daemon",), ("--terminate",)], ids=["plain", "daemon", "terminate"])
def test_server_is_started_again(make_tpm, saved, image, restore, options):
    tpm = make_tpm(options=options)
    before, _result = saved(tpm)
    restore(name=VM, path=str(image))
    before.check()
    assert len(tpm.pids()) == 1


def test_relative_paths(make_tpm, saved, image, restore):
    tpm = make_tpm(relative=True)
    before, _result = saved(tpm)
    restore(name=VM, path=str(image))
    before.check()
    assert len(tpm.pids()) == 1


def test_server_of_the_same_relative_name(make_tpm, saved, image, restore, tmp_path):
    """Elsewhere, which is another socket."""
    tpm = make_tpm(relative=True)
    (tmp_path / "other").mkdir()
    other = Swtpm(tmp_path / "other", relative=True)
    other.start()
    try:
        before, _result = saved(tpm)
        restore(name=VM, path=str(image))
        before.check()
        assert len(tpm.pids()) == 1
    finally:
        other.kill()


def test_server_that_runs_already_is_used(make_tpm, saved, image, restore):
    tpm = make_tpm()
    before, _result = saved(tpm)
    tpm.start()
    (pid,) = tpm.pids()
    restore(name=VM, path=str(image))
    before.check()
    assert tpm.pids() == [pid]


@only_root
def test_server_of_another_user(make_tpm, saved, image, restore, place):
    for above in place.parents[:3]:
        above.chmod(0o755)
    (place / "tpm").mkdir(mode=0o700)
    for path in (place, place / "tpm"):
        os.chown(path, 65534, 65534)
    tpm = make_tpm(prefix=["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
    assert [user_of(pid) for pid in tpm.pids()] == [65534]
    before, _result = saved(tpm)
    restore(name=VM, path=str(image))
    before.check()
    assert [user_of(pid) for pid in tpm.pids()] == [65534]


@only_root
def test_server_that_others_could_have_written(make_tpm, saved, image, run_module, tmp_path):
    """It is not run: the save says so, and the restore is refused before anything is started."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    shutil.copy(shutil.which("swtpm") or "", theirs / "swtpm")
    os.chown(theirs, 65534, 65534)
    tpm = make_tpm(prefix=["env", f"PATH={theirs}:{os.environ['PATH']}"])
    _before, result = saved(tpm)
    (problem,) = [problem for problem in result["problems"] if problem["kind"] == "server_needed"]
    assert str(theirs) in problem["what"]
    refused = run_module("qemu_restore", name=VM, path=str(image))
    assert refused["error"] == "LaunchError", refused["msg"]
    assert str(theirs) in refused["msg"]
    assert tpm.pids() == []
    assert find_qemu_pids(VM) == []


@only_root
def test_socket_that_somebody_else_serves(make_tpm, saved, image, run_module, place):
    tpm = make_tpm()
    saved(tpm)
    for above in place.parents[:3]:
        above.chmod(0o755)
    place.chmod(0o777)
    tpm.socket.unlink(missing_ok=True)
    stranger = Swtpm(place, prefix=["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
    os.chown(stranger.state, 65534, 65534)
    stranger.start()
    try:
        result = run_module("qemu_restore", name=VM, path=str(image))
        assert result["error"] == "LaunchError", result["msg"]
        assert "must not be given" in result["msg"]
        assert words(result) == ("saved", "kept")
        assert len(stranger.pids()) == 1
    finally:
        stranger.kill()


@pytest.fixture
def logs():
    """A directory that is not made again, as it is on a disk."""
    directory = Path(tempfile.mkdtemp(dir="/var/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_server_ends_with_a_restore_that_fails(make_guest, make_tpm, image, save, run_module, restore, logs):
    tpm = make_tpm()
    guest = make_guest(extra_args=[*tpm.qemu_args(), "-serial", f"file:{logs / 'console'}"])
    before = Continuity(guest)
    save(name=VM, path=str(image))
    wait_until(lambda: not tpm.pids())
    shutil.rmtree(logs)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError", result["msg"]
    assert words(result) == ("saved", "kept")
    assert tpm.pids() == []
    logs.mkdir()
    restore(name=VM, path=str(image))
    before.check()


def test_directory_of_its_state_is_gone(make_tpm, saved, image, run_module, restore):
    """What it held is in the image: an empty one will do."""
    tpm = make_tpm()
    before, _result = saved(tpm)
    shutil.rmtree(tpm.state)
    for check in (True, False):
        result = run_module("qemu_restore", name=VM, path=str(image), check=check)
        assert result["error"] == "LaunchError", result["msg"]
        assert str(tpm.state) in result["msg"]
        assert "empty" in result["cure"]
        assert words(result) == ("saved", "kept")
    tpm.state.mkdir(mode=0o700)
    restore(name=VM, path=str(image))
    before.check()


def test_server_that_says_why_it_does_not_start(make_tpm, saved, image, run_module, restore, tmp_path):
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef")
    tpm = make_tpm(options=["--key", f"file={key},mode=aes-cbc,format=hex"])
    before, _result = saved(tpm)
    key.rename(tmp_path / "away")
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError", result["msg"]
    assert str(key) in result["msg"]
    (tmp_path / "away").rename(key)
    restore(name=VM, path=str(image))
    before.check()


def test_server_that_has_died(make_guest, make_tpm, image, run_module):
    """QEMU could not save the state of the TPM: that is said before the guest is stopped, and cannot be overridden."""
    tpm = make_tpm()
    guest = make_guest(extra_args=tpm.qemu_args())
    tpm.kill()
    for options in ({}, {"require_restorable": False}):
        result = run_module("qemu_save", name=VM, path=str(image), **options)
        assert result["error"] == "NotRestorableError", result["msg"]
        assert [problem["kind"] for problem in result["problems"] if problem["blocks"]] == ["tpm_lost"]
        assert words(result) == ("running", "absent")
    guest.wait_for_counter(guest.counters()[-1] + 1)


def test_descriptor_that_it_inherited(make_guest, image, save, place):
    """Only whoever gave it that can start it again."""
    tpm = Swtpm(place)
    code = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "os.dup2(s.fileno(), 99); os.execvp('swtpm', ['swtpm', 'socket', '--tpm2', '--tpmstate', sys.argv[2],"
        " '--ctrl', 'type=unixio,fd=99'])"
    )
    process = subprocess.Popen(["python3", "-c", code, str(tpm.socket), f"dir={tpm.state}"], start_new_session=True)
    try:
        wait_until(tpm.socket.exists)
        make_guest(extra_args=tpm.qemu_args())
        result = save(name=VM, path=str(image), after_save="resume")
        (problem,) = [problem for problem in result["problems"] if problem["kind"] == "server_needed"]
        assert "descriptor" in problem["what"]
    finally:
        process.kill()
        process.wait()


def test_socket_below_a_link(make_tpm, saved, image, restore, place):
    """Named by another path on QEMU's command line than on its server's."""
    tpm = make_tpm()
    link = place / "link"
    link.symlink_to(place)
    tpm.qemu_args = lambda device="tpm-tis": [
        word.replace(str(tpm.socket), str(link / tpm.socket.name)) for word in Swtpm.qemu_args(tpm, device)
    ]
    before, _result = saved(tpm)
    restore(name=VM, path=str(image))
    before.check()
