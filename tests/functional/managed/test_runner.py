# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook of a maintenance as an automation platform runs it: by ansible-runner, from a project to read only.

The project and its variables are those of docs/automation-platform.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.documentation import blocks, file_of
from support.observe import Continuity

from .conftest import NAMES, files

DB1 = NAMES[0]
DOCUMENTED = blocks("docs/automation-platform.md")
FILES = {file_of(block): block.text for block in DOCUMENTED if file_of(block)}
(VARIABLES,) = (yaml.safe_load(block.text) for block in DOCUMENTED if not file_of(block))


@pytest.fixture
def project(tmp_path):
    """The runner's directory, with a project in which nothing can be written."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount it to read only")
    place = tmp_path / "runner"
    directory = place / "project"
    for name, text in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    assert sorted(FILES) == ["collections/requirements.yml", "site.yml"]
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
    yield place
    subprocess.run(["umount", directory], check=True)


@pytest.fixture
def maintain(project, save_dir):
    """Run the maintenance of the guest DB1; the exit status, and what the runner has collected."""

    def run(**variables):
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "managed_save_vms": [DB1]}
        common = {"vmops_qemu_save_dir": str(save_dir), "managed_save_interval": 1, "managed_restore_interval": 1}
        (project / "inventory").mkdir(exist_ok=True)
        inventory = {"all": {"hosts": {"hv1": host}, "vars": common}}
        (project / "inventory" / "hosts.json").write_text(json.dumps(inventory))
        asked = {"hosts": "all", "reboot": False, "unsaved": "ignore", **variables}
        asked = {**VARIABLES, **{f"host_maintenance_{key}": value for key, value in asked.items()}}
        (project / "env").mkdir(exist_ok=True)
        (project / "env" / "extravars").write_text(json.dumps(asked))
        environment = {name: value for name, value in os.environ.items() if name != "PWD"}
        runner = Path(sys.executable).parent / "ansible-runner"
        done = subprocess.run(
            [str(runner), "run", str(project), "-p", "site.yml", "--ident", "night"],
            env={**environment, "PATH": f"{runner.parent}:{environment['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
        events = project / "artifacts" / "night" / "job_events"
        return done, [json.loads(path.read_text()) for path in events.glob("*.json")]

    return run


def test_maintenance_by_a_runner(make_guest, maintain, project, save_dir):
    continuity = Continuity(make_guest(DB1, block_mib=2, observer=True))
    done, events = maintain(report_dir=str(project / "artifacts" / "reports"))
    assert done.returncode == 0, done.stdout + done.stderr
    (stats,) = (event["event_data"] for event in events if event["event"] == "playbook_on_stats")
    told = stats["artifact_data"]["host_maintenance"]["hv1"]
    assert told["state"] == "done"
    assert [(vm["name"], vm["state"]) for vm in told["vms"]] == [(DB1, "restored")]
    shown = "\n".join(event["stdout"] for event in events)
    assert f"[hv1] {DB1}" in shown, "its lines are in the events"
    assert (project / "artifacts" / "reports" / "host-maintenance.html").exists()
    assert files(save_dir) == []
    continuity.check()


def test_report_that_cannot_be_written_is_told_before_a_guest_is_touched(make_guest, maintain, save_dir):
    """It would land where the runner stands, in the project."""
    guest = make_guest(DB1, block_mib=2, observer=True)
    before = guest.pid
    done, _events = maintain(report_dir="")
    assert done.returncode != 0
    assert "the report cannot be written (host_maintenance_report_dir" in done.stdout
    assert guest.pid == before
    assert files(save_dir) == []
