# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Does everything work without root, for the VMs of a user whose own systemd runs them?"""

from __future__ import annotations

import json
import os
import re
import uuid as uuids

import pytest

from support.guest import REPOSITORY
from support.machine_run import PLACE, run_playbook
from support.machine_tool import UNAVAILABLE
from support.observe import words

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)

USER = "alice"
OTHER_USER = "bob"
VMS = ("web1", "db1")

UNIT = """\
[Unit]
Description=Virtual machine %i
[Service]
EnvironmentFile=%h/.config/qemu/%i.env
ExecStart=/usr/bin/qemu-system-x86_64 -name %i $QEMU_ARGS
Restart=always
[Install]
WantedBy=default.target
"""

#: More arguments of pytest on the machine, such as ``-k shutdown``.
CHOSEN = os.environ.get("UNITS_ARGS", "")


@pytest.fixture
def host(machine):
    """A machine with a user whose systemd runs from the boot on, and who may log in."""
    add_user(machine, USER)
    return machine


def add_user(machine, user: str) -> None:
    machine.run(
        f"useradd --create-home --shell /bin/bash {user} && install -d -m 700 -o {user} -g {user} /home/{user}/.ssh"
        f" && install -m 600 -o {user} -g {user} /root/.ssh/authorized_keys /home/{user}/.ssh/"
        f" && loginctl enable-linger {user}"
    )
    machine.run("systemctl --user is-system-running --wait", user, check=False)


def guests(host, command: str, *arguments: str, user: str = USER):
    """What tests/guests/unit_guests.py says of the user's VMs."""
    words = " ".join(f"'{argument}'" for argument in arguments)
    said = host.run(f"python3 /opt/vmops/tests/guests/unit_guests.py {command} {words}", user)
    return json.loads(said)


@pytest.fixture
def vms(host):
    """VMs that units of the user's own systemd run, and start again, also at boot; they are remembered as they are."""
    guests(host, "define", json.dumps([{"name": name} for name in VMS]))
    unit = "mkdir -p ~/.config/systemd/user && cat >~/.config/systemd/user/qemu@.service"
    host.run(unit, USER, stdin=UNIT.encode())
    units = " ".join(f"qemu@{name}" for name in VMS)
    host.run(f"systemctl --user daemon-reload && systemctl --user enable --now {units}", USER)
    return guests(host, "remember", *VMS)


def went_on(host) -> None:
    """All of them went on where they were, without a boot or a gap."""
    said = guests(host, "went-on", *VMS)
    assert all(vm["problems"] == [] for vm in said.values()), said


@pytest.fixture
def ansible(host, tmp_path):
    """``ansible(plays)``: run them from here, as the user; what was said. ``failed=True`` where they must fail."""

    def run(plays, failed: bool = False, **variables) -> str:
        play = tmp_path / "play.yml"
        play.write_text(json.dumps(plays))
        done = run_playbook(host, tmp_path, USER, "-v", str(play), **variables)
        assert (done.returncode != 0) == failed, done.stdout + done.stderr
        return done.stdout

    return run


def role(name: str, **variables):
    """A play with a role of the collection, for the machine."""
    return [{"hosts": "all", "gather_facts": False, "roles": [{"role": f"vmops.qemu.{name}", **variables}]}]


def module(host, module_name: str, user: str, **options):
    """What a module returns that this user runs there."""
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": options})
    command = f"cd / && PYTHONPATH={PLACE}/build/collections python3 -m"
    command += f" ansible_collections.vmops.qemu.plugins.modules.{module_name}"
    return json.loads(host.run(command, user, stdin=arguments.encode(), check=False).splitlines()[-1])


def test_units_of_a_users_own(host, capsys):
    """All that is tested of root's units, but for what only root can do."""
    host.unpack()
    closing = host.pytest(f"tests/functional/units {CHOSEN}", USER)
    with capsys.disabled():
        print(f"\ntests of units of a user's own: {closing}")
    passed = re.match(r"(\d+) passed", closing)
    assert passed, closing
    assert CHOSEN or int(passed[1]) > 40


