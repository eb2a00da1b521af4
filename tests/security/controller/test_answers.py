# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host's answer to one task is that task's result, and nothing else."""

from __future__ import annotations

import json

import pytest

ESCAPE = "\x1b[2J\x1b]0;title\x07"
JOB = {"ansible_job_id": "j1", "started": 1, "finished": 0, "results_file": "/root/.ansible_async/j1"}
MODULES = (
    *("qemu_save", "qemu_restore", "qemu_vm_info", "qemu_save_image_info", "qemu_save_image", "qemu_progress_info"),
    "qemu_host_info",
)
#: Those that do all VMs of a host: in check mode at once, else in a background job that is followed.
RUNS = ("qemu_managed_save", "qemu_managed_restore")
OPTIONS = {
    "qemu_save": {"name": "web1"},
    "qemu_restore": {"name": "web1"},
    "qemu_save_image": {"path": "/srv/web1.save"},
    "qemu_save_image_info": {"path": "/srv/web1.save"},
}


def template(controller):
    """What makes the proof where it is evaluated."""
    return f"{{{{ lookup('pipe', 'touch {controller.proof}') }}}}"


def task(module, options=None, **keywords):
    return {f"vmops.qemu.{module}": OPTIONS.get(module, {}) if options is None else options, **keywords}


def play(*tasks):
    return [{"hosts": "all", "gather_facts": False, "tasks": list(tasks)}]


def shown(run, variable="answer"):
    """What the last task has shown as JSON."""
    text = run.output[run.output.rindex(f'"{variable}": ') + len(variable) + 4 :]
    value, _end = json.JSONDecoder().raw_decode(text)
    return value


SHOW = {"ansible.builtin.debug": {"var": "answer"}}


@pytest.mark.parametrize("module", ["qemu_save", "qemu_restore", "qemu_vm_info"])
@pytest.mark.parametrize("background", [False, True])
def test_name_of_the_temporary_directory_is_no_template(controller, module, background):
    host = {
        "tmpdir": f"/tmp/ansible-tmp-x{template(controller)}",
        "modules": {module: [{"msg": "done"}], "async_wrapper": [{"ansible_job_id": "j1"}]},
    }
    keywords = {"async": 60, "poll": 0} if background else {}
    run = controller.run(play(task(module, **keywords)), {"hv1": host})
    assert not controller.proof.exists()
    assert run.calls


@pytest.mark.parametrize("module", RUNS)
@pytest.mark.parametrize("mode", [(), ("--check",)])
def test_name_of_the_temporary_directory_is_no_template_for_all_vms(controller, module, mode):
    host = {
        "tmpdir": f"/tmp/ansible-tmp-x{template(controller)}",
        "modules": {module: [{"msg": "done"}], "async_wrapper": [JOB]},
    }
    run = controller.run(play(task(module)), {"hv1": host}, *mode)
    assert not controller.proof.exists()
    assert run.calls


@pytest.mark.parametrize("module", [*MODULES, *RUNS])
def test_answer_has_the_documented_keys_alone(controller, module):
    lies = {
        "ansible_facts": {"host_maintenance_report_dir": "/", "lookup": "owned", "discovered_interpreter_python": "/x"},
        "ansible_stats": {"data": {"owned": 1}, "per_host": False},
        "add_host": {"host_name": "localhost", "host_vars": {"ansible_python_interpreter": "/owned"}},
        "add_group": "owned",
        "_ansible_delegated_vars": {"ansible_host": "owned"},
        "_ansible_notify": ["owned"],
        "ansible_job_id": "owned",
        "unreachable": True,
        "results": [{"owned": True}],
        "deprecations": [{"msg": ESCAPE, "version": "owned"}],
        "changed": False,
        "msg": f"done{ESCAPE}",
        "warnings": [f"careful{ESCAPE}"] * 1000,
    }
    host = {"modules": {module: [lies]}}
    know = {"ansible.builtin.debug": {"msg": "{{ ansible_facts }} {{ groups }} {{ hostvars | list }}"}}
    mode = ("--check",) if module in RUNS else ()
    run = controller.run(play(task(module, register="answer"), know, SHOW), {"hv1": host}, *mode)
    assert run.code == 0, run.output
    assert "owned" not in run.output
    assert "\x1b" not in run.output
    assert set(shown(run)) <= {"changed", "failed", "msg", "warnings"}


