# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VMs of hypervisors as hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: qemu_vms
short_description: The QEMU VMs of hypervisors, running or saved
version_added: 1.0.0
description:
  - Lists the VMs that run on hypervisors, and those that are saved there, as hosts, with their state as groups. For
    example, all saved VMs are the group C(qemu_saved).
  - The hypervisors are hosts of the inventory sources that were given before this one. The plugin asks them as a
    playbook would, by M(vmops.qemu.qemu_vm_info) and M(vmops.qemu.qemu_save_image_info), with their connection
    variables, those of their groups, and C(become). Nothing is touched.
  - The file's name must end in C(qemu_vms.yml) or C(qemu_vms.yaml).
  - Each VM is in the groups C(qemu_vms), C(qemu_on_<hypervisor>), C(qemu_unit_<unit>) if a systemd unit starts it, and
    the group of its state.
  - The state of a VM is C(running) (or its guest sleeps), C(paused) (it has a QEMU in which it does not run),
    C(unknown) (its QEMU cannot be queried), C(saved) (its last save is complete), C(checkpoint) (it went on after its
    last save, and has no QEMU any more), C(archived), C(partial) or C(invalid) (its last image is that). The group has
    C(qemu_) before it.
  - A VM of which older images exist beside its last one is in C(qemu_superseded), too. A VM that cannot be restored as
    it is, or could not be if it were saved now, is in C(qemu_not_restorable).
  - Each VM has the variables C(qemu_hypervisor), C(qemu_name), C(qemu_uuid), C(qemu_state), C(qemu_run_state),
    C(qemu_restorable) (V(null) if that is not known), C(qemu_problems) (each with C(kind), C(what), C(cure) and
    C(blocks)), C(qemu_unit), C(qemu_image), C(qemu_saved_at), C(qemu_managed), C(qemu_superseded_images),
    C(qemu_memory), C(qemu_vcpus), C(qemu_machine), C(qemu_version), C(qemu_pid), C(qemu_user), C(qemu_monitor) and
    C(qemu_qmp_socket). What they mean is in the documentation of the two modules.
  - A hypervisor is believed of its own VMs only. It cannot change other hosts, add variables of other names, or have
    templates evaluated.
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [vmops.qemu.qemu_vms]
  hypervisors:
    description:
      - The hypervisors, as a pattern of hosts of the sources before this one.
      - V(localhost) is the controller itself, also without such a source.
    type: str
    required: true
  save_dir:
    description:
      - The directory of the save images. If it is not given, it is the variable C(vmops_qemu_save_dir) of each
        hypervisor, as in the roles, or else the default of the modules.
    type: str
  include:
    description: List only the VMs with a name that matches one of these shell patterns, or with this UUID or unit.
    type: list
    elements: str
    default: ["*"]
  exclude:
    description: Do not list the VMs with a name that matches one of these, or with this UUID or unit.
    type: list
    elements: str
    default: []
  become:
    description:
      - Ask as root (or as the user in C(ansible_become_user)). If it is not given, C(ansible_become) and the command
        line decide. A user who is not root is told about their own VMs only.
    type: bool
  timeout:
    description: The number of seconds after which a hypervisor is given up.
    type: int
    default: 60
  unreachable:
    description:
      - What to do if a hypervisor cannot be reached, or does not answer as it should. With V(warn), its VMs are
        missing, and a warning names it. With V(fail), the inventory source fails.
    type: str
    choices: [warn, fail]
    default: warn
  host_names:
    description:
      - What the hosts are called. With V(vm), a host has the name of its VM; with the hypervisor's name before it
        (C(hv1+web1)) if several VMs or another host have that name. With V(hypervisor_and_vm), it is always before it,
        so that the name of a VM does not depend on other hypervisors.
      - Characters other than letters, digits and C(_.-) are replaced by C(_). The exact name is C(qemu_name).
    type: str
    choices: [vm, hypervisor_and_vm]
    default: vm
extends_documentation_fragment:
  - constructed
  - inventory_cache
notes:
  - Passwords that are asked for on the command line (C(--ask-become-pass)) are not known to inventory plugins. Use
    variables, for example from a vault.
  - A VM's name is chosen on its hypervisor, and Ansible connects to a host by its name. Before you run tasks in guests,
    give C(ansible_host) with O(compose). Tasks for the VM's hypervisor are delegated to C(qemu_hypervisor).
  - Values of O(keyed_groups) come from hypervisors, too. Give each a C(prefix), so that a hypervisor cannot put a VM
    into one of your own groups.
seealso:
  - module: vmops.qemu.qemu_vm_info
  - module: vmops.qemu.qemu_save_image_info
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
# vms.qemu_vms.yml, used as in: ansible-inventory -i hosts.yml -i vms.qemu_vms.yml --graph
plugin: vmops.qemu.qemu_vms
hypervisors: hypervisors
become: true

---
# In a directory with hosts.yml, as zz.qemu_vms.yml: the files are read in the order of their names.
plugin: vmops.qemu.qemu_vms
hypervisors: hypervisors:!retired
become: true
exclude: ["test*"]
unreachable: fail
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/vmops
cache_timeout: 300
compose:
  ansible_host: qemu_name ~ '.guests.example.com'
groups:
  # saved more than an hour ago
  qemu_forgotten: >-
    qemu_state == 'saved' and qemu_saved_at
    and (now(true) - (qemu_saved_at | to_datetime('%Y-%m-%dT%H:%M:%S.%fZ'))).total_seconds() > 3600
keyed_groups:
  - key: qemu_machine
    prefix: machine
