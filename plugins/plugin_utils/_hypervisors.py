# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules of this collection run on hosts while an inventory is still being read.

A small play does it, so that all holds that holds in a playbook: connections, become, the hosts' variables and their
vaults, and the action plugins that let in of an answer what a module documents. It runs in a process of its own, forked
from this one, since a play changes what belongs to the whole program: the command line, the inventory, signals.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import tempfile
import typing as t

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.executor.task_queue_manager import TaskQueueManager
from ansible.inventory.manager import InventoryManager
from ansible.playbook.play import Play
from ansible.utils.context_objects import CLIArgs
from ansible.vars.manager import VariableManager
from ansible_collections.vmops.qemu.plugins.plugin_utils._answer import sentence

try:
    from ansible.template import trust_as_template
except ImportError:  # before ansible-core 2.19, where all text of a play is a template
    trust_as_template = str

Answer = t.Dict[str, t.Any]

#: What of the program's command line is the play's, too: how hosts are reached, not what is done to them.
_CONNECTION = (
    "ask_vault_pass",
    "basedir",
    "become",
    "become_method",
    "become_user",
    "connection",
    "extra_vars",
    "forks",
    "module_path",
    "private_key_file",
    "remote_user",
    "scp_extra_args",
    "sftp_extra_args",
    "ssh_common_args",
    "ssh_extra_args",
    "timeout",
    "vault_ids",
    "vault_password_files",
    "verbosity",
)

#: What is known of each result.
_OUTCOME = ("failed", "unreachable", "msg")

#: What the results are registered as.
_REGISTERED = "vmops_qemu_answer_%d"


class AskError(Exception):
    """The play could not be run."""


class Question(t.NamedTuple):
    """A task of the play."""

    module: str
    arguments: t.Mapping[str, t.Any]
    #: What is wanted of its result, besides whether it has failed, and why.
    wanted: str


def template(text: str) -> str:
    """A text of this collection's own as a template, evaluated for each host."""
    return t.cast(str, trust_as_template(text))


def ask(
    questions: t.Sequence[Question],
    *,
    pattern: str,
    inventory: t.Any,
    loader: t.Any,
    keywords: t.Mapping[str, t.Any],
) -> dict[str, list[Answer]]:
    """Ask hosts.

    :param pattern: of the hosts, as in ``hosts`` of a play.
    :param inventory: what is known of them so far, as an inventory plugin is given it.
    :param loader: of the program, which knows its vaults' secrets.
    :param keywords: of each task, as ``become``.
    :returns: by host its answers, in order; fewer than questions where one could not be asked.
    :raises AskError: the play could not be run.
    """
    descriptor, path = tempfile.mkstemp(suffix=".json", dir=C.DEFAULT_LOCAL_TMP)
    os.close(descriptor)
    try:
        process = multiprocessing.get_context("fork").Process(
            target=_write_answers, args=(path, questions, pattern, inventory, loader, keywords)
        )
        process.start()
        try:
            process.join()
        finally:
            if process.is_alive():
                process.terminate()
                process.join()
        with open(path, encoding="utf-8") as handle:
            text = handle.read()
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    if not text:
        raise AskError(f"the process that asks has ended with exit status {process.exitcode}")
    told = json.loads(text)
    if told["error"]:
        raise AskError(told["error"])
    answers: dict[str, list[Answer]] = told["answers"]
    return answers


def _write_answers(path: str, *about: t.Any) -> None:
    """The forked process: what was found, or the error, as JSON."""
    told: dict[str, t.Any] = {"error": "", "answers": {}}
    try:
        told["answers"] = _play(*about)
    except (AnsibleError, OSError) as error:
        told["error"] = sentence(str(error)) or type(error).__name__
    with open(path, "w", encoding="utf-8") as handle:
        json.dump(told, handle)


class _Quiet(TaskQueueManager):  # type: ignore[misc]  # ansible-core has no types
    """Runs a play and shows nothing: what standard output says is the program's own."""

    def load_callbacks(self) -> None:
        """None is told."""

    def send_callback(self, method_name: str, *args: t.Any, **kwargs: t.Any) -> None:
        """Nothing is told."""


def _play(
    questions: t.Sequence[Question], pattern: str, inventory: t.Any, loader: t.Any, keywords: t.Mapping[str, t.Any]
) -> dict[str, list[Answer]]:
    context.CLIARGS = CLIArgs({name: context.CLIARGS[name] for name in _CONNECTION if name in context.CLIARGS})
    hosts = InventoryManager(loader=loader, sources=None, parse=False)
    # The copy of the fork; since ansible-core 2.19 a plugin is given it in a wrapper.
    hosts._inventory = getattr(inventory, "__wrapped__", inventory)
    hosts._sources = list(getattr(inventory, "processed_sources", ()))
    hosts.reconcile_inventory()
    chosen = hosts.get_hosts(pattern)
    if not chosen:
        return {}
    variables = VariableManager(loader=loader, inventory=hosts)
    play = Play().load(
        {
            "name": "Ask the hypervisors",
            "hosts": pattern,
            "gather_facts": False,
            "strategy": "ansible.builtin.linear",
            "tasks": [
                {
                    "name": f"Run {question.module}",
                    question.module: dict(question.arguments),
                    "register": _REGISTERED % number,
                    "ignore_errors": True,
                    **keywords,
                }
                for number, question in enumerate(questions)
            ],
        },
        variable_manager=variables,
        loader=loader,
    )
    manager = _Quiet(
        inventory=hosts,
        variable_manager=variables,
        loader=loader,
        passwords={"conn_pass": None, "become_pass": None},
        forks=context.CLIARGS.get("forks") or C.DEFAULT_FORKS,
    )
    try:
        manager.run(play)
    finally:
        manager.cleanup()
    answers = {}
    for host in chosen:
        known = variables.get_vars(play=play, host=host)
        answers[str(host.name)] = [
            {key: value for key, value in known[name].items() if key in (question.wanted, *_OUTCOME)}
            for name, question in ((_REGISTERED % number, question) for number, question in enumerate(questions))
            if name in known
        ]
    return answers