def test_save_and_restore_by_default(host, vms):
    """Without an option more than the name: images, locks and records of the user are his own."""
    host.unpack()
    saved = module(host, "qemu_save", USER, name="web1")
    assert not saved.get("failed"), saved["msg"]
    home = f"/home/{USER}"
    assert saved["image"]["path"] == f"{home}/.local/state/vmops/save/web1.save"
    uid = host.run("id -u", USER)
    assert saved["launch"] == {"how": "unit", "unit": f"user@{uid}.service/qemu@web1.service", "reason": ""}
    assert "warnings" not in saved
    guard = f"{home}/.config/systemd/user/qemu@web1.service.d/50-vmops-saved.conf"
    assert f"ConditionPathExists=!{saved['image']['path']}" in host.run(f"cat {guard}")
    host.run("systemctl --user start qemu@web1", USER)
    assert host.run("systemctl --user is-active qemu@web1", USER, check=False) == "inactive"
    assert host.run("stat --format='%a %U' ~/.local/state/vmops/save ~/.local/state/vmops.qemu/vouching.key", USER) == (
        f"700 {USER}\n600 {USER}"
    )
    assert host.run(f"ls -d /run/user/{uid}/vmops.qemu/locks") == f"/run/user/{uid}/vmops.qemu/locks"
    restored = module(host, "qemu_restore", USER, name="web1")
    assert not restored.get("failed"), restored["msg"]
    assert restored["unit"] == f"user@{uid}.service/qemu@web1.service"
    assert host.run(f"ls {os.path.dirname(guard)}", check=False).endswith("No such file or directory")
    went_on(host)
    # His systemd lasts for a while after his last session.
    host.run(f"loginctl disable-linger {USER}")
    found = module(host, "qemu_vm_info", USER)["vms"]
    host.run(f"loginctl enable-linger {USER}")
    assert [[(problem["kind"], problem["blocks"]) for problem in vm["problems"]] for vm in found] == [
        [("no_lingering", False)]
    ] * len(VMS)
    went_on(host)


def test_root_leaves_it_to_the_user(host, vms):
    """Nobody else can guard the unit, and what it is said to be is the user's word."""
    host.unpack()
    refused = module(host, "qemu_save", "root", name="web1")
    assert refused["error"] == "NotRestorableError", refused["msg"]
    assert [problem["kind"] for problem in refused["problems"] if problem["blocks"]] == ["unit_of_user"]
    assert f"become_user: {USER}" in refused["cure"]
    told = module(host, "qemu_managed_save", "root", vms=["none"], unsaved="shutdown")
    assert told["failed"]
    assert "a service of another user's own systemd" in told["msg"]
    # His image is none of root's, who would start his unit by it.
    saved = module(host, "qemu_save", USER, unit=f"user@{host.run('id -u', USER)}.service/qemu@web1")
    path = saved["image"]["path"]
    assert module(host, "qemu_save", USER, unit="qemu@web1")["image"]["path"] == path
    assert module(host, "qemu_restore", "root", path=path)["error"] == "NotVouchedError"
    host.run(f"install -d -m 700 /srv/save && cp --sparse=always {path} /srv/save/")
    assert module(host, "qemu_restore", "root", path="/srv/save/web1.save")["error"] == "NotVouchedError"
    assert module(host, "qemu_save_image", "root", path="/srv/save/web1.save", vouch=True)["changed"]
    told = module(host, "qemu_restore", "root", path="/srv/save/web1.save")
    assert told["error"] == "UnitError"
    assert f"Only {USER} may start" in told["msg"]
    restored = module(host, "qemu_restore", USER, unit="qemu@web1")
    assert not restored.get("failed"), restored["msg"]
    went_on(host)


def test_user_who_has_no_place_for_locks(host, vms):
    """No other place is taken, and no other user's, whatever the environment says."""
    host.unpack()
    host.run("useradd --create-home bob")
    environment = f"XDG_RUNTIME_DIR=/run/user/0 PYTHONPATH={PLACE}/build/collections"
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": {"name": "web1"}})
    command = "-m ansible_collections.vmops.qemu.plugins.modules.qemu_save"
    for user, variables in ((USER, environment), ("bob", environment.partition(" ")[2])):
        said = host.run(
            f"cd / && sudo -u {user} env {variables} python3 {command}", stdin=arguments.encode(), check=False
        )
        told = json.loads(said.splitlines()[-1])
        if user == USER:
            assert told["error"] == "RunDirectoryError", told["msg"]
            assert "/run/user/0" in told["msg"]
        else:
            assert told["failed"]
    # Without the variable, as sudo leaves it.
    said = host.run(
        f"cd / && sudo -u {USER} env {environment.partition(' ')[2]} python3 {command}", stdin=arguments.encode()
    )
    assert json.loads(said.splitlines()[-1])["changed"], said
    assert module(host, "qemu_restore", USER, name="web1")["changed"]
    went_on(host)


