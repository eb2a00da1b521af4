# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The edge between the operations, which raise, and Ansible, which wants ``exit_json`` or ``fail_json``.

A timeout, SIGTERM, SIGINT and SIGHUP (a dropped connection) all cancel the operation's task, whose own clean-up puts
the guest back; there is no other way to stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import pwd
import re
import signal
import traceback
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageError,
    InterruptedOperationError,
    OperationTimeoutError,
    RequestError,
    VmopsError,
    one_line,
    tellable,
)
from ansible_collections.vmops.qemu.plugins.module_utils._options import Spec
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import redact_argument
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Operation(t.Protocol):
    """What :func:`run_operation` runs."""

    #: How guest and image are now.
    situation: Situation
    #: Who it is about, for messages.
    subject: str

    async def run(self) -> dict[str, t.Any]:
        """Do it and return the module's return values, or raise VmopsError."""


def run_operation(module: AnsibleModule, make: t.Callable[[], Operation], timeout: float) -> t.NoReturn:
    """Run one operation to its end and leave through the module.

    :param make: makes the operation from the options; may raise VmopsError.
    :param timeout: seconds it may take; 0 for no limit.
    """
    made: list[Operation] = []

    def work() -> dict[str, t.Any]:
        made.append(make())
        return asyncio.run(_bounded(made[0], timeout))

    _leave_with(module, work, lambda: made[0].situation if made else Situation())


def _leave_with(
    module: AnsibleModule, work: t.Callable[[], dict[str, t.Any]], situation: t.Callable[[], Situation]
) -> t.NoReturn:
    """Do the work and leave through the module, with its return values or its error.

    :param situation: tells how guest and image are when the work has failed, where its error does not.
    """
    try:
        result = work()
    except VmopsError as exc:
        exc.situation = exc.situation or situation()
        told = exc.as_result()
        if not module._diff:
            told.pop("diff", None)
        module.fail_json(**tellable(told))
    except Exception as exc:  # a bug of ours: the operator gets a sentence, and the traceback only with -vvv
        module.fail_json(
            msg=one_line(f"{module._name} met an unexpected error, please report it: {type(exc).__name__}: {exc}."),
            exception=tellable(traceback.format_exc()),
            guest_state=one_line(situation().sentence),
            **situation().words(),
        )
    if not module._diff:
        result.pop("diff", None)
    for warning in result.pop("warnings", []):
        module.warn(one_line(warning))
    module.exit_json(**tellable({**result, "msg": one_line(result["msg"])}))
    raise AssertionError("exit_json returned")


async def _bounded(operation: Operation, timeout: float) -> dict[str, t.Any]:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(operation.run())
    received: list[signal.Signals] = []

    def interrupt(number: signal.Signals) -> None:
        # Once only: a second signal must not cut the way back short.
        if not received:
            received.append(number)
            task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupt, number)
    done, _pending = await asyncio.wait({task}, timeout=timeout or None)
    if not done:
        task.cancel()
    try:
        try:
            return await task
        finally:
            _ignore_signals(loop)
    except asyncio.CancelledError:
        if received:
            raise InterruptedOperationError.of(operation.subject, received[0].name, operation.situation) from None
        # Only a run on one VM says it.
        awaited = getattr(operation, "awaited", "")
        raise OperationTimeoutError.of(operation.subject, timeout, operation.situation, awaited) from None


def _ignore_signals(loop: asyncio.AbstractEventLoop) -> None:
    """What comes now comes too late: the work is done or undone, and only the result is still to be told.

    Left to the loop, a signal would be written about on stderr while the loop is closed, and end the module after it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def run_blocking(
    module: AnsibleModule,
    function: t.Callable[[], dict[str, t.Any]],
    subject: str,
    situation: t.Callable[[], Situation],
) -> t.NoReturn:
    """Run work on files, without a guest, to its end and leave through the module.

    The first SIGTERM, SIGINT or SIGHUP raises InterruptedOperationError where the work is just then, so that its
    context managers clean up; further ones are ignored.

    :param function: does the work and returns the module's return values; may raise VmopsError.
    :param subject: what it is about, for messages.
    :param situation: tells how the image is when the work has failed.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        if not received:
            received.append(number)
            raise InterruptedOperationError.of(subject, signal.Signals(number).name)

    for number in _SIGNALS:
        signal.signal(number, interrupt)
    _leave_with(module, function, situation)


