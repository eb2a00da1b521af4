# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The restore itself: a QEMU that waits or is started, the load, and the way back.

See that image and QEMU fit, since QEMU itself takes some that do not (a VM with more memory) and reports success; let
QEMU load; let the guest run; only then remove the image. A QEMU that failed to load cannot be used again, so it is
ended; the image stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import time
import types
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._access import Access, choose_access
from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import (
    WayBack,
    despite_cancellation,
    in_stoppable_thread,
    in_thread,
    to_its_end,
)
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    MigrationError,
    MismatchError,
    MonitorError,
    MonitorLostError,
    UnsupportedByQemuError,
    VmopsError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS, Filter, make_pipe
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.identity import ImageIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import cure_for
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import direct_read_reason, open_image_of
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_result
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import vm_label
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import StreamFacts
from ansible_collections.vmops.qemu.plugins.module_utils._launch import freeable_unit
from ansible_collections.vmops.qemu.plugins.module_utils._progress import Measure, Publisher
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.door import Door
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.greeting import doors_of, greeted, words_of
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch, LaunchedQemu
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import (
    Migration,
    MigrationSupport,
    query_state,
    read_support,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import event_seconds
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import bytes_read
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.systemd import unit_of_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.threads import complete_resources
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.transfer import Transfer
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit_launch import choose_launch
from ansible_collections.vmops.qemu.plugins.module_utils._restore.disks import require_same_media
from ansible_collections.vmops.qemu.plugins.module_utils._restore.finish import finish_restore, mark_used, words_for
from ansible_collections.vmops.qemu.plugins.module_utils._restore.fit import require_fit, require_same_vm
from ansible_collections.vmops.qemu.plugins.module_utils._restore.in_qemu import RestoreRecord
from ansible_collections.vmops.qemu.plugins.module_utils._restore.run import RestoreRun
from ansible_collections.vmops.qemu.plugins.module_utils._restore.same_cpu import require_same_cpu
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation, guest_in
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.memory import (
    empty_memory,
    memory_files,
    shared_memory_problems,
)

#: Seconds that QEMU may take to see that the tool that expands its image has failed.
_EXPANDER_GRACE = 2.0


@dataclasses.dataclass(frozen=True)
class _Expander:
    """The tool that expands a compressed image for QEMU, and a descriptor of what it writes."""

    tool: Filter
    output: int


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A QEMU that has loaded the image."""

    session: VmSession
    #: What it has set and holds for that.
    transfer: Transfer
    access: Access


class RestoreTransaction:
    """One restore, from the QEMU's start to the image's end."""

    def __init__(
        self,
        run: RestoreRun,
        head: ImageHead,
        domain: domain_xml.ParsedDomain,
        stream: StreamFacts | None,
        started: float,
    ) -> None:
        """:param started: when the restore began (time.monotonic)."""
        self.run = run
        self.head = head
        self.domain = domain
        self.stream = stream
        self.started = started
        self._taken = False
        self.way_back = WayBack()
        self.way_back.push(self._tell_end)

    async def attach(self, session: VmSession, how: Launch | None) -> dict[str, t.Any]:
        """Restore into a QEMU that waits already; the module's return values.

        :param how: how an earlier run may have started it, which was killed before it had done what follows a start.
        :raises VmopsError: it failed; the image is untouched, and its situation says how the QEMU is.
        """
        async with self.way_back:
            transfer = Transfer(session)
            self.way_back.push_async_exit(functools.partial(self._leave, session, transfer))
            # Time has gone by since it was found: the image was checked.
            await session.read()
            if how:
                await self._complete_start(session, how)
            loaded = await self._restore(session, transfer)
            await despite_cancellation(self._take_image())
            # The point of no return: the guest is there.
            self.way_back.pop_all()
        return await despite_cancellation(self._complete(loaded, None))

    async def launch(self, how: Launch) -> dict[str, t.Any]:
        """Restore into a QEMU that is started for it; as :meth:`attach`, with LaunchError."""
        async with contextlib.AsyncExitStack() as afterwards:
            async with self.way_back:
                launched, known = self._choose_launch(how)
                self.run.situation = Situation(
                    f"The QEMU that was started for {self.domain.name} is being ended", self.run.word_for(self.head)
                )
                await self._provide(afterwards)
                self.way_back.push_async_exit(functools.partial(self._end, launched))
                await launched.start()
                monitor = await self.run.await_long(
                    f"the QEMU that was started to open its QMP server at {known[0].shown_address}",
                    greeted(launched, known, self.domain.name),
                )
                session = await VmSession.open(monitor)
                afterwards.push_async_callback(session.close)
                self.run.session = session
                await self._complete_start(session, how)
                loaded = await self._restore(session, Transfer(session))
                await despite_cancellation(self._take_image())
                self.way_back.pop_all()
            afterwards.callback(launched.release)
            return await despite_cancellation(self._complete(loaded, launched))

    async def _complete_start(self, session: VmSession, how: Launch) -> None:
        """Give a QEMU what its start could not."""
        self.run.warnings += [
            f"{self.domain.name} has not got all that its QEMU had: {problem}"
            for problem in await complete_resources(session.monitor, how, session.pid)
        ]

    async def _restore(self, session: VmSession, transfer: Transfer) -> _Loaded:
        """Load the image."""
        vm = session.vm
        if vm.process:
            await self.run.locks.take_vm(vm.process)
        if vm.run_state != "inmigrate":
            raise ConflictError(
                f"The QEMU of {vm.label} does not wait for a saved state (its run state is {vm.run_state})",
                cure="Start it with -incoming defer",
            )
        require_same_vm(vm, self.run.request.name, self.domain)
        if vm.process and not vm.process.waits_for_state:
            raise ConflictError(
                f"The QEMU of {vm.label} waits for a migration from elsewhere, not for an image",
                cure="Start it with -incoming defer",
            )
        await require_fit(session, self.head, self.domain, self.stream)
        await require_same_cpu(self.run, session, self.domain)
        await require_same_media(self.run, session, self.head)
        if self.run.provision is not None:
            self.run.warnings += await self.run.provision.connect_network(session.process)
        return await self._load(session, transfer)

    # --- the QEMU ---

    def _choose_launch(self, how: Launch) -> tuple[LaunchedQemu, list[Door]]:
        """What starts the QEMU, and where that will answer.

        :raises LaunchError: it opens no QMP server.
        """
        return choose_launch(how, self._label), doors_of(how, self.domain.name, self.run.request.qmp_socket)

    @property
    def _label(self) -> str:
        """What tells it from another VM of its name that is restored beside it."""
        return vm_label(self.head.path, self.domain.name)

    async def _provide(self, afterwards: contextlib.AsyncExitStack) -> None:
        """Make again what QEMU needs to be started: directories, and the server of its TPM, which ends if this fails.

        :raises LaunchError: that cannot be done.
        """
        provision = self.run.provision
        if provision is None:
            return

        def started(launched: LaunchedQemu) -> None:
            self.way_back.push_async_callback(launched.end)
            afterwards.callback(launched.release)

        await provision.make_directories()
        await self.run.await_long("the server of its TPM", provision.start_servers(started))

    # --- loading ---

    async def _load(self, session: VmSession, transfer: Transfer) -> _Loaded:
        support = await read_support(session.monitor)
        sparse = self.head.header.mapped_ram
        if sparse and not support.mapped_ram:
            raise UnsupportedByQemuError(
                f"QEMU {support.version} cannot read the sparse format of {self.head.path}: it needs mapped-ram with"
                " direct-io, as in QEMU 9.1 and later",
                cure="Use the QEMU that saved it, or a newer one",
            )
        if self.run.was_suspended(self.head) and not support.suspended:
            raise UnsupportedByQemuError(
                f"The guest of {self.head.path} sleeps (S3), and QEMU {support.version} would load one that neither"
                " sleeps nor wakes: it knows of a sleeping guest from version 9.0 on",
                cure="Use the QEMU that saved it, or a newer one",
            )
        access = choose_access(
            self.head.path,
            self.head.header.format,
            self.run.request.parallel_channels,
            self.run.request.bypass_cache,
            lambda: direct_read_reason(self.head.path),
        )
        self.run.reasons.update(access.reasons)
        await transfer.settings.plan(
            mapped_ram=sparse,
            parallel_channels=access.parallel_channels,
            direct_io=access.bypass_cache,
            bandwidth=None,
            # QEMU 7.2 writes to a qcow2 image with bitmaps when it activates it: were the guest lost before it goes on,
            # that disk would not be the saved one any more. The disks of one that stays paused nothing else activates.
            late_activation=self.run.wants_running(self.head),
        )
        uri, expander = await self._pass_descriptors(support, transfer, access)
        await self._prepare_memory(session, sparse)
        await transfer.settings.apply()
        # Before a load, stop means "do not start the guest when it is loaded": whether and when it runs is decided
        # here, however QEMU was started.
        await session.monitor.execute("stop")
        self.run.situation = Situation(f"{self.domain.name} is being loaded", self.run.word_for(self.head))
        reader = expander.tool.pid if expander else session.pid or 0
        try:
            with Publisher(self._label, "restore", self.run.path) as progress:
                async with progress.following(self._bytes_read(reader)):
                    await transfer.migration.start_incoming(uri)
                    await self._wait_for_load(transfer.migration, expander)
        except MigrationError as exc:
            failure = await expander.tool.failure() if expander else ""
            if failure:
                exc.what += f" ({failure})"
            exc.what = f"{self.domain.name} could not be loaded from {self.head.path}: {exc.what}"
            exc.cure = exc.cure or cure_for(exc.what)
            raise
        except MonitorLostError as exc:
            # QEMU (10.0) dies without a word of a page that it cannot read.
            exc.what = f"{self.domain.name} could not be loaded from {self.head.path}: {exc.what}"
            exc.cure = "See why QEMU ended (the kernel's log tells of a crash, and of a disk that fails), restore again"
            raise
        if expander:
            await self._see_off(expander)
        return _Loaded(session, transfer, access)

    async def _pass_descriptors(
        self, support: MigrationSupport, transfer: Transfer, access: Access
    ) -> tuple[str, _Expander | None]:
        """Descriptors, with a note of this restore; the migration URI, and the tool that writes what QEMU reads."""
        settings = transfer.settings
        path, offset = self.head.path, self.head.header.stream_offset
        compressor = COMPRESSORS.get(self.head.header.format)
        record = RestoreRecord(
            image=self.run.path,
            identity=ImageIdentity.of(path),
            expanded=compressor is not None,
            capabilities=settings.found_capabilities,
            parameters=settings.found_parameters,
        )
        files = [open_image_of(self.head)]
        try:
            if access.bypass_cache:
                files.append(open_image_of(self.head, direct=True))
            # Also where QEMU reads from elsewhere: the note is kept with them.
            await transfer.pass_files(record.opaque(), *files)
            if compressor is None and support.file_uri:
                return transfer.descriptors.uri(offset), None
            # One stream from a descriptor: a pipe from the tool or, before QEMU 9.1, the file itself.
            os.lseek(files[0], offset, os.SEEK_SET)
            if compressor is None:
                return await transfer.descriptors.pass_named(files[0]), None
            output, write_end = make_pipe()
            files.append(write_end)
            tool = await Filter.start(compressor.expand_command(), stdin=files[0], stdout=write_end)
            self.way_back.push_async_callback(tool.end)
            return await transfer.descriptors.pass_named(output), _Expander(tool, output)
        finally:
            for descriptor in files:
                os.close(descriptor)

    async def _prepare_memory(self, session: VmSession, sparse: bool) -> None:
        """A sparse image leaves zero pages alone: memory in a file that has outlived a QEMU must be empty.

        What is written from here on is noted before.

        :raises MismatchError: it is not, and cannot be emptied; or somebody else works with it.
        """
        files = await memory_files(session.monitor, session.process)
        problems = await in_stoppable_thread(shared_memory_problems, files)
        if not problems:
            problems = await to_its_end(in_thread(empty_memory, files if sparse else [], self._note_load))
        if problems:
            raise MismatchError(
                f"{self.head.path} cannot be loaded into the memory of {session.label}: {problems[0].what}",
                cure=problems[0].cure,
                problems=[problem.as_result() for problem in problems],
            )

    def _note_load(self) -> None:
        note = self.run.load_note
        if note is None:
            return
        try:
            note = note.write()
        except OSError as exc:
            note = dataclasses.replace(note, stands=True)
            self.run.warnings.append(
                f"It cannot be noted in {note.path} that {self.run.path} is being loaded ({exc.strerror}): if that is"
                " cut off, it takes disks: ignore to load it again"
            )
        self.run.load_note = note

    async def _wait_for_load(self, migration: Migration, expander: _Expander | None) -> None:
        """Wait until QEMU has loaded the guest.

        :raises ImageError: the tool that expands the image failed, and QEMU does not tell.
        """
        if expander is None:
            await migration.wait()
            return
        loading = asyncio.ensure_future(migration.wait())
        expanding = asyncio.ensure_future(expander.tool.wait(self.head.path))
        try:
            await asyncio.wait({loading, expanding}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done() and expanding.exception():
                # Of a stream that ends before its first byte QEMU (10.0) takes no notice, and waits for ever.
                await asyncio.wait({loading}, timeout=_EXPANDER_GRACE)
                if not loading.done():
                    expanding.result()
            await loading
        finally:
            for task in (loading, expanding):
                task.cancel()
            await asyncio.gather(loading, expanding, return_exceptions=True)

    def _bytes_read(self, pid: int) -> Measure:
        """Measures how much of the image a process has read; QEMU itself says nothing of a load."""
        size = self.head.size if self.head.header.format is not ImageFormat.SPARSE else self.head.allocated
        try:
            before = bytes_read(pid)
        except OSError:
            before = 0

        async def measure() -> tuple[int, int]:
            return bytes_read(pid) - before, size

        return measure

    async def _see_off(self, expander: _Expander) -> None:
        """See that the tool came to the end of the image, whose checksum it compares only there.

        QEMU stops to read where the guest's state ends; what follows is read here, so that the tool is not cut off.

        :raises ImageError: the tool failed: the guest that was loaded is not the one that was saved.
        """
        os.set_blocking(expander.output, True)
        await in_thread(_drain, expander.output)
        await expander.tool.wait(self.head.path)

    @property
    def _image_now(self) -> str:
        return "somebody else has taken its image" if self._taken else self.run.untouched

    async def _take_image(self) -> None:
        """Mark the image as used; raises as :func:`mark_used`."""
        try:
            await mark_used(self.run, self.head)
        except ConflictError:
            # That it is the guest's last state is not known any more.
            self.head = dataclasses.replace(self.head, header=dataclasses.replace(self.head.header, checkpoint=True))
            self._taken = True
            raise

    async def _complete(self, loaded: _Loaded, launched: LaunchedQemu | None) -> dict[str, t.Any]:
        """Everything from the loaded guest on; runs to its end whatever happens."""
        label, session = self.domain.name, loaded.session
        running = self.run.wants_running(self.head)
        image = image_result(self.head.path)
        kept = "kept"
        unit = freeable_unit(self.domain, self.head.path)
        gone = await finish_restore(self.run, session, self.head, running, transfer=loaded.transfer, recorded_unit=unit)
        if gone or not os.path.lexists(self.head.path):
            kept, image = "removed", {**image, "exists": False, "state": "absent"}
        duration = time.monotonic() - self.started
        resume = session.monitor.find_event("RESUME")
        return {
            "changed": True,
            "msg": f"{label} was restored from {self.head.path} in {duration:.1f} s and"
            f" {words_for(session.vm.run_state)}; the image was {kept}",
            "image": image,
            "vm": session.vm.as_result(),
            "launched": launched is not None,
            "running_at": round(event_seconds(resume), 3) if resume else None,
            "time_sync": None,
            "unit": (unit_of_process(session.process.pid) if session.process else "") or None,
            "duration": round(duration, 3),
            "parallel_channels": loaded.access.parallel_channels,
            "bypass_cache": loaded.access.bypass_cache,
            "reasons": self.run.reasons,
            "warnings": self.run.warnings,
            "diff": {
                "before": self.run.before,
                "after": self.run.outcome(running, session.vm.run_state == "suspended"),
            },
        }

    # --- the way back ---

    async def _leave(
        self,
        session: VmSession,
        transfer: Transfer,
        _kind: type[BaseException] | None,
        cause: BaseException | None,
        _trace: types.TracebackType | None,
    ) -> None:
        """End a QEMU that has begun to load, which cannot be used again; leave one that only waits as it was found."""
        if isinstance(cause, MigrationError):
            cause.cure = cause.cure or "See what QEMU says (its stderr, or the log of its unit), then restore again"
        label, word = self.domain.name, self.run.word_for(self.head)
        try:
            if await _has_begun(session, transfer):
                await session.end()
                sentence = (
                    f"{label} is not running (its QEMU cannot be used again and was ended), and {self._image_now}"
                )
            else:
                await session.twice(transfer.clean)
                if await session.has_ended():
                    sentence = f"{label} is not running, as its QEMU has ended, and {self.run.untouched}"
                elif session.vm.run_state == "inmigrate":
                    sentence = f"{label}'s QEMU still waits for its state, and {self.run.untouched}"
                else:
                    run_state = session.vm.run_state
                    sentence, word = f"{label} was not touched (QEMU's run state is {run_state})", guest_in(run_state)
        except MonitorError as exc:
            sentence = (
                f"{label} is not running, {self.run.untouched}; the QEMU at {session.monitor.address} cannot be"
                f" reached any more ({exc.what})"
            )
        self.run.situation = Situation(sentence, word)

    async def _end(
        self,
        launched: LaunchedQemu,
        _kind: type[BaseException] | None,
        cause: BaseException | None,
        _trace: types.TracebackType | None,
    ) -> None:
        """End the QEMU that was started here. Why its load failed is often only on its stderr."""
        if isinstance(cause, MonitorLostError):
            # A dying QEMU closes its socket a moment before it is gone.
            await launched.wait_end(2.0)
        if isinstance(cause, (MigrationError, MonitorLostError)):
            text = await words_of(launched)
            if text and text not in cause.what:
                cause.what += f" (QEMU said: {text})"
            cause.cure = cause.cure or "Correct what it says and restore again"
            cause.cure += f"; QEMU's log is {launched.log}"
        await launched.end()
        sentence = f"{self.domain.name} is not running, and {self._image_now}"
        self.run.situation = Situation(sentence, self.run.word_for(self.head))

    def _tell_end(
        self, _kind: type[BaseException] | None, cause: BaseException | None, _trace: types.TracebackType | None
    ) -> None:
        """Last: how it ended, and what to do where nothing better is known."""
        if isinstance(cause, VmopsError):
            cause.situation = self.run.situation
            cause.cure = cause.cure or "Correct what QEMU says, then run the task again"


async def _has_begun(session: VmSession, transfer: Transfer) -> bool:
    """Whether QEMU has begun to load; one that refused to, or was not told to, is as good as before."""
    if not transfer.migration.started:
        return False
    try:
        state = await query_state(session.monitor)
    except MonitorError:
        return True
    return bool(state["status"] != "none")


def _drain(descriptor: int) -> None:
    """Read a pipe to its end."""
    while os.read(descriptor, 65536):
        pass