"""

import typing as t

from ansible.errors import AnsibleParserError
from ansible.inventory.group import to_safe_group_name
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.vmops.qemu.plugins.module_utils._names import VmNames, is_selected
from ansible_collections.vmops.qemu.plugins.plugin_utils._answer import sentence
from ansible_collections.vmops.qemu.plugins.plugin_utils._hypervisors import Answer, AskError, Question, ask, template
from ansible_collections.vmops.qemu.plugins.plugin_utils._vm_hosts import UnbelievableError, Vm, host_names, read_vms

_SAVE_DIR = "{{ vmops_qemu_save_dir | default(omit) }}"

#: Characters of the name of a group.
_MOST_IN_GROUP = 200


def safe_group_name(name: str) -> str:
    """A name that any group may have, whatever a hypervisor has said."""
    return str(to_safe_group_name(str(name)[:_MOST_IN_GROUP], force=True, silent=True))


def no_template(value: t.Any) -> t.Any:
    """A value in which Ansible evaluates nothing.

    Only what could be a template is marked, as the mark is seen in what ``ansible-inventory`` prints.
    """
    if isinstance(value, str):
        return wrap_var(value) if "{" in value else value
    if isinstance(value, t.Mapping):
        return {no_template(key): no_template(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [no_template(content) for content in value]
    return value


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):  # type: ignore[misc]  # ansible-core has no types
    """What Ansible loads."""

    NAME = "vmops.qemu.qemu_vms"

    _sanitize_group_name = staticmethod(safe_group_name)

    def verify_file(self, path: str) -> bool:
        """Whether this may be a source for this plugin."""
        return bool(super().verify_file(path)) and path.endswith(("qemu_vms.yml", "qemu_vms.yaml"))

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        """Add the VMs."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        found = self._found(path, cache)
        failures = found["failures"]
        if failures and self.get_option("unreachable") == "fail":
            raise AnsibleParserError("; ".join(failures))
        for failure in failures:
            self.display.warning(failure)
        self._add([Vm(**vm) for vm in found["vms"]])

    def _compose(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        """What is composed of a hypervisor's words is no template, either (ansible-core before 2.19 forgets that)."""
        return no_template(super()._compose(*args, **kwargs))

    def _found(self, path: str, cache: bool) -> dict[str, t.Any]:
        """What the hypervisors have told, now or when it was cached: ``vms`` and ``failures``, as JSON has them."""
        is_cached = self.get_option("cache")
        key = self.get_cache_key(path)
        if is_cached and cache:
            try:
                cached: dict[str, t.Any] = self._cache[key]
                return cached
            except KeyError:
                pass
        found = self._ask()
        if is_cached:
            self._cache[key] = found
        return found

    def _ask(self) -> dict[str, t.Any]:
        save_dir = self.get_option("save_dir") or template(_SAVE_DIR)
        questions = [
            Question("vmops.qemu.qemu_vm_info", {"save_dir": save_dir}, "vms"),
            Question("vmops.qemu.qemu_save_image_info", {"save_dir": save_dir}, "images"),
        ]
        become = self.get_option("become")
        pattern = self.get_option("hypervisors")
        try:
            answers = ask(
                questions,
                pattern=pattern,
                inventory=self.inventory,
                loader=self.loader,
                keywords={
                    "timeout": self.get_option("timeout"),
                    **({} if become is None else {"become": become}),
                },
            )
        except AskError as error:
            raise AnsibleParserError(f"The hypervisors ({pattern}) could not be asked: {error}") from error
        if not answers:
            raise AnsibleParserError(
                f"No host matches hypervisors, which is {pattern!r}. Name hosts of the inventory sources that are given"
                " before this one; the files of a directory are read in the order of their names."
            )
        found: dict[str, t.Any] = {"vms": [], "failures": []}
        for name, told in answers.items():
            try:
                vms = read_vms(name, *_results(told, len(questions)))
                found["vms"] += [
                    {"hypervisor": vm.hypervisor, "label": vm.label, "variables": vm.variables} for vm in vms
                ]
            except UnbelievableError as error:
                found["failures"].append(f"The VMs of {name} are not known: {error}")
        return found

    def _add(self, vms: t.Iterable[Vm]) -> None:
        include, exclude = self.get_option("include"), self.get_option("exclude")
        chosen = [vm for vm in vms if is_selected(_names(vm), include, exclude)]
        taken = {
            *self.inventory.hosts,
            *self.inventory.groups,
            *(safe_group_name(g) for vm in chosen for g in vm.groups),
        }
        named = host_names(
            chosen,
            taken.__contains__,
            with_hypervisor=self.get_option("host_names") == "hypervisor_and_vm",
        )
        strict = self.get_option("strict")
        for name, vm in sorted(named.items()):
            self.inventory.add_host(name)
            for group in vm.groups:
                self.inventory.add_child(self.inventory.add_group(safe_group_name(group)), name)
            variables = {key: no_template(value) for key, value in vm.variables.items()}
            for key, value in variables.items():
                self.inventory.set_variable(name, key, value)
            self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
            self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
            self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)


def _names(vm: Vm) -> VmNames:
    """By what include and exclude know a VM, as in the roles."""
    known = vm.variables
    return VmNames(vm.label, known["qemu_name"], known["qemu_uuid"], known["qemu_unit"] or "")


def _results(told: t.Sequence[Answer], count: int) -> t.Sequence[Answer]:
    """The results of all questions.

    :raises UnbelievableError: one has failed.
    """
    for answer in told:
        if answer.get("failed") or answer.get("unreachable"):
            raise UnbelievableError(sentence(str(answer.get("msg") or "it does not say why")))
    if len(told) < count:
        raise UnbelievableError("it did not answer")
    return told
