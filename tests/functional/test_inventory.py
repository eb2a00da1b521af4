# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the inventory plugin lists of hypervisors with real guests: this host, under several names."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys

import pytest

from support import ssh
from support.guest import COLLECTIONS
from support.observe import Continuity

#: Names that no other VM of this host has.
DB1, WEB1, WEB2, OLD1 = (f"{name}-{os.getpid()}" for name in ("db1", "web1", "web2", "old1"))


class Controller:
    """Ansible, with this host as the hypervisors hv1 and hv2."""

    def __init__(self, place):
        self.place = place
        #: Of each hypervisor's save images.
        self.save_dirs = {name: place / name for name in ("hv1", "hv2")}
        for directory in self.save_dirs.values():
            directory.mkdir(mode=0o700)
        self.hosts = {
            name: {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "ansible_remote_tmp": str(place / "remote"),
                "vmops_qemu_save_dir": f"{{{{ place }}}}/{name}",
            }
            for name in self.save_dirs
        }
        self.variables = {"place": str(place)}
        (place / "ansible.cfg").touch()

    def write(self, **options):
        """Write both inventories."""
        everything = {"all": {"vars": self.variables, "children": {"hypervisors": {"hosts": self.hosts}}}}
        (self.place / "hosts.json").write_text(json.dumps(everything))
        known = {"plugin": "vmops.qemu.qemu_vms", "hypervisors": "hypervisors", "include": [f"*-{os.getpid()}*"]}
        (self.place / "the.qemu_vms.yml").write_text(json.dumps({**known, **options}))

    def run(self, program, *arguments, check=True, **settings):
        """Run one of Ansible's programs with both inventories."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        done = subprocess.run(
            [str(place_of(program)), "-i", "hosts.json", "-i", "the.qemu_vms.yml", *arguments],
            cwd=self.place,
            env={
                **environment,
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                "ANSIBLE_CONFIG": str(self.place / "ansible.cfg"),
                "ANSIBLE_LOCAL_TEMP": str(self.place / "local"),
                "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
                "ANSIBLE_NOCOLOR": "1",
                **settings,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def listed(self, **options):
        """The hosts with their variables, and the groups with their hosts."""
        self.write(**options)
        done = self.run("ansible-inventory", "--list")
        found = json.loads(done.stdout, object_hook=_without_marks)
        variables = found.pop("_meta")["hostvars"]
        return variables, {name: sorted(group.get("hosts", ())) for name, group in found.items()}, done.stderr


def _without_marks(value):
    """A text that is marked as no template is that text."""
    return value.get("__ansible_unsafe", value)


def place_of(program):
    return os.path.join(os.path.dirname(sys.executable), program)


@pytest.fixture
def controller(tmp_path):
    place = tmp_path / "controller"
    place.mkdir()
    return Controller(place)


@pytest.fixture
def save_in(controller, save):
    """Save a VM as one of a hypervisor's."""

    def run(name, hypervisor, path="", **options):
        directory = controller.save_dirs[hypervisor]
        return save(name=name, save_dir=str(directory), **({"path": str(directory / path)} if path else {}), **options)

    return run


def test_states_as_groups(controller, make_guest, save_in):
    for name in (DB1, WEB1, WEB2):
        make_guest(name, block_mib=2)
    save_in(WEB1, "hv1")
    save_in(WEB2, "hv1", after_save="pause")
    controller.hosts.pop("hv2")
    hosts, groups, _errors = controller.listed()
    assert groups["qemu_saved"] == [WEB1]
    assert groups["qemu_running"] == [DB1]
    assert groups["qemu_paused"] == [WEB2]
    assert groups["qemu_on_hv1"] == groups["qemu_vms"] == sorted([DB1, WEB1, WEB2])
    assert groups["hypervisors"] == ["hv1"]
    saved = hosts[WEB1]
    assert saved["qemu_hypervisor"] == "hv1"
    assert saved["qemu_name"] == WEB1
    assert saved["qemu_image"] == str(controller.save_dirs["hv1"] / f"{WEB1}.save")
    assert saved["qemu_restorable"] is True
    assert hosts[WEB2]["qemu_image"] == str(controller.save_dirs["hv1"] / f"{WEB2}.save")
    assert hosts[DB1]["qemu_image"] is None
    assert hosts[DB1]["qemu_pid"] > 1
    assert all(name.startswith("qemu_") for name in set(saved) - {"place"})