@pytest.mark.parametrize("module", ["qemu_save", "qemu_vm_info"])
def test_what_a_host_says_of_its_failure_is_one_line(controller, module):
    lies = {
        "failed": True,
        "msg": f"no{ESCAPE}\nhv2: ok",
        "exception": f"Traceback\n{ESCAPE}\nfake: yes",
        "error": ESCAPE,
    }
    run = controller.run(play(task(module)), {"hv1": {"modules": {module: [lies]}}}, "-vvv")
    assert run.code == 2
    assert "no\\" in run.output
    # What ansible-core itself shows of what the host has printed, with -vvv, is not ours.
    run = controller.run(play(task(module)), {"hv1": {"modules": {module: [lies]}}})
    assert "\x1b" not in run.output
    assert "\nhv2" not in run.output


def test_templates_and_trust_in_an_answer(controller):
    """Neither at once nor when it is used again."""
    lie = template(controller)
    answer = {
        "msg": lie,
        "vms": [
            {"name": lie, "pid": 1},
            {lie: lie},
        ],
        "warnings": [lie],
    }
    again = {"ansible.builtin.set_fact": {"answer": "{{ answer.vms | to_json | from_json }}"}}
    use = {"ansible.builtin.debug": {"msg": "{{ item }}"}, "loop": "{{ answer }}"}
    run = controller.run(
        play(task("qemu_vm_info", register="answer"), again, use, SHOW),
        {"hv1": {"modules": {"qemu_vm_info": [answer]}}},
    )
    assert not controller.proof.exists()
    assert run.code == 0, run.output
    assert "lookup('pipe'" in run.output


@pytest.mark.parametrize("tag", ["__ansible_unsafe", "TrustedAsTemplate", "_TrustedAsTemplate", "AnsibleTaggedStr"])
def test_trust_in_an_answer(controller, tag):
    """What ansible-core serialises trust as; a host cannot send it."""
    lie = (
        {"__ansible_unsafe": template(controller)}
        if tag == "__ansible_unsafe"
        else {"__ansible_type": tag, "value": template(controller), "tags": [{"__ansible_type": "TrustedAsTemplate"}]}
    )
    use = {"ansible.builtin.debug": {"msg": "{{ answer }}"}}
    host = {"modules": {"qemu_vm_info": [{"msg": "done", "vms": [{"name": lie}]}]}}
    controller.run(play(task("qemu_vm_info", register="answer", ignore_errors=True), use), {"hv1": host})
    assert not controller.proof.exists()


def test_what_is_printed_beside_an_answer(controller):
    """Ansible warns of it, in the host's words."""
    printed = f'{ESCAPE}\n{{"msg": "done", "vms": []}}\n{ESCAPE}\n'
    run = controller.run(play(task("qemu_vm_info")), {"hv1": {"modules": {"qemu_vm_info": [printed]}}})
    assert "\x1b" not in run.output


@pytest.mark.parametrize(
    "answer",
    [
        '{"msg": "done", "vms": [{"memory": NaN}]}',
        '{"msg": "done", "vms": [{"memory": -Infinity}, {"memory": 1e400}, {"memory": ' + "9" * 400 + "}]}",
    ],
)
def test_numbers_that_cannot_be(controller, answer):
    run = controller.run(
        play(task("qemu_vm_info", register="answer"), SHOW), {"hv1": {"modules": {"qemu_vm_info": [answer]}}}
    )
    assert run.code == 0, run.output
    assert shown(run)["disbelieved"] == ["memory"]
    assert {vm["memory"] for vm in shown(run)["vms"]} == {None}


