# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an image records is run only where root vouches for it: its QEMU, and whoever copied its descriptor, can write.

The attacker runs a QEMU of his own, which root saves. He keeps a duplicate of the descriptor that his QEMU was handed
(pidfd_getfd), and rewrites the image's record when the save has ended. Its owner, its mode and its directory are all
the while as they should be. What he wants is a file that only root can make: the canary.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import pack_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord, SaveFacts
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched

from support import CounterGuest, find_qemu_pids
from support.attacker import Attacker
from support.boot_program import said
from support.guest import COLLECTIONS
from support.observe import VM, Continuity

QEMU = shutil.which("qemu-system-x86_64") or ""
UUID = "6b7d6a1e-0000-4000-8000-000000000001"
UNIT = "ssh.service"


class Forger:
    """The attacker, his QEMU, and what he writes over its record."""

    def __init__(self, attacker: Attacker, canary: Path) -> None:
        self.attacker = attacker
        self.canary = canary
        self.text = attacker.home / "forged.xml"
        self.argv = [QEMU, "-name", VM, "-uuid", UUID, "-accel", "tcg", "-display", "none", "-nodefaults", "-m", "16"]
        self.argv += ["-qmp", f"unix:{attacker.home}/qmp,server=on,wait=off"]
        self.process: subprocess.Popen[str]

    def start(self, go: str | Path = "end") -> None:
        script = self.attacker.programs / "keep_descriptor.py"
        shutil.copyfile(Path(__file__).parent / "attackers" / "keep_descriptor.py", script)
        self.process = self.attacker.start(["/usr/bin/python3", script, self.text, go, *self.argv])

    def forge(self, name: str = VM, facts: dict[str, Any] | None = None, **changes: Any) -> None:
        """What he writes: by default QEMU's own words, run by root, with a file of root's to be made."""
        record = LaunchRecord([*self.argv, "-pidfile", str(self.canary)], "/", QEMU, 0, 0)
        save_facts = SaveFacts("0.1.0", "10.0.2", "2030-01-01T00:00:00.000Z", **(facts or {}))
        xml = domain_xml.embed(
            f"<domain type='qemu'><name>{name}</name><uuid>{UUID}</uuid><memory unit='MiB'>16</memory></domain>",
            save_facts,
            dataclasses.replace(record, **changes),
        )
        self.text.write_text(xml)

    def wait(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word


@pytest.fixture
def forger(attacker: Attacker, tmp_path: Path) -> Forger:
    return Forger(attacker, tmp_path / "canary")


def check_refused(result: dict[str, Any], image: Path, canary: Path, before: bytes) -> None:
    assert result["error"] == "NotVouchedError", result["msg"]
    assert str(image) in result["msg"]
    assert "nobody vouches for" in result["msg"]
    assert (result["guest"], result["image"]["state"]) == ("saved", "kept")
    for word in ("qemu_save_image_info", "vouch: true", "launch: command"):
        assert word in result["cure"]
    assert image.read_bytes() == before
    assert not canary.exists()
    assert find_qemu_pids(VM) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"uid": 65534, "gid": 65534},
        {"unit": UNIT},
        {"replayable": False, "reason": "x"},
        {"facts": {"surroundings": '{"version":1,"media":[],"problems":[]}'}},
    ],
    ids=["root", "words", "unit", "not-replayable", "disks"],
)
def test_record_that_he_rewrote(
    forger: Forger, image: Path, save: Any, run_module: Any, changes: dict[str, Any]
) -> None:
    forger.forge(**changes)
    forger.start()
    save(name=VM, path=str(image))
    forger.wait("kept")
    forger.wait("written")
    assert "/canary" in read_image_head(str(image)).xml
    assert (image.stat().st_uid, image.stat().st_mode & 0o777) == (0, 0o600)
    before = image.read_bytes()
    told = run_module("qemu_save_image_info", path=str(image))["image"]
    assert (told["vouched"], told["restorable"], told["launch"]["how"]) == (False, False, "none")
    result = run_module("qemu_restore", path=str(image))
    check_refused(result, image, forger.canary, before)


def test_words_run_as_root_where_nobody_rewrote_them(forger: Forger, image: Path, save: Any, restore: Any) -> None:
    """Else the tests above would show nothing: root starts what he has recorded himself, as its user."""
    forger.forge()
    forger.start(go=forger.attacker.home / "never")
    save(name=VM, path=str(image))
    assert is_vouched(read_image_head(str(image)).domain())
    pid = restore(path=str(image))["vm"]["pid"]
    assert os.stat(f"/proc/{pid}").st_uid == forger.attacker.uid
    os.kill(pid, signal.SIGKILL)


