# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook of a maintenance, with an honest host and one that lies; nothing here is a VM, all is told."""

from __future__ import annotations

import json
import os
import stat

import pytest

PLAYBOOK = "vmops.qemu.host_maintenance"
ESCAPE = "\x1b[2J\x1b]0;title\x07"
QUICK = {
    "host_maintenance_reboot": False,
    "managed_save_interval": 0,
    "managed_restore_interval": 0,
}


def maintained(name="web1", saved=None, restored=None, found=None, left_alone=(), unusable=(), command=None, plan=None):
    """What a host answers in a maintenance of one VM; the parameters are what it says besides."""
    path = f"/var/lib/vmops/save/{name}.save"
    save = {"name": name, "state": "saved", "changed": True, "msg": "saved", "duration": 1.0, "throughput": 2**20}
    save |= {"image": {"path": path, "allocated": 2**20, "name": name}, "stopped_at": 1764000000.0, **(saved or {})}
    restore = {"name": name, "state": "restored", "changed": True, "msg": "restored", "duration": 1.0, "path": path}
    restore |= {"image": {"path": path}, "running_at": 1764000009.0, **(restored or {})}
    predicted = {"name": name, "state": "predicted", "changed": True, "msg": "would be saved", "space_needed": 2**20}
    figures = {"bytes": 2**20, "save_seconds": 1.0, "restore_seconds": 1.0}
    nothing = {"changed": False, "msg": "No VM is to be restored", "vms": [], "failures": [], "left_alone": []}
    nothing["running"] = [{"name": name, "pid": 4711}]
    return {
        "modules": {
            # in check mode of the first play
            "qemu_managed_restore": [nothing],
            "qemu_managed_save": [run_of(predicted, **{"unsaved": [], "predicted": figures, **(plan or {})})],
            "async_wrapper": [
                {"ansible_job_id": job, "started": 1, "results_file": f"/root/.ansible_async/{job}"}
                for job in ("j1", "j2")
            ],
            "job": [
                run_of(save, unsaved=[], predicted=figures),
                run_of(
                    restore,
                    unhealthy=[],
                    left_alone=list(left_alone),
                    unusable=list(unusable),
                    running=[{"name": name, "pid": 4711, **(found or {})}],
                ),
            ],
            "qemu_progress_info": [{"operations": [], "runs": []}],
            "command": [command or {"rc": 0}],
        }
    }


def run_of(vm, **more):
    """What a run over a host's VMs returns, which has one VM and fails where that has failed."""
    failed = vm.get("failed", False)
    failures = [vm["name"]] if failed else []
    told = {
        "changed": True,
        "failed": failed,
        "msg": vm["msg"],
        "table": [vm["msg"]],
        "vms": [vm],
        "failures": failures,
    }
    return {**told, "started_at": 1764000000.0, "duration": 1.0, **more}


def maintain(controller, hosts, *arguments, **variables):
    """Run it in one batch; the run and the report."""
    variables = {**QUICK, "host_maintenance_report_dir": str(controller.place / "reports"), **variables}
    asked = ["-e", "host_maintenance_hosts=all", "-e", "host_maintenance_serial=100%"]
    run = controller.run(PLAYBOOK, hosts, *asked, *arguments, variables=variables)
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
    assert [host["predicted"]["bytes"] for host in report["hosts"]] == [2**20, 2**20]


def test_what_became_of_the_hosts_is_handed_on(controller):
    (controller.place / "ansible.cfg").write_text("[defaults]\nshow_custom_stats = true\n")
    run, report = maintain(controller, {"hv1": maintained(), "hv2": maintained("db1", found={"name": "another"})})
    line = next(line for line in run.output.splitlines() if line.strip().startswith("RUN: "))
    handed_on = json.loads(line.partition("RUN: ")[2])["host_maintenance"]
    assert {name: host["state"] for name, host in handed_on.items()} == {"hv1": "done", "hv2": "failed"}
    assert handed_on == {host["host"]: host for host in report["hosts"]}


def test_report_lands_where_the_controller_stands(controller):
    run, report = maintain(controller, {"hv1": maintained()}, host_maintenance_report_dir="")
    assert run.code == 0, run.output
    assert states(report) == {"hv1": "done"}
    assert stat.S_IMODE(os.stat(controller.place / "reports").st_mode) == 0o700
    for name in ("host-maintenance.json", "host-maintenance.html"):
        assert stat.S_IMODE(os.stat(controller.place / "reports" / name).st_mode) == 0o600


def test_report_that_cannot_be_written_is_told_before_a_host_is_touched(controller):
    run, _report = maintain(controller, {"hv1": maintained()}, host_maintenance_report_dir="/dev/null/reports")
    assert run.code != 0
    assert "the report cannot be written (host_maintenance_report_dir, host_maintenance_report_template)" in run.output
    assert "/dev/null/reports/host-maintenance.json cannot be written: Not a directory" in run.output
    assert "hv1 async_wrapper" not in run.calls


