# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program that restores a host's saved VMs at boot, as one archive that Python runs."""

from __future__ import annotations

DOCUMENTATION = r"""
name: restore_program
short_description: Create the program that restores the saved VMs of a host when it boots
version_added: 1.0.0
description:
  - Puts a program and the parts of this collection that it needs into one archive that Python can run without anything
    else. The same files always make the same archive, byte by byte.
  - The archive is created in Ansible's temporary directory on the controller, and removed with it.
  - The role P(vmops.qemu.host_setup#role) installs it.
options:
  _terms:
    description: The program, a Python file on the controller.
    type: list
    elements: path
    required: true
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Install the program
  ansible.builtin.copy:
    src: "{{ lookup('vmops.qemu.restore_program', 'restore_saved_vms.py') }}"
    dest: /usr/local/lib/vmops-qemu/restore_saved_vms.pyz
    mode: "0644"
"""

RETURN = r"""
_raw:
  description: The archive's path on the controller.
  type: list
  elements: path
"""

import os
import tempfile
import typing as t
import zipfile
from pathlib import Path

from ansible import constants as C
from ansible.plugins.lookup import LookupBase

_PLUGINS = Path(__file__).resolve().parents[1]
_PACKAGE = "ansible_collections/vmops/qemu/plugins"

#: What of the module utils is Ansible's edge, of no use without Ansible.
_LEFT_OUT = frozenset(("_module.py",))


def make_program(main: Path, archive: t.IO[bytes]) -> None:
    """Write the archive.

    :param main: the file that is run.
    """
    files = {"__main__.py": main}
    for path in sorted((_PLUGINS / "module_utils").rglob("*.py")):
        if path.name not in _LEFT_OUT:
            files[f"{_PACKAGE}/{path.relative_to(_PLUGINS).as_posix()}"] = path
    # By which Python before 3.13 knows a namespace package in an archive.
    directories = sorted({f"{parent.as_posix()}/" for name in files for parent in Path(name).parents if parent.name})
    with zipfile.ZipFile(archive, "w") as out:
        for name in [*directories, *sorted(files)]:
            # Without time stamps, so that what is the same looks the same.
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            out.writestr(entry, b"" if name.endswith("/") else files[name].read_bytes())


class LookupModule(LookupBase):  # type: ignore[misc]  # ansible-core has no types
    """What Ansible loads."""

    def run(self, terms: list[str], variables: t.Any = None, **kwargs: t.Any) -> list[str]:
        """The path of an archive for each program."""
        made = []
        for term in terms:
            descriptor, path = tempfile.mkstemp(suffix=".pyz", dir=C.DEFAULT_LOCAL_TMP)
            with os.fdopen(descriptor, "wb") as archive:
                make_program(Path(term), archive)
            made.append(path)
        return made
