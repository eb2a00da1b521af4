# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook of a maintenance, with an honest host and one that lies; nothing here is a VM, all is told."""

from __future__ import annotations

import json
import os
import stat

PLAYBOOK = "vmops.qemu.host_maintenance"
ESCAPE = "\x1b[2J\x1b]0;title\x07"
QUICK = {
    "host_maintenance_reboot": False,
    "managed_save_interval": 0,
    "managed_restore_interval": 0,
    "managed_save_timeout": 30,
    "managed_restore_timeout": 30,
}


def maintained(name="web1", saved=None, restored=None, found=None, image=None, command=None):
    """What a host answers in a maintenance of one VM; the parameters are what it says besides."""
    path = f"/var/lib/vmops/save/{name}.save"
    idle = {"operations": [], "jobs": {}, "library": True}
    save = {"changed": True, "msg": "saved", "image": {"path": path, "allocated": 2**20, "name": name}, "duration": 1.0}
    save |= {"stopped_at": 1764000000.0, "throughput": 2**20, **(saved or {})}
    restore = {"changed": True, "msg": "restored", "image": {"path": path}, "duration": 1.0, "running_at": 1764000009.0}
    predicted = {
        "changed": True,
        "msg": "would be saved",
        "space_needed": 2**20,
        "space_free": 2**40,
        "file_system": "/",
    }
    vm = {"name": name, "pid": 4711, "launch": {"how": "command"}, **(found or {})}
    return {
        "modules": {
            "qemu_vm_info": [{"msg": "one", "vms": [vm]}],
            # in check mode of the first play, in that of the second
            "qemu_save": [predicted],
            "async_wrapper": [{"ansible_job_id": "j1", "started": 1}, {"ansible_job_id": "j2", "started": 1}],
            "qemu_progress": [
                idle,  # before each of the two checks
                idle,
                idle,  # before the save
                {**idle, "jobs": {"j1": save}},
                idle,  # forgotten
                idle,  # what is at work before the restore
                idle,
                {**idle, "jobs": {"j2": {**restore, **(restored or {})}}},
                idle,
            ],
            "qemu_save_image_info": [
                {"msg": "one", "images": [{"name": name, "path": path, "state": "complete", **(image or {})}]}
            ],
            "command": [command or {"rc": 0}],
        }
    }


def maintain(controller, hosts, *arguments, **variables):
    """Run it in one batch; the run and the report."""
    variables = {**QUICK, "host_maintenance_report_dir": str(controller.place / "reports"), **variables}
    run = controller.run(PLAYBOOK, hosts, "-e", "host_maintenance_serial=100%", *arguments, variables=variables)
    report = controller.place / "reports" / "host-maintenance.json"
    return run, json.loads(report.read_text()) if report.exists() else None


def states(report):
    return {host["host"]: host["state"] for host in report["hosts"]}


def page(controller):
    return (controller.place / "reports" / "host-maintenance.html").read_text()


def test_honest_hosts(controller):
    """What the lies below are told beside."""
    run, report = maintain(controller, {"hv1": maintained(), "hv2": maintained("db1")})
    assert run.code == 0, run.output
    assert states(report) == {"hv1": "done", "hv2": "done"}
    assert [vm["state"] for host in report["hosts"] for vm in host["vms"]] == ["restored", "restored"]
    assert report["rates"]["hv1"]["save"] > 0


def test_names_and_messages_are_no_templates(controller):
    lie = f"{{{{ lookup('pipe', 'touch {controller.proof}') }}}}"
    liar = maintained(
        lie,
        saved={"msg": lie, "image": {"path": f"/{lie}", "name": lie}},
        restored={"msg": lie, "failed": True, "error": lie},
        image={"path": f"/{lie}", "problems": [lie]},
        command={"rc": 1, "msg": lie, "failed": True},
    )
    liar["modules"]["qemu_save_image_info"][0]["images"].append({"state": "invalid", "path": lie, "problems": [lie]})
    run, report = maintain(
        controller,
        {"hv1": liar, "hv2": maintained("db1")},
        "-e",
        json.dumps({"managed_restore_check": ["/bin/true", "{name}"], "managed_restore_check_retries": 1}),
    )
    assert not controller.proof.exists()
    assert states(report)["hv2"] == "done", run.output
    assert "lookup(&#39;pipe&#39;" in page(controller)
    assert report["hosts"][0]["vms"][0]["name"] == lie