def test_restore_at_boot(forger: Forger, image: Path, save: Any, run_program: Any) -> None:
    forger.forge()
    forger.start()
    save(name=VM, path=str(image))
    forger.wait("kept")
    forger.wait("written")
    before = image.read_bytes()
    output = said(run_program(), 1)
    assert f"{image}: nobody vouches for what it records" in output
    assert image.read_bytes() == before
    assert not forger.canary.exists()


def test_name_of_another_vm_does_not_supersede_its_image(
    forger: Forger, image: Path, guest: CounterGuest, save: Any, run_program: Any
) -> None:
    """He gives his image the victim's name, and a later time."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    his = image.parent / "his.save"
    forger.argv[forger.argv.index(VM)] = "his"
    forger.forge()
    forger.text.write_text(forger.text.read_text().replace(f"<uuid>{UUID}</uuid>", ""))
    forger.start()
    save(name="his", path=str(his))
    forger.wait("kept")
    forger.wait("written")
    output = said(run_program(), 0)
    assert f"{his}: left alone" in output
    assert f"{VM} was restored from {image}" in output
    guest.adopt_restarted()
    continuity.check()
    assert not forger.canary.exists()


def wait_for_megabyte(run: Any, image: Path) -> None:
    """Until QEMU writes the guest's memory."""
    while not [path for path in image.parent.glob(".*.partial") if path.stat().st_size > 1_000_000]:
        assert run.process.poll() is None
        time.sleep(0.02)


def test_save_that_was_killed_is_adopted_but_not_vouched_for(
    forger: Forger, image: Path, start_module: Any, save: Any, run_module: Any
) -> None:
    """He rewrites the partial image while no run watches."""
    go = forger.attacker.home / "go"
    forger.argv[forger.argv.index("-m") + 1] = "128"
    content = forger.attacker.home / "content"
    content.write_bytes(os.urandom(40 << 20))
    content.chmod(0o644)
    forger.argv += ["-device", f"loader,file={content},addr=0x1000000"]
    forger.forge()
    forger.start(go=go)
    run = start_module("qemu_save", name=VM, path=str(image), format="raw", bandwidth="10M")
    forger.wait("kept")
    wait_for_megabyte(run, image)
    run.close()
    go.write_text("")
    forger.wait("written")
    result = save(name=VM, path=str(image))
    assert "taking over from an earlier run" in result["msg"]
    assert result["launch"]["how"] == "none"
    assert "nobody vouches for what it records" in str(result["warnings"])
    check_refused(run_module("qemu_restore", path=str(image)), image, forger.canary, image.read_bytes())


def test_save_that_was_killed_stays_vouched_for(
    make_guest: Any, image: Path, start_module: Any, save: Any, restore: Any
) -> None:
    guest = make_guest(observer=True, block_mib=40)
    continuity = Continuity(guest)
    run = start_module("qemu_save", name=VM, path=str(image), format="raw", bandwidth="10M")
    wait_for_megabyte(run, image)
    run.close()
    result = save(name=VM, path=str(image))
    assert "taking over from an earlier run" in result["msg"]
    assert result["image"]["vouched"]
    restore(path=str(image))
    guest.adopt_restarted()
    continuity.check()


# --- images that nobody has forged, but for which nobody vouches either ---


def rewrite(image: Path, xml: str) -> None:
    head = read_image_head(str(image))
    _header, front = pack_head(str(image), head.header, xml, "")
    with image.open("r+b") as file:
        file.write(front)


def test_image_of_an_older_version(guest: CounterGuest, image: Path, save: Any, restore: Any, run_module: Any) -> None:
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    xml = read_image_head(str(image)).xml
    rewrite(image, xml[: xml.index(" voucher=")] + xml[xml.index(">", xml.index(" voucher=")) :])
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "NotVouchedError"
    assert "older version" in result["msg"]
    would = run_module("qemu_save_image", path=str(image), vouch=True, check=True, diff=True)
    assert would["changed"]
    assert "vouched: false" in would["diff"]["before"]
    shown = would["diff"]["after"]
    record: Any = read_image_head(str(image)).domain().launch
    for line in ("vouched: true", "user: 0 (root)", f"directory: {record.cwd}", f"program: {record.executable}"):
        assert line in shown
    assert f"-name {VM}" in shown
    assert not is_vouched(read_image_head(str(image)).domain())
    done = run_module("qemu_save_image", path=str(image), vouch=True, diff=True)
    assert (done["changed"], done["diff"]["after"]) == (True, shown)
    assert done["msg"] == f"{image} was vouched for"
    assert done["image"]["vouched"]
    assert not run_module("qemu_save_image", path=str(image), vouch=True)["changed"]
    restore(name=VM, path=str(image))
    guest.adopt_restarted()
    continuity.check()


