# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the controller's copy of qemu.qmp is named to a module on a host."""

from __future__ import annotations

import shlex
import types

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.vmops.qemu.plugins.plugin_utils._action import ModuleAction

LIE = "/tmp/{{ lookup('pipe', 'id') }}; $(id)"


class Shell:
    """What a POSIX shell plugin does."""

    tmpdir = "/root/.ansible/tmp/ansible-tmp-1764000000.5-7-8"

    def env_prefix(self, **variables):
        return " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())

    def join_path(self, *parts):
        return "/".join(parts)


def action(monkeypatch, **shell):
    """An action whose transfers are noted in ``sent``."""
    made = ModuleAction.__new__(ModuleAction)
    made._connection = types.SimpleNamespace(_shell=Shell())
    vars(made._connection._shell).update(shell)
    made.sent = []
    monkeypatch.setattr(ActionBase, "_transfer_data", lambda _self, path, _data: made.sent.append(path))
    monkeypatch.setattr(ActionBase, "_fixup_perms2", lambda _self, _paths: None)
    monkeypatch.setattr(ActionBase, "_compute_environment_string", lambda _self, _raw=None: "LANG=C")
    return made


def test_path_of_the_copy_is_quoted_and_nothing_else(monkeypatch):
    """Whatever the path is: it is no part of the task, and no template is made of it."""
    asked = action(monkeypatch)
    assert asked._compute_environment_string() == "LANG=C"
    asked._copy_path = LIE
    assert asked._compute_environment_string() == f"LANG=C VMOPS_QEMU_QMP={shlex.quote(LIE)}"
    assert shlex.split(asked._compute_environment_string())[1] == f"VMOPS_QEMU_QMP={LIE}"


@pytest.mark.parametrize(
    "tmpdir", [LIE, "relative", "/tmp/a b", "/tmp/a\n", "/tmp/" + "x" * 2000, "/tmp/\u202e", "/{%"]
)
def test_directory_that_is_named_as_none_is(monkeypatch, tmpdir):
    asked = action(monkeypatch, tmpdir=tmpdir)
    with pytest.raises(AnsibleActionFail, match="names a temporary directory"):
        asked._bring(b"")
    assert asked.sent == []


@pytest.mark.parametrize("tmpdir", [Shell.tmpdir, "/var/tmp/ansible-tmp-1", "/home/a.b-c@d/~x/.ansible/tmp/y+z"])
def test_directory_as_ansible_names_them(monkeypatch, tmpdir):
    asked = action(monkeypatch, tmpdir=tmpdir)
    assert asked._bring(b"") == f"{tmpdir}/qemu_qmp.zip"
    assert asked.sent == [f"{tmpdir}/qemu_qmp.zip"]
