# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""By what the VMs of a host are called, and shell patterns of their names, as all that takes them reads them."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
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
        if not word:
            return False
        return word in (self.own, self.name) or means_unit(word, self.unit) or word.lower() == self.uuid

    def matches(self, patterns: t.Iterable[str]) -> bool:
        """Whether one of the patterns matches its name, or is what it is called; upper and lower case differ.

        A UUID or a unit matches no pattern: who leaves ``a*`` out means names.
        """
        return any(fnmatch.fnmatchcase(self.name or self.own, each) or self.is_called(each) for each in patterns)


def means_unit(word: str, unit: str) -> bool:
    """Whether who says this word means this unit: by all of it, or, of his own systemd, by its name there.

    :param unit: as :mod:`manager` knows it, as the word may be.
    """
    return unit in (word, f"user@{os.geteuid()}.service/{word}")


def label_of_unit(unit: str) -> str:
    """What stands for the name of a VM that has none, and can stand in a file's name; each unit has its own."""
    return unit.replace("/", "-")


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