def test_names_and_messages_are_no_templates_in_a_template_of_ones_own(controller):
    """Neither Ansible nor Jinja2 looks for one in what it has rendered, and markup is escaped in it."""
    lie = f"{{{{ lookup('pipe', 'touch {controller.proof}') }}}}{{{{ 7 * 7 }}}}<b>"
    template = controller.place / "mine.html.j2"
    template.write_text("{% for host in report.hosts %}<p>{{ host.name }} {{ host.vms[0].name }}</p>{% endfor %}")
    hosts = {"hv1": maintained(lie), "hv2": maintained("db1")}
    run, report = maintain(controller, hosts, host_maintenance_report_template=str(template))
    assert run.code == 0, run.output
    assert not controller.proof.exists()
    assert states(report) == {"hv1": "done", "hv2": "done"}
    text = page(controller)
    assert "{{ 7 * 7 }}&lt;b&gt;</p>" in text
    assert text.endswith("<p>hv2 db1</p>")


def test_broken_template_of_ones_own_stops_before_a_host_is_touched(controller):
    template = controller.place / "mine.html.j2"
    template.write_text("\n{{ report.nothing }}")
    hosts = {"hv1": maintained(), "hv2": maintained("db1")}
    run, report = maintain(controller, hosts, host_maintenance_report_template=str(template))
    assert run.code != 0
    assert f"{template}, line 2: " in run.output
    assert not [call for call in run.calls if "async_wrapper" in call], "no host was touched"
    assert states(report) == {"hv1": "not reached", "hv2": "not reached"}


def test_failed_hosts_message_is_no_template(controller):
    """Of the host itself: the check before a host is touched."""
    lie = f"{{{{ lookup('pipe', 'touch {controller.proof}') }}}}"
    liar = {"modules": {"qemu_vm_info": [{"failed": True, "msg": f"{lie}{ESCAPE}\nhv2: ok"}]}}
    run, report = maintain(controller, {"hv1": liar, "hv2": maintained("db1")})
    assert not controller.proof.exists()
    assert states(report) == {"hv1": "failed", "hv2": "not reached"}
    assert "\x1b" not in run.output
    assert "\nhv2: ok" not in run.output


def test_escape_sequences_in_names_are_not_shown(controller):
    name = f"web1{ESCAPE}\nTASK [all is well]\u202e"
    bad = {"failed": True, "msg": name}
    liar = maintained(name, restored=bad, image={"problems": [name]})
    liar["modules"]["qemu_save_image_info"][0]["images"].append({"state": "invalid", "path": name, "problems": [name]})
    hosts = {
        "hv1": liar,
        "hv2": maintained(name, saved=bad),
        "hv3": maintained(name),
        "hv4": maintained(name, found={"launch": {"how": "none", "reason": name}}),
    }
    check = {"managed_restore_check": ["/bin/true"], "managed_restore_check_retries": 1}
    for chosen in ({key: hosts[key] for key in ("hv1", "hv2", "hv3")}, {"hv4": hosts["hv4"]}):
        run, _report = maintain(controller, chosen, "-e", json.dumps(check))
        assert "\x1b" not in run.output
        assert "\nTASK [all is well]" not in run.output
        assert "\u202e" not in run.output
        assert "\u202e" not in page(controller)


FACTS = {
    "host_maintenance_report_dir": "/owned",
    "host_maintenance_tasks": "/owned.yml",
    "host_maintenance_title": "owned",
    "host_maintenance_rates_from": "/etc/passwd",
    "host_maintenance_asked": {"report_dir": "/owned", "has_tasks": True, "tasks": "/owned.yml"},
    "host_maintenance_host": {"host": "hv2", "state": "done", "msg": "owned", "vms": []},
    "host_maintenance_report_data": {},
    "host_maintenance_report_template": "/owned",
    "host_maintenance_batch": [],
    "host_maintenance_entries": [],
    "ansible_play_hosts_all": [],
    "ansible_check_mode": True,
    "hostvars": {},
    "item": {"suffix": "owned", "content": "owned"},
    "lookup": "owned",
    "query": "owned",
    "now": "owned",
    "range": "owned",
    "omit": "owned",
}


def owned(controller):
    """The facts, with paths that can be written."""
    return json.loads(json.dumps(FACTS).replace('"/owned', f'"{controller.place}/owned'))


def test_facts_in_answers_of_the_collection_choose_nothing(controller):
    liar = maintained()
    for answers in liar["modules"].values():
        for answer in answers:
            answer["ansible_facts"] = owned(controller)
    run, report = maintain(controller, {"hv1": liar, "hv2": maintained("db1")})
    assert run.code == 0, run.output
    assert states(report) == {"hv1": "done", "hv2": "done"}
    assert "owned" not in run.output
    assert not (controller.place / "owned").exists()