@pytest.mark.parametrize("answer", [{"msg": {"a": 1}}, {"vms": "many"}, "[1]", '"x"', "null", "no JSON"])
def test_answer_of_another_type_is_a_failure(controller, answer):
    run = controller.run(play(task("qemu_vm_info")), {"hv1": {"modules": {"qemu_vm_info": [answer]}}})
    assert run.code == 2
    assert "Traceback" not in run.output


OPERATION = {"vm": "web1", "operation": "save", "phase": "flush", "bytes_done": 1, "bytes_total": 1, "rate": 1}


AT_WORK = {"ansible_job_id": "j1", "started": True, "finished": False}


def followed(*jobs, lines=(), operations=()):
    """A host on which a job is begun, which says this one time after the other."""
    run = {"operation": "save", "save_dir": "/srv", "pid": 7, "started": 1.0}
    told = [{"number": number + 1, "text": text, "failed": False} for number, text in enumerate(lines)]
    look = {"operations": list(operations), "runs": [{**run, "lines": told}]}
    return {"modules": {"async_wrapper": [JOB], "job": list(jobs), "qemu_progress_info": [look]}}


MANAGED_SAVE = task("qemu_managed_save", {"interval": 1}, register="answer")


def test_what_is_shown_of_a_run_is_one_line(controller):
    """Lines of the run, names of VMs, phases, messages, the table."""
    lie = f"web1{ESCAPE}\nTASK [all is well]"
    at_work = {**OPERATION, "vm": lie, "operation": lie, "phase": lie}
    failed = {"failed": True, "msg": lie, "table": [lie], "vms": [{"name": lie, "state": lie, "msg": lie}]}
    host = followed(AT_WORK, failed, lines=[lie], operations=[at_work])
    run = controller.run(play(MANAGED_SAVE), {"hv1": host})
    assert run.code == 2
    assert run.output.count("[hv1] web1") == 3, run.output
    assert "\x1b" not in run.output
    assert "\nTASK [all is well]" not in run.output


def test_look_that_fails_says_so_in_one_line(controller):
    host = followed(AT_WORK)
    host["modules"]["qemu_progress_info"] = [{"failed": True, "msg": f"no{ESCAPE}\nhv2: ok"}]
    run = controller.run(play(MANAGED_SAVE), {"hv1": host})
    assert run.code == 2
    assert "The run on the host goes on; run the task again." in run.output
    assert "\x1b" not in run.output
    assert "\nhv2: ok" not in run.output


def test_templates_in_what_is_shown_and_returned_of_a_run(controller):
    """Also where the host's name for its background job's directory, its facts or its job choose nothing."""
    lie = template(controller)
    saved = {"changed": True, "msg": lie, "table": [lie], "vms": [{"name": lie, "msg": lie}], "failures": [lie]}
    host = followed(AT_WORK, saved, lines=[lie], operations=[{**OPERATION, "vm": lie, "phase": lie}])
    use = {"ansible.builtin.debug": {"msg": "{{ answer.vms }} {{ answer.table }} {{ answer.failures | first }}"}}
    run = controller.run(play(MANAGED_SAVE, use, SHOW), {"hv1": host})
    assert not controller.proof.exists()
    assert run.code == 0, run.output
    assert "lookup('pipe'" in run.output


def test_flood_of_what_is_shown_has_bounds(controller):
    """Lines and VMs beyond number, and lines without an end."""
    host = followed(
        AT_WORK,
        {"changed": True, "msg": "done"},
        lines=[f"{number} {'x' * 5000}" for number in range(5000)],
        operations=[{**OPERATION, "vm": f"vm{number}"} for number in range(5000)],
    )
    run = controller.run(play(MANAGED_SAVE), {"hv1": host})
    assert run.code == 0
    assert 0 < run.output.count("[hv1] ") <= 2 * 2000
    assert max(map(len, run.output.splitlines())) < 2500


