# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What qemu_host_info, and the playbook that shows it, say of a host with real guests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from support.guest import COLLECTIONS
from support.mounts import mounted
from support.observe import Continuity
from support.paused import make_disk

WEB1, WEB2 = (f"{name}-{os.getpid()}" for name in ("web1", "web2"))


@pytest.fixture
def look(run_module, image):
    """Run the module; its result, and by subject the kinds of problems and whether they block."""

    def run(**options):
        result = run_module("qemu_host_info", **{"save_dir": str(image.parent), **options})
        assert not result.get("failed"), result["msg"]
        assert result["changed"] is False
        assert result["ready"] == (not any(problem["blocks"] for problem in result["problems"]))
        assert [problem["blocks"] for problem in result["problems"]] == sorted(
            (problem["blocks"] for problem in result["problems"]), reverse=True
        )
        assert all(problem["what"] and problem["cure"] for problem in result["problems"])
        kinds: dict[str, dict[str, bool]] = {}
        for problem in result["problems"]:
            kinds.setdefault(problem["subject"], {})[problem["kind"]] = problem["blocks"]
        return result, kinds

    return run


def replace_disk(guest_disk):
    """Another file is at the path of a disk."""
    guest_disk.unlink()
    make_disk(guest_disk, "qcow2", size="8M")


@pytest.fixture
def disk(tmp_path):
    return make_disk(tmp_path / "disk.qcow2", "qcow2", size="8M")


@pytest.fixture
def guest_with_disk(make_guest, disk):
    drive = f"driver=qcow2,node-name=n0,file.driver=file,file.filename={disk}"
    return make_guest(
        WEB1, observer=True, block_mib=2, extra_args=["-blockdev", drive, "-device", "virtio-blk-pci,drive=n0"]
    )


def test_vm_that_is_ready(look, make_guest, image):
    make_guest(WEB1, block_mib=2)
    result, kinds = look()
    assert not any(kinds.get(WEB1, {}).values())
    assert str(image.parent) not in kinds
    host = result["host"]
    assert host["vms"] >= 1
    assert host["images"] == 0
    assert host["space_needed"] > 0
    assert host["space_free"] > 0
    assert os.path.ismount(host["file_system"])
    assert host["python"].startswith("3.")


def test_vms_and_images_with_problems(look, guest_with_disk, disk, make_guest, save, image):
    other = make_guest(WEB2, block_mib=2)
    save(name=WEB2, path=str(image.parent / "old.save"), after_save="resume")
    save(name=WEB2, save_dir=str(image.parent))
    (image.parent / "bad.save").write_bytes(b"LibvirtQemudSave" + b"\0" * 200)
    assert not other.alive()
    replace_disk(disk)
    result, kinds = look()
    assert [kind for kind, blocks in kinds[WEB1].items() if blocks] == ["disk_unknown"]
    assert kinds[str(image.parent / "old.save")] == {"image_superseded": False}
    assert kinds[str(image.parent / "bad.save")] == {"image_invalid": True}
    assert not result["ready"]
    assert result["host"]["images"] == 3
    # What a person reads has all of it.
    text = " ".join(" ".join(result["table"]).split())
    for problem in result["problems"]:
        if problem["subject"] == WEB1:
            assert " ".join(problem["what"].split()[:3]) in text
            assert " ".join(problem["cure"].split()[:3]) in text


def test_directory_that_is_missing(look, tmp_path):
    _result, kinds = look(save_dir=str(tmp_path / "none" / "save"))
    assert kinds[str(tmp_path / "none" / "save")] == {"save_dir_missing": False}


def test_directory_that_others_can_write_to(look, image):
    image.parent.chmod(0o777)
    _result, kinds = look()
    assert kinds[str(image.parent)] == {"save_dir_unsafe": True}


def test_what_is_no_directory(look, image):
    image.write_text("")
    result, kinds = look(save_dir=str(image))
    assert not result["ready"]
    assert True in kinds[str(image)].values()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_file_system_in_memory_without_room(look, make_guest, tmp_path):
    make_guest(WEB1, block_mib=8)
    with mounted(tmp_path / "memory", "tmpfs", 1) as reason:
        if reason:
            pytest.skip(reason)
        (tmp_path / "memory").chmod(0o700)
        result, kinds = look(save_dir=str(tmp_path / "memory"))
    assert kinds[str(tmp_path / "memory")] == {"save_dir_volatile": True, "space": True}
    assert result["host"]["file_system_type"] == "tmpfs"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize(("hide", "kind"), [(False, "save_dir_volatile"), (True, "save_dir_uncertain")])