def test_saved_vms_are_restored_by_their_group(controller, make_guest, save_in):
    """A VM of each hypervisor: the tasks go to the hypervisor that has it."""
    continuities = [Continuity(make_guest(name, block_mib=2, observer=True)) for name in (DB1, WEB1)]
    save_in(DB1, "hv1")
    save_in(WEB1, "hv2")
    play = [
        {
            "hosts": "qemu_saved",
            "gather_facts": False,
            "tasks": [
                {
                    "vmops.qemu.qemu_restore": {"path": "{{ qemu_image }}"},
                    "delegate_to": "{{ qemu_hypervisor }}",
                }
            ],
        }
    ]
    (controller.place / "restore.yml").write_text(json.dumps(play))
    controller.write()
    done = controller.run("ansible-playbook", "restore.yml")
    assert "changed=1" in done.stdout
    for continuity in continuities:
        continuity.check()


def test_older_saves_and_damaged_images(controller, make_guest, save_in):
    controller.hosts.pop("hv2")
    make_guest(OLD1, block_mib=2)
    save_in(OLD1, "hv1", path="first.save", after_save="resume")
    save_in(OLD1, "hv1")
    (controller.save_dirs["hv1"] / f"bad-{os.getpid()}.save").write_bytes(b"LibvirtQemudSave" + b"\0" * 200)
    hosts, groups, _errors = controller.listed(include=[f"*-{os.getpid()}", ""])
    assert groups["qemu_saved"] == groups["qemu_superseded"] == [OLD1]
    assert hosts[OLD1]["qemu_superseded_images"] == [str(controller.save_dirs["hv1"] / "first.save")]
    assert f"bad-{os.getpid()}" in groups["qemu_invalid"]
    assert f"bad-{os.getpid()}" in groups["qemu_not_restorable"]


def test_a_name_on_two_hypervisors(controller, make_guest, save_in):
    """This host's running VM is both hypervisors'; the saved one is one's."""
    make_guest(DB1, block_mib=2)
    make_guest(WEB1, block_mib=2)
    save_in(WEB1, "hv2")
    _hosts, groups, _errors = controller.listed()
    assert groups["qemu_running"] == [f"hv1+{DB1}", f"hv2+{DB1}"]
    assert groups["qemu_saved"] == [WEB1]
    _hosts, groups, _errors = controller.listed(host_names="hypervisor_and_vm")
    assert groups["qemu_saved"] == [f"hv2+{WEB1}"]


def test_constructed(controller, make_guest, save_in):
    controller.hosts.pop("hv2")
    make_guest(DB1, block_mib=2)
    make_guest(WEB1, block_mib=2)
    save_in(WEB1, "hv1")
    hosts, groups, _errors = controller.listed(
        compose={"ansible_host": "qemu_name ~ '.guests.example.com'"},
        groups={
            "recent": "qemu_state == 'saved'"
            " and (now(true) - (qemu_saved_at | to_datetime('%Y-%m-%dT%H:%M:%S.%fZ'))).total_seconds() < 3600",
        },
        keyed_groups=[{"key": "qemu_machine", "prefix": "machine"}],
        strict=True,
    )
    assert hosts[DB1]["ansible_host"] == f"{DB1}.guests.example.com"
    assert groups["recent"] == [WEB1]
    (machines,) = [name for name in groups if name.startswith("machine_")]
    assert "-" not in machines
    assert groups[machines] == [DB1, WEB1]
    controller.write(compose={"wrong": "qemu_nothing.at_all"}, strict=True)
    done = controller.run("ansible-inventory", "--list", check=False)
    assert done.returncode
    assert "Could not set wrong" in done.stderr


def test_cache(controller, make_guest, save_in):
    """What was cached is shown, with what was not known then; with --flush-cache it is asked for anew."""
    make_guest(DB1, block_mib=2)
    controller.hosts["hv2"]["ansible_python_interpreter"] = "/nowhere/python"
    cache = {
        "cache": True,
        "cache_plugin": "ansible.builtin.jsonfile",
        "cache_connection": str(controller.place / "cache"),
    }
    _hosts, groups, first_errors = controller.listed(**cache)
    assert groups["qemu_running"] == [DB1]
    save_in(DB1, "hv1")
    _hosts, groups, errors = controller.listed(**cache)
    assert groups["qemu_running"] == [DB1]
    for text in (first_errors, errors):
        assert "The VMs of hv2 are not known" in " ".join(text.split())
    found = json.loads(controller.run("ansible-inventory", "--list", "--flush-cache").stdout)
    assert found["qemu_saved"]["hosts"] == [DB1]


