# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM's name is no option of the check that managed_restore runs with it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import yaml

TASKS = Path(__file__).resolve().parents[2] / "roles" / "managed_restore" / "tasks" / "group.yml"


def test_name_that_would_be_an_option_of_the_check(tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    odd = f"-oProxyCommand=touch {owned}"
    variables = {
        "managed_restore_run": {
            "vms": [{"name": "web1"}, {"name": odd}, {"name": "-n"}],
            "failures": [],
            "duration": 1,
        },
        "managed_restore_result": {
            "vms": [],
            "failures": [],
            "unchecked": [],
            "unusable": [],
            "left_alone": [],
            "duration": 0,
        },
        # As a whole word it is an option; behind other text it is none.
        "managed_restore_vm_check": {"-n": ["test", "x{name}", "=", "x-n"], odd: ["ssh", "{name}", "true"]},
        "managed_restore_check": ["test", "{name}", "=", "web1"],
        "managed_restore_check_retries": 5,
        "managed_restore_check_delay": 30,
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    result = tmp_path / "result.json"
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": variables,
        "tasks": [
            *yaml.safe_load(TASKS.read_text())[1:],
            {"copy": {"content": "{{ managed_restore_result.unchecked | to_json }}", "dest": str(result)}},
        ],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    command = ["ansible-playbook", "-i", "localhost,", str(tmp_path / "play.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(result.read_text()) == [odd], "it has not passed, and is not tried again"
    assert not owned.exists()
