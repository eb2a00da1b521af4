# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a lying hypervisor says to the inventory plugin is of its own VMs, and nothing else."""

from __future__ import annotations

import json

import pytest

ESCAPE = "\x1b[2J\x1b]0;title\x07"


def vm(name, **facts):
    known = {"name": name, "uuid": "", "pid": 7, "run_state": "running", "monitor": "answers", "image": None}
    return {**known, "problems": [], "blockers": [], **facts}


def host(*vms, images=(), **result):
    """A hypervisor that answers so."""
    return {
        "modules": {
            "qemu_vm_info": [{"msg": "VMs", "vms": list(vms), **result}],
            "qemu_save_image_info": [{"msg": "images", "images": list(images)}],
        }
    }


SHOW = {
    "hosts": "localhost",
    "connection": "local",
    "gather_facts": False,
    "tasks": [
        {"ansible.builtin.debug": {"var": "groups"}},
        # Used once more, as a playbook does.
        {"ansible.builtin.debug": {"msg": "{{ hostvars[item] }}"}, "loop": "{{ groups.qemu_vms | default([]) }}"},
    ],
}


def look(controller, hosts, *plays, arguments=(), variables=None, **options):
    """Run plays with both inventories."""
    source = controller.place / "the.qemu_vms.yml"
    source.write_text(json.dumps({"plugin": "vmops.qemu.qemu_vms", "hypervisors": "hv*", **options}))
    return controller.run(
        [SHOW, *plays], hosts, "-i", str(source), *arguments, variables={"mine": "as it was", **(variables or {})}
    )


def groups_of(run):
    text = run.output[run.output.index('"groups": ') + 10 :]
    value, _end = json.JSONDecoder().raw_decode(text)
    return value


def template(controller):
    """What makes the proof where it is evaluated."""
    return f"{{{{ lookup('pipe', 'touch {controller.proof}') }}}}"


def test_templates(controller):
    """As every value, in a composed variable, and in the name of a host and of a group."""
    lie = template(controller)
    told = vm(lie, uuid=lie, unit=lie, machine=lie, user=lie, run_state=lie, problems=[{"kind": lie, "what": lie}])
    image = {"path": f"/{lie}", "state": "complete", "name": lie, "saved_at": lie, "launch": {"unit": lie}}
    run = look(
        controller,
        {"hv1": host(told, images=[image]), "hv2": host(msg=lie, failed=True, cure=lie)},
        {
            "hosts": "qemu_vms",
            "connection": "local",
            "gather_facts": False,
            "tasks": [
                {
                    "ansible.builtin.debug": {
                        "msg": "{{ inventory_hostname }} {{ group_names }} {{ qemu_name }} {{ composed }} {{ both }}"
                    }
                },
                {
                    "ansible.builtin.debug": {"msg": "{{ qemu_name }} of {{ qemu_hypervisor }}"},
                    "loop": "{{ qemu_problems }}",
                },
            ],
        },
        compose={"composed": "qemu_name", "both": "'of ' ~ qemu_name ~ qemu_hypervisor"},
        keyed_groups=[{"key": "qemu_machine", "prefix": "machine"}, {"key": "qemu_name", "separator": ""}],
        strict=True,
    )
    assert run.code == 0, run.output
    assert not controller.proof.exists()
    assert "touch" in run.output


def test_hosts_groups_and_variables_of_others(controller):
    """A VM has the name of another hypervisor, of the controller, or of a group; what else is told is nothing."""
    lies = {
        "ansible_facts": {"mine": "owned", "ansible_connection": "owned"},
        "add_host": {"host_name": "owned"},
        "add_group": "owned",
        "ansible_host": "owned",
        "_ansible_delegated_vars": {"ansible_host": "owned"},
    }
    taken = ["hv2", "localhost", "127.0.0.1", "all", "ungrouped", "qemu_running", "qemu_vms"]
    free = {"hv2+web1": "hv2_web1", "servers": "servers"}
    vms = [vm(name, ansible_host="owned", qemu_hypervisor="hv2", mine="owned") for name in [*taken, *free]]
    run = look(
        controller,
        {"hv1": host(*vms, **lies), "hv2": host(vm("web1"))},
        {
            "hosts": "hv2,localhost",
            "gather_facts": False,
            "tasks": [{"ansible.builtin.debug": {"msg": "I am {{ mine }}"}}],
        },
        variables={"ansible_connection": "lying"},
    )
    assert run.code == 0, run.output
    assert "owned" not in run.output
    assert run.output.count("I am as it was") >= 1
    groups = groups_of(run)
    assert sorted(groups["qemu_on_hv1"]) == sorted([*(f"hv1+{name}" for name in taken), *free.values()])
    assert groups["qemu_on_hv2"] == ["web1"]
    assert run.output.count('"qemu_hypervisor": "hv2"') == 1


def test_names_of_another_hypervisors_vm(controller):
    """It takes neither its place nor its variables."""
    run = look(controller, {"hv1": host(vm("web1", user="liar")), "hv2": host(vm("web1", user="root"))})
    assert run.code == 0, run.output
    groups = groups_of(run)
    assert sorted(groups["qemu_vms"]) == ["hv1+web1", "hv2+web1"]
    assert groups["qemu_on_hv2"] == ["hv2+web1"]


@pytest.mark.parametrize(
    "answer",
    [
        {"vms": "web1"},
        {"vms": {"name": "web1"}},
        {"vms": ["web1"]},
        {"vms": [[["web1"]]]},
        {"vms": [vm(str(number)) for number in range(10_001)]},
        {"vms": [vm("x" * 34 * 2**20)]},
        {"failed": True, "msg": f"no{ESCAPE}\nhv2: ok"},
        {},
        "no JSON",
    ],
    ids=["text", "mapping", "texts", "lists", "many", "long", "failed", "nothing", "no JSON"],
)
def test_what_is_no_answer_is_told(controller, answer):
    """The other hypervisor's VMs are there."""
    liar = host()
    liar["modules"]["qemu_vm_info"] = [answer]
    run = look(controller, {"hv1": liar, "hv2": host(vm("web1"))})
    assert run.code == 0, run.output
    assert groups_of(run)["qemu_vms"] == ["web1"]
    assert "The VMs of hv1 are not known" in run.output
    assert "\x1b" not in run.output
    assert "\nhv2: ok" not in run.output
    assert len(run.output) < 50_000
    assert "Traceback" not in run.output


@pytest.mark.parametrize(
    "name", [f"a{ESCAPE}\nb", "\ud800", "\u202e", "x" * 5000, ""], ids=["escape", "half", "turn", "long", "none"]
)
def test_names_that_cannot_be_shown(controller, name):
    told = vm(name, uuid=name, machine=name, unit=name)
    run = look(controller, {"hv1": host(told)}, keyed_groups=[{"key": "qemu_machine", "prefix": "machine"}])
    assert run.code == 0, run.output
    # Of half a character ansible-core 2.19 and later make a failure, in which the hypervisor is named.
    assert len(groups_of(run).get("qemu_vms", ())) + run.output.count("The VMs of hv1 are not known") == 1
    assert "\x1b" not in run.output
    assert all(len(group) <= 200 for group in groups_of(run))