def of_another_key(place: Path, key: str = "") -> list[str]:
    """A prefix with which a module has its key in another place, as it is on another host."""
    state = place / "state"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if key:
        (state / "vouching.key").write_text(key)
        (state / "vouching.key").chmod(0o600)
    module = "ansible_collections.vmops.qemu.plugins.module_utils._state_directory"
    (place / "sitecustomize.py").write_text(f"import {module} as state\n\nstate.ROOT_DIRECTORY = {str(state)!r}\n")
    return ["env", f"PYTHONPATH={place}:{COLLECTIONS}"]


def test_image_of_another_host(
    guest: CounterGuest, image: Path, start_module: Callable[..., Any], tmp_path: Path
) -> None:
    continuity = Continuity(guest)
    other = of_another_key(tmp_path / "other")
    saved = start_module("qemu_save", prefix=other, name=VM, path=str(image)).result()
    assert saved["image"]["vouched"], saved["msg"]
    before = image.read_bytes()
    result = start_module("qemu_restore", name=VM, path=str(image)).result()
    assert result["error"] == "NotVouchedError"
    assert "on another host" in result["msg"]
    assert image.read_bytes() == before
    result = start_module("qemu_restore", prefix=other, name=VM, path=str(image)).result()
    assert not result.get("failed"), result["msg"]
    guest.adopt_restarted()
    continuity.check()


def test_hosts_that_share_a_key(
    guest: CounterGuest, image: Path, start_module: Callable[..., Any], tmp_path: Path
) -> None:
    """As by host_setup_vouching_key."""
    key = "5e" * 32
    continuity = Continuity(guest)
    one, two = tmp_path / "one", tmp_path / "two"
    saved = start_module("qemu_save", prefix=of_another_key(one, key), name=VM, path=str(image)).result()
    assert not saved.get("failed"), saved["msg"]
    result = start_module("qemu_restore", prefix=of_another_key(two, key), name=VM, path=str(image)).result()
    assert not result.get("failed"), result["msg"]
    guest.adopt_restarted()
    continuity.check()
    assert key not in json.dumps(result)


