# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A controller of each supported ansible-core, and managed hosts that lie to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.guest import COLLECTIONS, REPOSITORY

#: The versions besides the one of ``.venv``, in virtual environments of their own.
OTHER_VERSIONS = ("2.16", "2.17", "2.18", "2.20", "2.21", "2.22")


@dataclass
class Run:
    """What a playbook left."""

    code: int
    output: str
    #: The calls of modules, each ``host module``.
    calls: list[str] = field(default_factory=list)


class Controller:
    """An ansible-playbook, with the hosts that it manages."""

    def __init__(self, place: Path, programs: Path) -> None:
        self.place = place
        self.programs = programs
        #: What an attacker's code on the controller would make.
        self.proof = place / "proof"

    def run(
        self,
        play: Any,
        hosts: dict[str, dict[str, Any]],
        *arguments: str,
        variables: dict[str, Any] | None = None,
        timeout: float = 900,
    ) -> Run:
        """Run a playbook, given as data or by its name.

        :param hosts: by name, what each answers (``plugins/connection/lying.py``), and ``vars`` of the inventory.
        :param variables: of the group ``all``.
        """
        inventory = {
            "all": {
                "vars": {
                    "ansible_connection": "lying",
                    "ansible_python_interpreter": "/usr/bin/python3",
                    **(variables or {}),
                },
                "hosts": {name: host.get("vars", {}) for name, host in hosts.items()},
            }
        }
        (self.place / "inventory.json").write_text(json.dumps(inventory))
        (self.place / "hosts.json").write_text(json.dumps(hosts))
        (self.place / "ansible.cfg").touch()
        log = self.place / "hosts.json.log"
        log.unlink(missing_ok=True)
        if not isinstance(play, str):
            (self.place / "play.yml").write_text(json.dumps(play))
            play = str(self.place / "play.yml")
        done = subprocess.run(
            [str(self.programs / "ansible-playbook"), "-i", str(self.place / "inventory.json"), play, *arguments],
            cwd=self.place,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
                "PATH": os.pathsep.join([str(self.programs), os.environ.get("PATH", os.defpath)]),
                # As with sudo, from a timer or in a runner: it says nothing of where the controller stands.
                "PWD": "/nowhere",
                "LYING_HOSTS": str(self.place / "hosts.json"),
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                "ANSIBLE_CONNECTION_PLUGINS": str(Path(__file__).parent / "plugins" / "connection"),
                "ANSIBLE_CONFIG": str(self.place / "ansible.cfg"),
                "ANSIBLE_LOCAL_TEMP": str(self.place / "local"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_FORCE_COLOR": "0",
                "LC_ALL": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        calls = log.read_text().splitlines() if log.exists() else []
        return Run(done.returncode, done.stdout.decode(errors="surrogateescape"), calls)


@pytest.fixture(params=["own", *OTHER_VERSIONS])
def controller(request: pytest.FixtureRequest, tmp_path: Path) -> Controller:
    """A controller of each version that is there."""
    if request.param == "own":
        return Controller(tmp_path, Path(sys.executable).parent)
    if not os.environ.get("SECURITY_CORES"):
        pytest.skip(f"ansible-core {request.param} is tried by make test-security")
    programs = REPOSITORY / ".cache" / f"ansible-core-{request.param}" / "bin"
    if not (programs / "ansible-playbook").exists():
        pytest.skip(f"no ansible-core {request.param} here: scripts/setup security brings it")
    return Controller(tmp_path, programs)