def test_boot_restore_and_shutdown_save(host, vms, ansible):
    """The user's systemd saves the VMs when it ends with the host, and restores them when it is there again."""
    services = {
        "host_setup_scope": "user",
        "host_setup_boot_restore": True,
        "host_setup_shutdown_save": True,
        "host_setup_shutdown_save_timeout": 80,
    }
    ansible(role("host_setup", **services))
    assert " changed=0 " in ansible(role("host_setup", **services))
    host.run("systemctl --user restart vmops-save.service", USER)  # which touches no VM
    assert all(vm["running"] for vm in guests(host, "status", *VMS).values())
    host.reboot()
    went_on(host)
    said = host.run("journalctl _SYSTEMD_USER_UNIT=vmops-restore.service --no-pager -o cat")
    assert all(re.search(f"{name}.* was restored ", said) for name in VMS), said
    assert host.run("systemctl --user is-failed vmops-restore.service", USER, check=False) == "active"
    assert host.run("ls ~/.local/state/vmops/save", USER) == ""
    gone = ansible(role("host_setup", host_setup_scope="user"))
    assert "failed=0" in gone
    left = host.run("find ~/.config/systemd ~/.local/lib -name '*vmops*'", USER, check=False)
    assert "vmops" not in left.replace("No such file", ""), left
    went_on(host)


def test_role_says_where_root_is_needed(host, ansible):
    """Whose systemd does not run at boot, and who may not have it run."""
    host.run(f"loginctl disable-linger {USER}")
    said = ansible(role("host_setup", host_setup_scope="user", host_setup_boot_restore=True), failed=True)
    assert "Have root do it - loginctl enable-linger " in said
    said = ansible(
        [{**role("host_setup", host_setup_scope="user")[0], "remote_user": "root"}], failed=True, ansible_user="root"
    )
    assert "run the role as that user, not as root" in said


def test_maintenance_with_a_reboot(host, vms, ansible):
    """The playbook without -b: only the reboot itself is root's."""
    plays = [
        {
            "import_playbook": str(REPOSITORY / "playbooks/host_maintenance.yml"),
            "vars": {"host_maintenance_hosts": "all"},
        }
    ]
    said = ansible(plays, failed=True)
    assert "sudo" in said
    assert all(vm["running"] for vm in guests(host, "status", *VMS).values())
    host.run(f"echo '{USER} ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/{USER}")
    ansible(plays)
    went_on(host)


def start_tpm(host, user: str) -> str:
    """The TPM's server as a unit of this user's systemd (root: the host's), which runs; its socket, for all."""
    units = "/etc/systemd/system" if user == "root" else "~/.config/systemd/user"
    systemctl = "systemctl" if user == "root" else "systemctl --user"
    home = host.run("echo ~", user)
    unit = (
        f"[Service]\nExecStart=/usr/bin/swtpm socket --tpm2 --tpmstate dir={home}/tpm"
        " --ctrl type=unixio,path=/var/tmp/tpm.sock,mode=0666\n"
    )
    host.run(f"mkdir -p ~/tpm {units} && cat >{units}/tpm.service", user, stdin=unit.encode())
    host.run(f"{systemctl} daemon-reload && {systemctl} start tpm", user)
    host.run(
        "for _try in $(seq 100); do test -S /var/tmp/tpm.sock && break; sleep 0.1; done; test -S /var/tmp/tpm.sock"
    )
    return "/var/tmp/tpm.sock"


def start_vm_with_tpm(host, user: str, socket: str) -> None:
    """A VM of this user's that no unit runs."""
    home = host.run("echo ~", user)
    host.run(
        "qemu-system-x86_64 -name tpm1 -nodefaults -no-user-config -display none -accel tcg -m 32 -daemonize"
        f" -qmp unix:{home}/qmp.sock,server=on,wait=off -chardev socket,id=c,path={socket}"
        " -tpmdev emulator,id=tpm0,chardev=c -device tpm-tis,tpmdev=tpm0",
        user,
    )


@pytest.mark.parametrize("saver", ["root", USER])
def test_tpm_whose_server_is_a_unit_of_a_user(host, saver):
    """It is that user's again after the restore, whoever saves and restores the VM; his unit's, if he does."""
    host.unpack()
    start_vm_with_tpm(host, saver, start_tpm(host, USER))
    saved = module(host, "qemu_save", saver, name="tpm1")
    assert not saved.get("failed"), saved["msg"]
    assert "server_needed" not in {problem["kind"] for problem in saved["problems"]}
    restored = module(host, "qemu_restore", saver, name="tpm1")
    assert not restored.get("failed"), restored["msg"]
    assert host.run("ps -C swtpm -o user=").split() == [USER]
    state = host.run("systemctl --user show --property=ActiveState --value tpm", USER)
    assert state == ("inactive" if saver == "root" else "active")