def test_what_cannot_be_asked(controller, make_guest):
    make_guest(DB1, block_mib=2)
    controller.hosts["hv2"].update(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
    _hosts, groups, errors = controller.listed()
    assert groups["qemu_running"] == [DB1]
    assert "The VMs of hv2 are not known" in errors
    controller.write(unreachable="fail")
    done = controller.run("ansible-inventory", "--list", check=False)
    assert done.returncode
    assert "The VMs of hv2 are not known" in " ".join(done.stderr.split())
    controller.write(hypervisors="nobody")
    done = controller.run("ansible-inventory", "--list", check=False)
    assert done.returncode
    assert "No host matches hypervisors, which is 'nobody'" in " ".join(done.stderr.split())


def test_a_hypervisor_that_hangs_is_given_up(controller, make_guest):
    make_guest(DB1, block_mib=2)
    slow = controller.place / "slow"
    pids = controller.place / "pids"
    slow.write_text(f"#!/bin/sh\necho $$ >>{pids}\nexec sleep 600\n")
    slow.chmod(0o755)
    controller.hosts["hv2"]["ansible_python_interpreter"] = str(slow)
    try:
        _hosts, groups, errors = controller.listed(timeout=15)
    finally:
        for pid in pids.read_text().split():  # nobody else ends them
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    assert groups["qemu_running"] == [DB1]
    assert "The VMs of hv2 are not known" in errors


@pytest.fixture
def server(tmp_path):
    """An SSH server on this host."""
    problem = ssh.missing()
    if problem:
        pytest.skip(problem)
    server = ssh.SshServer(tmp_path / "ssh")
    yield server
    server.close()


def test_connection_variables_of_groups_and_become(controller, make_guest, save_in, server):
    """By SSH, with variables of a group's file; the key is named on the command line, as a variable."""
    make_guest(DB1, block_mib=2)
    save_in(DB1, "hv1")
    controller.hosts = {"hv1": {}}
    (controller.place / "group_vars").mkdir()
    variables = {
        "ansible_connection": "ssh",
        "ansible_host": "127.0.0.1",
        "ansible_port": ssh.PORT,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": "{{ key }}",
        "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={server.known_hosts}",
        "ansible_ssh_executable": str(controller.place / "ssh"),
        "ansible_python_interpreter": sys.executable,
        "ansible_remote_tmp": str(controller.place / "remote"),
        "ansible_become_method": "ansible.builtin.su",
        "ansible_become_exe": str(controller.place / "su"),
        "vmops_qemu_save_dir": "{{ place }}/hv1",
    }
    (controller.place / "group_vars" / "hypervisors.json").write_text(json.dumps(variables))
    for name, command in (
        ("ssh", shlex.join([*server.inside, "ssh"])),
        ("su", f"echo >> {controller.place}/became; exec su"),
    ):
        (controller.place / name).write_text(f'#!/bin/sh\n{"exec " if name == "ssh" else ""}{command} "$@"\n')
        (controller.place / name).chmod(0o755)
    controller.write(become=True)
    arguments = ("--list", "-e", json.dumps({"key": str(server.key)}))
    # Else Ansible sees that root need not become root.
    found = json.loads(controller.run("ansible-inventory", *arguments, ANSIBLE_BECOME_ALLOW_SAME_USER="1").stdout)
    assert found["qemu_saved"]["hosts"] == [DB1]
    assert found["qemu_on_hv1"]["hosts"] == [DB1]
    assert "Accepted publickey for root" in server.log()
    assert (controller.place / "became").exists()
    (controller.place / "became").unlink()
    controller.write()
    found = json.loads(controller.run("ansible-inventory", *arguments, ANSIBLE_BECOME_ALLOW_SAME_USER="1").stdout)
    assert found["qemu_saved"]["hosts"] == [DB1]
    assert not (controller.place / "became").exists()


def test_localhost_and_options_of_the_command_line(controller, make_guest, save_in):
    """Without another inventory; what the program is asked to do with hosts is not done with the hypervisors."""
    make_guest(DB1, block_mib=2)
    save_in(DB1, "hv1")
    controller.hosts.clear()
    save_dir = str(controller.save_dirs["hv1"])
    _hosts, groups, _errors = controller.listed(hypervisors="localhost", save_dir=save_dir)
    assert groups["qemu_saved"] == groups["qemu_on_localhost"] == [DB1]
    (controller.place / "show.yml").write_text(
        json.dumps(
            [
                {
                    "hosts": "qemu_saved",
                    "gather_facts": False,
                    "tasks": [{"ansible.builtin.debug": {"var": "qemu_state"}, "tags": "wanted"}],
                }
            ]
        )
    )
    options = ("--check", "--diff", "--tags", "wanted", "--limit", "qemu_saved", "-e", "more=1")
    assert '"qemu_state": "saved"' in controller.run("ansible-playbook", "show.yml", *options).stdout
    assert DB1 in controller.run("ansible-playbook", "show.yml", "--list-hosts").stdout
    controller.run("ansible-playbook", "show.yml", "--syntax-check")
    controller.run("ansible-inventory", "--graph", "-vvvv")
