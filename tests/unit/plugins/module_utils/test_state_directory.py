# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a user's save images are, and what else he keeps across reboots."""

from __future__ import annotations

import os
import pwd

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _state_directory
from ansible_collections.vmops.qemu.plugins.module_utils._options import SAVE_DIR
from ansible_collections.vmops.qemu.plugins.module_utils._state_directory import default_save_directory, state_path


@pytest.fixture
def daemon(monkeypatch):
    """Be a user with a home directory."""
    entry = pwd.getpwnam("daemon")
    monkeypatch.setattr(os, "geteuid", lambda: entry.pw_uid)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/of/another/user")
    return entry.pw_dir


def test_root(monkeypatch):
    """Whose place is that of the host, whatever his environment says."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    monkeypatch.setattr(_state_directory, "ROOT_DIRECTORY", "/var/lib/vmops.qemu")
    assert default_save_directory() == "/var/lib/vmops/save"
    assert state_path("rates.json") == "/var/lib/vmops.qemu/rates.json"


@pytest.mark.parametrize(("variable", "state"), [(None, ""), ("", ""), ("state", ""), ("/srv/state", "/srv/state")])
def test_user(daemon, monkeypatch, variable, state):
    if variable is not None:
        monkeypatch.setenv("XDG_STATE_HOME", variable)
    state = state or f"{daemon}/.local/state"
    assert default_save_directory() == f"{state}/vmops/save"
    assert state_path("rates.json") == f"{state}/vmops.qemu/rates.json"


def test_modules_ask_for_it():
    """When they run, as the user who runs them; not what the controller's user has."""
    assert SAVE_DIR["save_dir"]["fallback"] == (default_save_directory,)
    assert "default" not in SAVE_DIR["save_dir"]