def test_names_and_messages_are_no_templates(controller):
    lie = f"{{{{ lookup('pipe', 'touch {controller.proof}') }}}}"
    of_image = {"path": f"/{lie}", "name": lie, "state": lie, "problems": [lie], "why": lie, "saved_at": lie}
    liar = maintained(
        lie,
        saved={"msg": lie, "image": {"path": f"/{lie}", "name": lie}},
        restored={"msg": lie, "failed": True, "error": lie, "health_check": lie},
        left_alone=[of_image],
        unusable=[of_image],
        plan={"msg": lie, "unsaved": [{"name": lie, "pid": 1, "reason": lie}]},
    )
    run, report = maintain(controller, {"hv1": liar, "hv2": maintained("db1")})
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
    of_image = {"path": name, "name": name, "state": name, "problems": [name], "why": name, "saved_at": name}
    unsaved = [{"name": name, "pid": 1, "reason": name}]
    shown = {"managed_save_interval": 1, "managed_restore_interval": 1}
    hosts = {
        "hv1": maintained(name, restored=bad, left_alone=[of_image], unusable=[of_image]),
        "hv2": maintained(name, saved=bad),
        "hv3": maintained(name, plan={"unsaved": unsaved}),
        "hv4": maintained(name, plan={"failed": True, "msg": name, "unsaved": unsaved}),
        "hv5": maintained(name, found={"name": f"not {name}"}),
    }
    line = {"number": 1, "text": name, "failed": True}
    for host in hosts.values():
        run = {"operation": "save", "pid": 7, "lines": [line]}
        at_work = {"vm": name, "operation": name, "phase": name}
        host["modules"]["qemu_progress_info"] = [{"runs": [run], "operations": [at_work]}]
        host["modules"]["job"].insert(0, {"started": True, "finished": False})
    for chosen in ({key: hosts[key] for key in ("hv1", "hv2", "hv3", "hv5")}, {"hv4": hosts["hv4"]}):
        run, _report = maintain(controller, chosen, **shown)
        assert "\x1b" not in run.output
        assert "\nTASK [all is well]" not in run.output
        # The result of a failed task is shown as JSON by Ansible, which leaves the marks of direction in its values.
        lines = [line for line in run.output.splitlines() if not line.startswith("fatal: [")]
        assert [line for line in lines if "\u202e" in line] == []
        assert "\u202e" not in page(controller)


FACTS = {
    "host_maintenance_report_dir": "/owned",
    "host_maintenance_tasks": "/owned.yml",
    "host_maintenance_title": "owned",
    "managed_save_result": {"msg": "owned", "vms": [], "failures": []},
    "managed_restore_result": {"msg": "owned", "vms": [], "failures": []},
    "vmops_qemu_save_dir": "/owned",
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
    asked = ["-e", "host_maintenance_hosts=all"]
    run = controller.run(play, {"hv1": liar, "hv2": maintained("db1")}, *asked, variables=variables)
    assert run.code != 0
    assert "Facts of hv1 are named as variables of this role" in run.output
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
            restored={"running_at": mark, "duration": mark, "image_bytes": mark},
        )
        for job in liar["modules"]["job"]:
            job |= {"started_at": mark, "duration": mark, "predicted": {"bytes": mark, "save_seconds": mark}}
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
    lie = {"changed": True, "msg": "would", "vms": [{"name": "web1", "space_needed": -(2**50), "space_free": 1}]}
    liar = maintained()
    liar["modules"]["qemu_managed_save"] = [lie]
    run, report = maintain(controller, {"hv1": liar, "hv2": maintained("db1")})
    assert run.code != 0
    assert states(report) == {"hv1": "failed", "hv2": "not reached"}
    assert not [call for call in run.calls if call.endswith(" async_wrapper")], "no host was touched"
    assert "figures that cannot be" in report["hosts"][0]["msg"]


def test_many_vms_with_long_names(controller):
    """A page of what one host tells stays small, and the other's row stays in it."""
    names = [f"{'x' * 5000}{number}" for number in range(2000)]
    vms = [{"name": name, "state": "failed", "failed": True, "msg": "m" * 5000} for name in names]
    told = {"failed": True, "msg": "m" * 5000, "vms": vms, "failures": names}
    unsaved = [{"name": name, "pid": 1, "reason": "m" * 5000} for name in names]
    liar = maintained(plan={**told, "unsaved": unsaved})
    _run, report = maintain(controller, {"hv1": liar, "hv2": maintained("db1")})
    assert len(page(controller)) < 2**20
    assert set(states(report)) == {"hv1", "hv2"}


def test_jobs_that_tell_of_no_save_fail_their_hosts_alone(controller):
    """Whatever is left out of a result: the report has the host, and the others are done."""
    hosts = {"honest": maintained("db1")}
    for number, job in enumerate([{}, {"msg": "done"}, {"vms": None}, {"vms": [{"name": "web1"}]}, [1], "done"]):
        liar = maintained()
        liar["modules"]["job"][0] = job
        hosts[f"liar{number}"] = liar
    run, report = maintain(controller, hosts)
    assert states(report) == {name: "done" if name == "honest" else "failed" for name in hosts}, run.output
    assert "Traceback" not in run.output


