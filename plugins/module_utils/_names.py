# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""By what the VMs of a host are called, and shell patterns of their names, as all that takes them reads them."""

from __future__ import annotations

import dataclasses
import fnmatch
import typing as t


@dataclasses.dataclass(frozen=True)
class VmNames:
    """All by which a task may call one VM of a host."""

    #: What no other VM of the host is called.
    own: str
    #: Its name; empty where it has none: then its own stands for it.
    name: str = ""
    #: In the usual form.
    uuid: str = ""
    #: The systemd unit that runs it, or did.
    unit: str = ""

    def is_called(self, word: str) -> bool:
        """Whether this word, as a whole, means it."""
        # A unit of a user's own systemd is called by its name there, too.
        known = (self.own, self.name, self.unit, self.unit.rpartition("/")[2])
        return word in filter(None, known) or (bool(self.uuid) and word.lower() == self.uuid)

    def matches(self, patterns: t.Iterable[str]) -> bool:
        """Whether one of the patterns matches its name, or is what it is called; upper and lower case differ.

        A UUID or a unit matches no pattern: who leaves ``a*`` out means names.
        """
        return any(fnmatch.fnmatchcase(self.name or self.own, each) or self.is_called(each) for each in patterns)


def options_of(
    vm: VmNames, common: t.Mapping[str, t.Any], by_vm: t.Mapping[str, t.Mapping[str, t.Any]]
) -> dict[str, t.Any]:
    """The options of one VM.

    :param common: those for all.
    :param by_vm: by what it is called, or by pattern, those that are others; of several that match, a later one
        overrides an earlier.
    """
    options = dict(common)
    for pattern, others in by_vm.items():
        if vm.matches([pattern]):
            options.update(others)
    return options


def is_selected(vm: VmNames, include: t.Iterable[str], exclude: t.Iterable[str]) -> bool:
    """Whether a VM is among those to include, and not among those to exclude."""
    return vm.matches(include) and not vm.matches(exclude)


def group_of(vm: VmNames, order: t.Sequence[t.Iterable[str]]) -> int:
    """The number of the first group with a pattern that matches a VM; ``len(order)`` where none does.

    :param order: the groups, each as its patterns.
    """
    return next((number for number, patterns in enumerate(order) if vm.matches(patterns)), len(order))