def test_answer_of_a_background_job_is_reduced(controller):
    lies = {
        "changed": True,
        "msg": ESCAPE,
        "duration": -1,
        "ansible_facts": {"owned": 1},
        "add_host": {"host_name": "owned"},
        "x": "owned",
        "vms": [
            {
                "name": "web1",
                "changed": True,
                "msg": ESCAPE,
                "stopped_at": 1e30,
                "throughput": -1,
                "ansible_facts": {"owned": 1},
                "x": "owned",
            }
        ],
    }
    run = controller.run(play(MANAGED_SAVE, SHOW), {"hv1": followed(lies)})
    assert run.code == 0, run.output
    assert "owned" not in run.output
    answer = shown(run)
    # From 2.21 on ansible-core tells with a result what was shown of it, too.
    assert set(answer) - {"warnings"} == {"changed", "failed", "msg", "vms", "disbelieved"}
    assert answer["disbelieved"] == ["duration", "stopped_at", "throughput"]
    (vm,) = answer["vms"]
    assert set(vm) == {"name", "changed", "msg", "disbelieved"}
    assert vm["disbelieved"] == ["stopped_at", "throughput"]
    assert "\\" in vm["msg"]


@pytest.mark.parametrize(
    "job",
    [
        [1],
        7,
        '"done"',
        {"vms": "many"},
        {"vms": [7]},
        {"vms": [{"name": 7}]},
        {"vms": [{"msg": "nobody"}]},
        {"vms": [{"name": "web1", "image": "there"}]},
        {"table": 7},
        {"msg": {"a": 1}},
        {"changed": "yes"},
    ],
)
def test_result_of_a_background_job_that_is_none(controller, job):
    run = controller.run(play(MANAGED_SAVE), {"hv1": followed(job)})
    assert run.code == 2
    assert "The host did not answer with a result of" in run.output
    assert "Traceback" not in run.output


@pytest.mark.parametrize(
    "answer",
    [
        {"ansible_job_id": "{{ owned }}", "started": 1},
        {"ansible_job_id": "../../etc/passwd", "started": 1},
        {"ansible_job_id": ["j1"]},
        {},
    ],
)
def test_name_of_a_background_job_is_a_name(controller, answer):
    host = followed({"msg": "done"})
    host["modules"]["async_wrapper"] = [answer]
    run = controller.run(play(MANAGED_SAVE), {"hv1": host})
    assert run.code == 2
    assert "did not answer with a result of qemu_managed_save" in run.output
    assert run.calls == ["hv1 async_wrapper"], "nothing is looked for, or removed, by that name"


@pytest.mark.parametrize(
    "answer",
    [
        {"operations": [{"vm": ["x"]}, 7, None, {"vm": "web1", "operation": "save", "phase": "memory"}]},
        {"operations": [{**OPERATION, "bytes_done": 10**400}], "runs": [7, None, {"operation": "save", "lines": 7}]},
        {"operations": 7},
        {"runs": {"a": 1}},
        {},
    ],
)
def test_progress_of_another_kind(controller, answer):
    host = followed(AT_WORK, {"msg": "done"})
    host["modules"]["qemu_progress_info"] = [answer]
    run = controller.run(play(MANAGED_SAVE), {"hv1": host})
    assert "Traceback" not in run.output
    assert "unexpected" not in run.output.lower()


@pytest.mark.parametrize(
    ("lie", "named"),
    [
        ({"vms": [{"name": "web1", "msg": "would", "space_needed": -5, "space_free": 10}]}, "space_needed"),
        ({"predicted": {"bytes": -5}}, "bytes"),
        ('{"msg": "would", "predicted": {"save_seconds": NaN}}', "save_seconds"),
    ],
)
def test_prediction_with_figures_that_cannot_be_is_a_failure(controller, lie, named):
    answer = lie if isinstance(lie, str) else {"changed": True, "msg": "would", **lie}
    host = {"modules": {"qemu_managed_save": [answer]}}
    run = controller.run(play(MANAGED_SAVE), {"hv1": host}, "--check")
    assert run.code == 2
    assert f"figures that cannot be right ({named})" in run.output