def test_vm_that_was_saved_and_is_not_back_is_told_of(controller):
    """Whatever its restore says: what runs at the end is compared with what was saved."""
    liar = maintained(found={"name": "another"})
    run, report = maintain(controller, {"hv1": liar, "hv2": maintained("db1")})
    assert run.code != 0
    assert states(report) == {"hv1": "failed", "hv2": "done"}
    assert "These VMs were saved, or shut down, and do not run: web1" in report["hosts"][0]["msg"]


RUNS = {"name": "web2", "state": "predicted", "changed": True, "msg": "would be saved"}
LEFT = {"name": "web2", "pid": 7, "reason": "it is excluded"}


def test_host_is_rebooted_only_when_it_says_that_no_vm_runs(controller):
    """It is asked between the saves and the reboot; whatever else it says, its VMs come back."""
    free = [
        {"vms": [], "unsaved": []},
        {"vms": [{**RUNS, "state": "saved", "changed": False}], "unsaved": []},
        {"vms": [], "unsaved": [{**LEFT, "fate": "ignored"}, {**LEFT, "fate": "no guest"}]},
    ]
    not_free = [
        {"vms": [RUNS], "unsaved": []},
        {"vms": [{**RUNS, "state": "failed", "failed": True}], "unsaved": []},
        {"vms": [], "unsaved": [{**LEFT, "fate": ""}]},
        {"failed": True, "vms": [], "unsaved": [], "msg": "not every VM may be found"},
        {"failed": True, "msg": "no Python here"},
        {"vms": []},
        "nonsense",
    ]
    hosts = {}
    for number, answer in enumerate([*free, *not_free]):
        hosts[f"hv{number}"] = host = maintained()
        host["modules"]["qemu_managed_save"].append(answer)
    run, report = maintain(controller, hosts, host_maintenance_reboot=True)
    # No reboot comes to its end here: none of them says what system it is.
    assert set(states(report).values()) == {"failed"}, run.output
    for number, host in enumerate(report["hosts"]):
        reboots = number < len(free)
        assert (f"{host['host']} setup" in run.calls) == reboots, host
        assert (f"{host['host']} was not rebooted" in host["msg"]) != reboots, host
        assert [vm["state"] for vm in host["vms"]] == ["saved" if reboots else "restored"], host


@pytest.mark.parametrize(
    "asked", [("--skip-tags", "save"), ("--skip-tags", "preflight"), ("--start-at-task", "Reboot")]
)
def test_part_of_a_maintenance_does_not_reboot_what_was_not_saved(controller, asked):
    run, _report = maintain(controller, {"hv1": maintained()}, *asked, host_maintenance_reboot=True)
    assert run.code != 0, run.output
    assert "hv1 setup" not in run.calls
    assert "hv1 async_wrapper" not in run.calls


def test_host_is_left_alone_only_where_no_vm_runs_or_waits(controller):
    nothing = {"msg": "nothing to do", "vms": [], "failures": [], "unsaved": [], "running": []}
    cases = [
        ({}, {}, False),
        ({"unsaved": [{**LEFT, "fate": "no guest"}]}, {}, False),
        ({"unsaved": [{**LEFT, "fate": ""}]}, {}, True),
        ({"unsaved": [{**LEFT, "fate": "ignored"}]}, {}, True),
        ({}, {"started": [{"name": "web2", "state": "predicted", "changed": True}]}, True),
    ]
    hosts = {}
    for number, (plan, restores, _begins) in enumerate(cases):
        hosts[f"hv{number}"] = host = maintained()
        answers = {"qemu_managed_save": plan, "qemu_managed_restore": restores}
        host["modules"] |= {module: [{**nothing, **answer}] for module, answer in answers.items()}
        host["modules"]["job"] = [nothing]
    run, _report = maintain(controller, hosts)
    assert run.code == 0, run.output
    assert [f"hv{number} async_wrapper" in run.calls for number in range(len(cases))] == [case[2] for case in cases]


def test_image_that_cannot_be_restored_is_told_before_a_host_is_touched(controller):
    """But for one in whose place the VM is saved."""
    own = {"path": "/var/lib/vmops/save/web1.save", "name": None, "state": "invalid", "problems": ["cut off"]}
    found = {"failed": True, "error": "HostRunError", "msg": "cannot be restored"}
    hosts = {"hv1": maintained(), "hv2": maintained("db1"), "hv3": maintained("db2")}
    for host, known in (("hv1", {"unusable": [own]}), ("hv2", {"unusable": [own]}), ("hv3", {})):
        hosts[host]["modules"]["qemu_managed_restore"][0] |= {**found, **known}
    image = {"path": own["path"], "state": "absent"}
    hosts["hv1"]["modules"]["qemu_managed_save"][0]["vms"][0]["image"] = image
    run, report = maintain(controller, hosts)
    assert run.code != 0
    assert states(report) == {"hv1": "not reached", "hv2": "failed", "hv3": "failed"}, run.output
    assert report["hosts"][1]["msg"].startswith(f"{own['path']} cannot be restored: cut off. ")
    assert report["hosts"][2]["msg"].startswith("cannot be restored ")
    assert not [call for call in run.calls if call.endswith(" async_wrapper")], "no host was touched"
