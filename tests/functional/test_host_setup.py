# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role host_setup says of a host that it has never prepared: in check mode, as it is of this very host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.guest import COLLECTIONS


@pytest.mark.skipif(os.geteuid() != 0, reason="it prepares a host for root")
@pytest.mark.parametrize("services", [False, True], ids=["plain", "with services"])
def test_fresh_host_in_check_mode(tmp_path, services):
    """Nothing fails that only is not there yet, and nothing is warned of."""
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    variables = {
        "vmops_qemu_save_dir": str(tmp_path / "vmops" / "save"),
        "host_setup_program_dir": str(tmp_path / "lib" / "vmops-qemu"),
        "host_setup_metrics_dir": str(metrics),
        **dict.fromkeys(("host_setup_boot_restore", "host_setup_shutdown_save", "host_setup_metrics"), services),
    }
    (tmp_path / "ansible.cfg").touch()
    play = tmp_path / "play.yml"
    play.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "roles": ["vmops.qemu.host_setup"]}]))
    settings = {
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
    }
    run = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            *("--check", "-c", "local", "-e", json.dumps({"ansible_python_interpreter": sys.executable, **variables})),
            str(play),
        ],
        env={**{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "WARNING" not in run.stdout, run.stdout
    assert sorted(os.listdir(tmp_path)) == ["ansible.cfg", "metrics", "play.yml"]
