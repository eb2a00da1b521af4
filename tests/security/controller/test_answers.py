# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host's answer to one task is that task's result, and nothing else."""

from __future__ import annotations

import json

import pytest

ESCAPE = "\x1b[2J\x1b]0;title\x07"
LACKS_LIBRARY = {"failed": True, "msg": "no qemu.qmp", "missing_library": "qemu.qmp"}
MODULES = ("qemu_save", "qemu_restore", "qemu_vm_info", "qemu_save_image_info", "qemu_save_image", "qemu_progress")
OPTIONS = {
    "qemu_save": {"name": "web1"},
    "qemu_restore": {"name": "web1"},
    "qemu_save_image": {"path": "/srv/web1.save"},
    "qemu_save_image_info": {"path": "/srv/web1.save"},
}
ENDED = {"operations": [], "library": True}


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
    """Of a host without the library, into whose temporary directory the controller's copy is brought."""
    host = {
        "tmpdir": f"/tmp/ansible-tmp-x{template(controller)}",
        "modules": {module: [LACKS_LIBRARY, {"msg": "done"}], "async_wrapper": [{"ansible_job_id": "j1"}]},
    }
    keywords = {"async": 60, "poll": 0} if background else {}
    run = controller.run(play(task(module, **keywords)), {"hv1": host})
    assert not controller.proof.exists()
    assert run.code != 0
    assert "names a temporary directory that cannot be one" in run.output


def test_name_of_the_temporary_directory_is_no_template_in_parallel(controller):
    host = {
        "tmpdir": f"/tmp/ansible-tmp-x{template(controller)}",
        "modules": {"qemu_progress": [{"operations": [], "jobs": {}, "library": False}]},
    }
    run = controller.run(play(task("qemu_parallel", {"operation": "save", "vms": [{"name": "web1"}]})), {"hv1": host})
    assert not controller.proof.exists()
    assert run.code != 0


@pytest.mark.parametrize("module", MODULES)
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
    run = controller.run(play(task(module, register="answer"), know, SHOW), {"hv1": host})
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


JOB = {"ansible_job_id": "j1", "started": 1, "finished": 0}
PARALLEL = {"operation": "save", "vms": [{"name": "web1"}], "interval": 0, "timeout": 30}


def progress(*jobs, **more):
    """Answers of qemu_progress: none at work, then what the job says."""
    return [
        {**ENDED, "jobs": {}},
        *({**ENDED, **more, "jobs": {"j1": job} if job else {}} for job in jobs),
        {**ENDED, "jobs": {}},
    ]


def test_what_is_shown_of_a_run_is_one_line(controller):
    """Names of VMs, phases, messages."""
    at_work = {
        "vm": f"web1{ESCAPE}",
        "operation": ESCAPE,
        "phase": ESCAPE,
        "bytes_done": 1,
        "bytes_total": 1,
        "rate": 1,
    }
    host = {
        "modules": {
            "async_wrapper": [JOB],
            "qemu_progress": progress(None, {"failed": True, "msg": ESCAPE}, operations=[at_work]),
        }
    }
    vms = [{"name": f"web1{ESCAPE}\nTASK [all is well]"}]
    run = controller.run(play(task("qemu_parallel", {**PARALLEL, "vms": vms})), {"hv1": host})
    assert "save begins" in run.output
    assert "\x1b" not in run.output
    assert "\nTASK [all is well]" not in run.output


def test_answer_of_a_background_job_is_reduced(controller):
    lies = {
        "changed": True,
        "msg": ESCAPE,
        "stopped_at": 1e30,
        "throughput": -1,
        "ansible_facts": {"owned": 1},
        "x": "owned",
    }
    host = {"modules": {"async_wrapper": [JOB], "qemu_progress": progress(lies)}}
    run = controller.run(play(task("qemu_parallel", PARALLEL, register="answer"), SHOW), {"hv1": host})
    assert run.code == 0, run.output
    (vm,) = shown(run)["vms"]
    assert set(vm) == {"name", "changed", "msg", "disbelieved"}
    assert vm["disbelieved"] == ["stopped_at", "throughput"]


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
    host = {"modules": {"async_wrapper": [answer], "qemu_progress": [{**ENDED, "jobs": {}}]}}
    run = controller.run(play(task("qemu_parallel", PARALLEL)), {"hv1": host})
    assert run.code == 2
    assert "did not answer with a result of qemu_save" in run.output


@pytest.mark.parametrize(
    "answer",
    [
        {"operations": [{"vm": ["x"]}, 7, None, {"vm": "web1", "operation": "save", "phase": "memory"}], "jobs": {}},
        {"operations": 7},
        {"jobs": [1]},
        {},
    ],
)
def test_progress_of_another_kind(controller, answer):
    host = {"modules": {"async_wrapper": [JOB], "qemu_progress": [answer, {"jobs": {"j1": {"msg": "done"}}}]}}
    run = controller.run(play(task("qemu_parallel", PARALLEL)), {"hv1": host})
    assert "Traceback" not in run.output
    assert "unexpected" not in run.output.lower()


def test_prediction_with_figures_that_cannot_be_is_a_failure(controller):
    host = {"modules": {"qemu_save": [{"changed": True, "msg": "would", "space_needed": -5, "space_free": 10}]}}
    host["modules"]["qemu_progress"] = [{**ENDED, "jobs": {}}]
    run = controller.run(play(task("qemu_parallel", PARALLEL)), {"hv1": host}, "--check")
    assert run.code == 2
    assert "figures that cannot be right (space_needed)" in run.output