def test_overlay_that_writes_to_memory(look, tmp_path, hide, kind):
    """As overlayroot=tmpfs makes it; and where it cannot be seen what it writes to."""
    place, memory = tmp_path / "overlay", tmp_path / "memory"
    place.mkdir(mode=0o700)
    with mounted(memory, "tmpfs", 8) as reason:
        if reason:
            pytest.skip(reason)
        for name in ("lower", "upper", "work"):
            (memory / name).mkdir(mode=0o700)
        options = f"lowerdir={memory}/lower,upperdir={memory}/upper,workdir={memory}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", place], check=True)
        try:
            if hide:
                subprocess.run(["mount", "-t", "tmpfs", "tmpfs", memory], check=True)
            result, kinds = look(save_dir=str(place))
        finally:
            subprocess.run(["umount", place], check=True)
            if hide:
                subprocess.run(["umount", memory], check=True)
    assert kind in kinds[str(place)]
    assert {"save_dir_volatile", "save_dir_uncertain"} & set(kinds[str(place)]) == {kind}
    assert result["host"]["file_system_type"] == "overlay"


# --- the playbook ---


@pytest.fixture
def doctor(tmp_path, image):
    """Run the playbook for this host and one that cannot be reached."""

    def run(*arguments):
        local = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "vmops_qemu_save_dir": str(image.parent),
        }
        lost = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_connection": "ssh"}
        inventory = tmp_path / "inventory.json"
        inventory.write_text(json.dumps({"all": {"hosts": {"hv1": local, "hv2": lost}}}))
        (tmp_path / "ansible.cfg").touch()
        done = subprocess.run(
            [
                *(os.path.join(os.path.dirname(sys.executable), "ansible-playbook"), "vmops.qemu.doctor"),
                *("-i", str(inventory), *arguments),
            ],
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
                "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
                "ANSIBLE_SHOW_CUSTOM_STATS": "1",
                "ANSIBLE_NOCOLOR": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        return done.returncode, done.stdout

    return run


def handed_on(output):
    """What the playbook has handed on by set_stats."""
    stats = output[output.index("CUSTOM STATS") :]
    return json.loads(stats[stats.index("{") : stats.rindex("}") + 1])["doctor"]


def blocking(host):
    """What is in the way of this test's VM; others' run on this host, too."""
    return [problem for problem in host["problems"] if problem["subject"] == WEB1 and problem["blocks"]]


def test_playbook_shows_what_is_in_the_way(doctor, guest_with_disk, disk, save, restore, image):
    """And how to remove it; that done, there is nothing."""
    continuity = Continuity(guest_with_disk)
    kept = disk.with_suffix(".kept")
    kept.hardlink_to(disk)
    replace_disk(disk)
    code, output = doctor("-e", "doctor_hosts=all")
    assert code == 0, output
    assert re.search(rf'"WHERE +BLOCKS  WHAT",\n(.*\n)* +"{WEB1} +yes     disk_', output), output
    told = handed_on(output)
    assert not told["hv1"]["ready"]
    assert blocking(told["hv1"])
    assert not told["hv2"]["ready"]
    assert "Connection refused" in told["hv2"]["msg"]
    kept.replace(disk)
    code, output = doctor("-e", "doctor_hosts=hv1")
    assert code == 0, output
    assert blocking(handed_on(output)["hv1"]) == []
    save(name=WEB1, save_dir=str(image.parent))
    restore(name=WEB1, save_dir=str(image.parent))
    continuity.check()


def test_playbook_fails_where_it_is_asked_to(doctor):
    code, output = doctor("-e", "doctor_hosts=hv2", "-e", "doctor_strict=true")
    assert code == 2, output
    assert "hv2" in output
    code, output = doctor()
    assert code == 2, output
    assert "doctor_hosts says which hosts are to be looked at" in output


@pytest.mark.parametrize("pattern", ["hv3", "hv1:!all", "hv*:&db"])
def test_playbook_says_that_there_is_no_such_host(doctor, pattern):
    """Ansible alone would only warn, and be content."""
    code, output = doctor("-e", f"doctor_hosts={pattern}")
    assert code == 2, output
    assert f"doctor_hosts is {pattern}, which is no host of the inventory" in re.sub(r"\s+", " ", output)
    assert "Look at the host" not in output