def test_tpm_whose_server_is_a_unit_of_the_host(host):
    """Which a user may not start: that is said before his VM is saved, and again at its restore."""
    host.unpack()
    start_vm_with_tpm(host, USER, start_tpm(host, "root"))
    for check in (True, False):
        saved = module(host, "qemu_save", USER, name="tpm1", _ansible_check_mode=check)
        assert not saved.get("failed"), saved["msg"]
        (problem,) = [problem for problem in saved["problems"] if problem["kind"] == "server_needed"]
        assert "/var/tmp/tpm.sock" in problem["what"]
    refused = module(host, "qemu_restore", USER, name="tpm1")
    assert refused["error"] == "LaunchError", refused["msg"]
    assert "/var/tmp/tpm.sock" in refused["msg"]
    assert words(refused) == ("saved", "kept")
    host.run("systemctl start tpm")
    restored = module(host, "qemu_restore", USER, name="tpm1")
    assert not restored.get("failed"), restored["msg"]


# --- one name of a unit for several ---


def start_unit(host, user: str) -> dict:
    """A VM web1 in a unit web1.service of this user's own systemd (root: the host's); all by which it can be chosen."""
    units, systemctl = "~/.config/systemd/user", "systemctl --user"
    if user == "root":
        units, systemctl = "/etc/systemd/system", "systemctl"
    uuid = str(uuids.uuid4())
    words = f"-name web1 -uuid {uuid} -nodefaults -no-user-config -display none -accel tcg -m 32 -S"
    unit = f"[Service]\nExecStart=/usr/bin/qemu-system-x86_64 {words} -qmp unix:%t/web1.qmp,server=on,wait=off\n"
    host.run(f"mkdir -p {units} && cat >{units}/web1.service", user, stdin=unit.encode())
    host.run(f"{systemctl} daemon-reload && {systemctl} start web1", user)
    uid = host.run("id -u", user)
    run = "/run" if user == "root" else f"/run/user/{uid}"
    return {
        "unit": "web1.service" if user == "root" else f"user@{uid}.service/web1.service",
        "pid": int(host.run(f"{systemctl} show --property=MainPID --value web1", user)),
        "uuid": uuid,
        "qmp_socket": f"{run}/web1.qmp",
    }


def would_save(host, user: str, **options) -> dict:
    return module(host, "qemu_save", user, _ansible_check_mode=True, require_restorable=False, **options)


def test_units_of_one_name(host):
    """By a unit's name alone nobody means another user's, and of several of his own none is taken for the other."""
    host.unpack()
    add_user(host, OTHER_USER)
    theirs = {user: start_unit(host, user) for user in (USER, OTHER_USER)}
    for name in ("web1", "web1.service"):
        told = module(host, "qemu_vm_info", "root", unit=[name])
        assert told["vms"] == []
        saved, restored = (module(host, kind, "root", unit=name) for kind in ("qemu_save", "qemu_restore"))
        assert (saved["error"], restored["error"]) == ("VmNotFoundError", "ImageNotFoundError")
        for vm in theirs.values():
            assert all(
                f"pid {vm['pid']}, uuid {vm['uuid']}, unit {vm['unit']}" in said["msg"] for said in (told, saved)
            )
            assert all(vm["unit"] in said["cure"] for said in (saved, restored)), (saved["cure"], restored["cure"])
    for kind in ("qemu_save", "qemu_restore"):
        told = module(host, kind, "root", name="web1")
        assert told["error"] == "VmAmbiguousError", told["msg"]
        for user, vm in theirs.items():
            assert f"pid {vm['pid']} of the user {user} (uuid {vm['uuid']}, unit {vm['unit']}" in told["msg"]
    for vm in theirs.values():
        for key in vm:
            told = would_save(host, "root", **{key: vm[key]})
            assert told.get("vm", {}).get("pid") == vm["pid"], told["msg"]
    # The same with one of the host's own, which its name means for root; for a user it may be his own one.
    own = start_unit(host, "root")
    for options in ({"unit": "web1"}, {"name": "web1", "unit": "web1"}, {"name": "web1"}):
        told = would_save(host, "root", **options)
        assert told.get("vm", {}).get("pid") == own["pid"], told["msg"]
        (found,) = module(host, "qemu_vm_info", "root", unit=["web1"])["vms"]
        assert found["pid"] == own["pid"]
    told = would_save(host, USER, unit="web1")
    assert told["error"] == "VmAmbiguousError", told["msg"]
    assert all(f"pid {vm['pid']} of the user" in told["msg"] for vm in (own, theirs[USER]))
    assert str(theirs[OTHER_USER]["pid"]) not in told["msg"]
    told = would_save(host, USER, unit=theirs[USER]["unit"])
    assert told.get("vm", {}).get("pid") == theirs[USER]["pid"], told["msg"]
    for user, vm in (*theirs.items(), ("root", own)):
        assert host.run(f"cat /proc/{vm['pid']}/comm", user).startswith("qemu-system")