def test_role_installs_the_key(tmp_path: Path) -> None:
    place = tmp_path / "state"
    play = tmp_path / "play.yml"
    play.write_text(
        "- hosts: localhost\n  connection: local\n  gather_facts: false\n  roles:\n    - role: vmops.qemu.host_setup\n"
    )
    variables = {
        "vmops_qemu_save_dir": str(tmp_path / "saves"),
        "host_setup_program_dir": str(tmp_path / "program"),
        "host_setup_vouching_key": "5e" * 32,
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    place.mkdir(mode=0o700)
    Path("/var/lib/vmops.qemu").mkdir(mode=0o700, exist_ok=True)
    prefix = ["unshare", "--mount", "sh", "-c", f'mount --bind {place} /var/lib/vmops.qemu && exec "$@"', "sh"]
    for key in ("5e" * 32, "5E" * 32):
        variables["host_setup_vouching_key"] = key
        command = ["ansible-playbook", "-vv", "--diff", "-i", "localhost,", "-e", json.dumps(variables), str(play)]
        done = subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (place / "vouching.key").read_text().strip() == "5e" * 32
        assert (place / "vouching.key").stat().st_mode & 0o777 == 0o600
        assert "5e5e5e" not in (done.stdout + done.stderr).lower().replace(json.dumps(variables), "")
    variables["host_setup_vouching_key"] = "short"
    command[command.index("-e") + 1] = json.dumps(variables)
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    assert "64 hexadecimal digits" in done.stdout


def test_key_that_others_can_read(guest: CounterGuest, image: Path, start_module: Any, tmp_path: Path) -> None:
    """It is refused before the guest is touched."""
    prefix = of_another_key(tmp_path, "5e" * 32)
    (tmp_path / "state" / "vouching.key").chmod(0o644)
    result = start_module("qemu_save", prefix=prefix, name=VM, path=str(image)).result()
    assert result["error"] == "NotRestorableError"
    assert [problem["kind"] for problem in result["problems"] if problem["blocks"]] == ["image_unvouched"]
    assert "0600" in result["cure"]
    assert not image.exists()
    result = start_module("qemu_save", prefix=prefix, name=VM, path=str(image), require_restorable=False).result()
    assert not result.get("failed"), result["msg"]
    assert result["launch"]["how"] == "none"
    assert "mode 0o644" in result["launch"]["reason"]
    assert not result["image"]["vouched"]
    assert "5e5e5e" not in json.dumps(result)


# --- vouching for what others can write ---


@pytest.mark.parametrize("unsafe", ["owner", "mode", "directory"])
def test_image_that_others_can_write_is_not_vouched_for(
    guest: CounterGuest, image: Path, save: Any, run_module: Any, unsafe: str
) -> None:
    save(name=VM, path=str(image))
    if unsafe == "owner":
        os.chown(image, 65534, -1)
    elif unsafe == "mode":
        image.chmod(0o666)
    else:
        image.parent.chmod(0o1777)
    for check in (True, False):
        result = run_module("qemu_save_image", path=str(image), vouch=True, check=check)
        assert result["error"] == "ImageUnsafeError", result["msg"]
    image.parent.chmod(0o700)


def test_image_that_he_has_open_is_not_vouched_for(forger: Forger, image: Path, save: Any, run_module: Any) -> None:
    """A copy of it can be, which he has not."""
    forger.forge()
    forger.start(go=forger.attacker.home / "never")
    save(name=VM, path=str(image))
    forger.wait("kept")
    xml = read_image_head(str(image)).xml
    rewrite(image, xml.replace(' voucher="', ' voucher="x'))
    result = run_module("qemu_save_image", path=str(image), vouch=True)
    assert result["error"] == "ConflictError"
    copy = image.parent / "copy.save"
    shutil.copyfile(image, copy)
    copy.chmod(0o600)
    assert run_module("qemu_save_image", path=str(copy), vouch=True)["changed"]


def test_change_of_the_head_vouches_for_nothing(guest: CounterGuest, image: Path, save: Any, run_module: Any) -> None:
    save(name=VM, path=str(image))
    xml = read_image_head(str(image)).xml
    new = xml.replace("</name>", "</name><description>x</description>")
    assert run_module("qemu_save_image", path=str(image), domain_xml=new, vm_state="paused")["image"]["vouched"]
    rewrite(image, xml.replace(' voucher="', ' voucher="x'))
    changed = run_module("qemu_save_image", path=str(image), domain_xml=new, vm_state="running")
    assert (changed["changed"], changed["image"]["vouched"]) == (True, False)


# --- an image that another user can write, and a QEMU of root's ---


def test_image_of_his_is_not_loaded_by_roots_qemu(
    guest: CounterGuest, image: Path, save: Any, run_module: Any, restore: Any
) -> None:
    continuity = Continuity(guest)
    command = guest.argv()
    save(name=VM, path=str(image))
    os.chown(image, 65534, -1)
    before = image.read_bytes()
    result = run_module("qemu_restore", name=VM, path=str(image), launch="command", command=command)
    assert result["error"] == "ImageUnsafeError", result["msg"]
    assert "mode 0600" in result["cure"]
    assert find_qemu_pids(VM) == []
    waiting = subprocess.Popen([*command, "-incoming", "defer", "-S"], stdin=subprocess.DEVNULL)
    try:
        result = run_module("qemu_restore", name=VM, path=str(image), launch="attach", attach_timeout=20)
        assert result["error"] == "ImageUnsafeError", result["msg"]
        assert waiting.poll() is None, "it still waits"
        assert image.read_bytes() == before
    finally:
        waiting.kill()
        waiting.wait()
    os.chown(image, 0, -1)
    restore(name=VM, path=str(image), launch="command", command=command)
    guest.adopt_restarted()
    continuity.check()


def test_image_of_his_is_loaded_by_his_qemu(
    forger: Forger, image: Path, save: Any, restore: Any, attacker: Attacker
) -> None:
    forger.forge()
    forger.start(go=attacker.home / "never")
    save(name=VM, path=str(image))
    his = attacker.home / "his"
    his.mkdir(mode=0o700)
    shutil.copyfile(image, his / "web1.save")
    for path in (his, his / "web1.save"):
        os.chown(path, attacker.uid, attacker.gid)
    waiting = subprocess.Popen(
        [*forger.argv, "-incoming", "defer"],
        user=attacker.uid,
        group=attacker.gid,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
    )
    try:
        result = restore(name=VM, path=str(his / "web1.save"), launch="attach", attach_timeout=20, disks="ignore")
        assert result["vm"]["run_state"] == "running"
    finally:
        waiting.kill()
        waiting.wait()