def show_without_secrets(
    module: AnsibleModule, values: t.Iterable[str], redact: t.Callable[[str], str] = redact_argument
) -> None:
    """Let what ``no_log`` hides be seen in results, but for the values with a secret in them.

    Ansible would hide each word of a command wherever it occurs, such as the VM's name in every message. The log of the
    host shows none of them, as ``no_log`` is in force when Ansible writes to it.

    :param redact: gives a value with its secrets hidden; may raise ImageError.
    """
    for value in values:
        with contextlib.suppress(ImageError):
            if redact(value) == value:
                module.no_log_values.discard(value)


def parse_saving(options: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Options of a save as the fields of its request; those that are not given are no fields.

    :raises RequestError: a mode, a rate, an owner or a group makes no sense.
    """
    fields = dict(options)
    if "mode" in fields:
        fields["mode"] = parse_mode(fields["mode"])
    if "bandwidth" in fields:
        fields["bandwidth"] = parse_bandwidth(fields["bandwidth"])
    given = {"uid": "owner" in fields, "gid": "group" in fields}
    uid, gid = parse_owner(fields.pop("owner", None), fields.pop("group", None))
    return {**fields, **{key: number for key, number in (("uid", uid), ("gid", gid)) if given[key]}}


def parse_by_vm(by_vm: t.Mapping[str, t.Any], spec: Spec) -> dict[str, dict[str, t.Any]]:
    """Options of single VMs, checked as Ansible checks those of the module.

    :param by_vm: by name, the options that are given.
    :param spec: what may be given.
    :returns: by name, the options that are given, with the types of the spec.
    :raises RequestError: one is not in the spec, or has another type or value.
    """
    checked = {}
    validator = ArgumentSpecValidator({name: {**option, "default": None} for name, option in spec.items()})
    for name, options in by_vm.items():
        if not isinstance(options, t.Mapping):
            raise RequestError(
                f"by_vm has no dictionary of options for {name}, but {options!r}", cure="Write {name: {option: value}}"
            )
        result = validator.validate(dict(options))
        if result.error_messages:
            raise RequestError(
                f"by_vm has for {name} what cannot be asked for: {'; '.join(result.error_messages)}",
                cure="Correct by_vm",
            )
        checked[str(name)] = {key: result.validated_parameters[key] for key in options}
    return checked


def parse_parallel(parallel: int) -> int:
    """:raises RequestError: it is less than 1."""
    if parallel < 1:
        raise RequestError(f"parallel is {parallel}, but at least 1 VM must be worked on", cure="Correct parallel")
    return parallel


def parse_mode(value: str | int) -> int:
    """Permission bits from an octal string such as ``0640``, or from the number that unquoted YAML makes of it.

    :raises RequestError: it is neither, or gives others access to the guest's memory.
    """
    if isinstance(value, int):
        mode = value
    elif re.fullmatch(r"0?[0-7]{3}", value):
        mode = int(value, 8)
    else:
        raise RequestError(f"mode {value!r} is not an octal file mode", cure='Quote it, as in mode: "0600"')
    if not 0 <= mode <= 0o777 or mode & 0o007:
        raise RequestError(
            f"mode {mode:#o} would let every user of the host read the guest's memory", cure="Use 0600 or 0640"
        )
    return mode


def parse_bandwidth(text: str | None) -> int | None:
    """Bytes a second from a size such as ``200M``.

    :raises RequestError: it is none, or less than 1 MiB a second (QEMU would hardly move).
    """
    if text is None:
        return None
    try:
        bandwidth = int(human_to_bytes(text))
    except ValueError as exc:
        raise RequestError(f"bandwidth {text!r} is not a size", cure="Write it as 200M or 1G, for one second") from exc
    if bandwidth < 1024 * 1024:
        raise RequestError(f"bandwidth {text} is less than 1M a second", cure="Raise it")
    return bandwidth


def parse_owner(owner: str | None, group: str | None) -> tuple[int, int]:
    """Numeric owner and group, -1 where none is asked for.

    :raises RequestError: there is no such user or group.
    """
    try:
        return (
            -1 if owner is None else _identifier(owner, lambda name: pwd.getpwnam(name).pw_uid),
            -1 if group is None else _identifier(group, lambda name: grp.getgrnam(name).gr_gid),
        )
    except (KeyError, ValueError) as exc:
        raise RequestError(
            f"The owner or group of the image is unknown on this host: {exc.args[0]}", cure="Correct owner and group"
        ) from exc


def _identifier(text: str, by_name: t.Callable[[str], int]) -> int:
    if not (text.isascii() and text.isdecimal()):
        return by_name(text)
    number = int(text)
    if number >= 2**32 - 1:  # chown takes the last one for "no change"
        raise ValueError(text)
    return number