def test_facts_in_answers_of_other_tasks_choose_nothing(controller):
    """Of the maintenance itself, whose modules are Ansible's or others'."""
    tasks = controller.place / "tasks.yml"
    tasks.write_text(json.dumps([{"ansible.builtin.command": {"argv": ["/bin/true"]}}]))
    (controller.place / "owned.yml").write_text(
        json.dumps(
            [{"ansible.builtin.file": {"path": str(controller.proof), "state": "touch"}, "delegate_to": "localhost"}]
        )
    )
    liar = maintained(command={"rc": 0, "ansible_facts": owned(controller)})
    run, report = maintain(controller, {"hv1": liar, "hv2": maintained("db1")}, host_maintenance_tasks=str(tasks))
    assert "hv1 command" in run.calls
    assert states(report)["hv2"] == "done", run.output
    assert report["title"] == "Host maintenance"
    assert {vm["name"] for host in report["hosts"] for vm in host["vms"]} == {"web1", "db1"}
    assert not (controller.place / "owned").exists()
    assert not controller.proof.exists()
    # What is left of it on the controller belongs to it, and is where it was asked for.
    assert stat.S_IMODE(os.stat(controller.place / "reports").st_mode) == 0o700


def test_facts_of_an_earlier_play_are_refused(controller):
    """Of one that had gathered them, before this playbook knew of the host."""
    facts = {"setup": [{"ansible_facts": owned(controller)}]}
    liar = maintained()
    liar["modules"] |= facts
    play = [
        {"hosts": "all", "gather_facts": True, "tasks": []},
        {"ansible.builtin.import_playbook": PLAYBOOK},
    ]
    variables = {**QUICK, "host_maintenance_report_dir": str(controller.place / "reports")}
    run = controller.run(play, {"hv1": liar, "hv2": maintained("db1")}, variables=variables)
    assert run.code != 0
    assert "Facts of hv1 are named as variables of this playbook" in run.output
    assert "hv1 qemu_vm_info" not in run.calls
    assert "hv2 async_wrapper" not in run.calls, "no host was touched"
    assert not (controller.place / "owned").exists()
    report = json.loads((controller.place / "reports" / "host-maintenance.json").read_text())
    assert states(report) == {"hv1": "failed", "hv2": "not reached"}


NOT_NUMBERS = ["1e30", "253402300799", "-1", "NaN", "Infinity", "1e400", "9" * 400, '"x"', "[1]", '{"a": 1}', "true"]


def test_figures_of_one_host_do_not_fail_anothers_report(controller):
    """Times of events, sizes, rates, durations: each host tells another number for all of them."""
    mark = "THE-NUMBER"
    hosts = {"honest": maintained("db1")}
    for place, number in enumerate(NOT_NUMBERS):
        liar = maintained(
            saved={
                "stopped_at": mark,
                "throughput": mark,
                "duration": mark,
                "image": {"allocated": mark, "path": "/a"},
            },
            restored={"running_at": mark, "duration": mark},
        )
        # As texts, since JSON of Python's does not write all of them.
        liar["modules"] = {
            name: [json.dumps(answer).replace(f'"{mark}"', number) for answer in answers]
            for name, answers in liar["modules"].items()
        }
        hosts[f"liar{place}"] = liar
    run, report = maintain(controller, hosts)
    assert set(states(report).values()) == {"done"}, run.output
    right, *wrong = (host["vms"][0] for host in report["hosts"])
    for number, vm in zip(NOT_NUMBERS, wrong):
        assert {"stopped_at", "running_at"} <= set(vm["disbelieved"]), number
    assert right["disbelieved"] == []
    assert right["stopped_at"] == 1764000000.0
    text = page(controller)
    assert text.count("it reported figures that cannot be right") >= len(NOT_NUMBERS)
    assert len(text) < 100_000


def test_prediction_that_cannot_be_stops_before_a_host_is_touched(controller):
    liar = maintained()
    liar["modules"]["qemu_save"] = [{"changed": True, "msg": "would", "space_needed": -(2**50), "space_free": 1}]
    run, report = maintain(controller, {"hv1": liar, "hv2": maintained("db1")})
    assert run.code != 0
    assert states(report) == {"hv1": "failed", "hv2": "not reached"}
    assert "figures that cannot be" in report["hosts"][0]["msg"]


def test_many_vms_with_long_names(controller):
    """A page of what one host tells stays small, and the other's row stays in it."""
    names = [f"{'x' * 5000}{number}" for number in range(2000)]
    liar = maintained()
    liar["modules"]["qemu_vm_info"] = [{"msg": "many", "vms": [{"name": name, "pid": 1} for name in names]}]
    liar["modules"]["qemu_save"] = [{"failed": True, "msg": "m" * 5000}]
    variables = {"managed_save_vms": [], "managed_save_include": ["*1999"]}
    _run, report = maintain(controller, {"hv1": liar, "hv2": maintained("db1")}, **variables)
    assert len(page(controller)) < 2**20
    assert set(states(report)) == {"hv1", "hv2"}
