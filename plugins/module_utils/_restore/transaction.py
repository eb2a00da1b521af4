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
import dataclasses
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._access import Access, choose_access
from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation, in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    LaunchError,
    MigrationError,
    MismatchError,
    MonitorBusyError,
    MonitorError,
    MonitorLostError,
    MonitorMissingError,
    MonitorProtocolError,
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
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import launch_log_path
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import StreamFacts
from ansible_collections.vmops.qemu.plugins.module_utils._launch import freeable_unit
from ansible_collections.vmops.qemu.plugins.module_utils._progress import Measure, Publisher
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import process_behind
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import (
    Migration,
    MigrationSupport,
    query_state,
    read_support,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor, event_seconds
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import Launch, LaunchedQemu, bytes_read
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.systemd import unit_of_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.transfer import Transfer
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import choose_launch
from ansible_collections.vmops.qemu.plugins.module_utils._restore.disks import require_same_media
from ansible_collections.vmops.qemu.plugins.module_utils._restore.finish import finish_restore
from ansible_collections.vmops.qemu.plugins.module_utils._restore.fit import require_fit, require_same_vm
from ansible_collections.vmops.qemu.plugins.module_utils._restore.in_qemu import RestoreRecord
from ansible_collections.vmops.qemu.plugins.module_utils._restore.run import RestoreRun
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation, guest_in
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.memory import empty_memory, memory_files

#: Seconds that a QEMU may take from its start to its QMP greeting.
LAUNCH_TIMEOUT = 60.0

#: Seconds between two looks for the QMP socket of a QEMU that is just starting; nothing announces it.
_LAUNCH_INTERVAL = 0.02

#: Seconds that QEMU may take to see that the tool that expands its image has failed.
_EXPANDER_GRACE = 2.0


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
        self.request = run.request
        self.head = head
        self.domain = domain
        self.stream = stream
        self.started = started
        self.launched: LaunchedQemu | None = None
        #: Of a QEMU that is being started, there are none at first.
        self.session: VmSession
        self.transfer: Transfer | None = None
        self.access: Access
        #: The tool that expands a compressed image for QEMU, and a descriptor of what it writes.
        self.expander: Filter | None = None
        self.expanded = -1

    async def attach(self, session: VmSession) -> dict[str, t.Any]:
        """Restore into a QEMU that waits already; the module's return values.

        :raises VmopsError: it failed; the image is untouched, and its situation says how the QEMU is.
        """
        self.session = session

        async def restore() -> None:
            # Time has gone by since it was found: the image was checked.
            await session.read()
            await self._restore()

        return await self._or_back(restore)

    async def launch(self, how: Launch) -> dict[str, t.Any]:
        """Restore into a QEMU that is started for it; as :meth:`attach`, with LaunchError."""

        async def restore() -> None:
            monitor = await self._launch(how)
            self.session = self.run.session = await VmSession.open(monitor)
            await self._restore()

        try:
            return await self._or_back(restore)
        finally:
            if hasattr(self, "session"):
                await self.session.close()

    async def _or_back(self, work: t.Callable[[], t.Awaitable[None]]) -> dict[str, t.Any]:
        try:
            await work()
        except BaseException as exc:
            # Also a cancellation (timeout, signal): a QEMU that holds half a guest must not stay.
            await despite_cancellation(self._roll_back(exc))
            raise
        try:
            return await despite_cancellation(self._complete())
        finally:
            if self.launched:
                self.launched.release()

    async def _restore(self) -> None:
        """Load the image."""
        vm = self.session.vm
        if vm.process:
            self.run.locks.take_vm(vm.process)
        if vm.run_state != "inmigrate":
            raise ConflictError(
                f"The QEMU of {vm.label} does not wait for a saved state (its run state is {vm.run_state})",
                cure="Start it with -incoming defer",
            )
        require_same_vm(vm, self.request.name, self.domain)
        if vm.process and not vm.process.waits_for_state:
            raise ConflictError(
                f"The QEMU of {vm.label} waits for a migration from elsewhere, not for an image",
                cure="Start it with -incoming defer",
            )
        await require_fit(self.session, self.head, self.domain, self.stream)
        await require_same_media(self.run, self.session, self.head)
        await self._load()

    # --- the QEMU ---

    async def _launch(self, how: Launch) -> Monitor:
        """Start the QEMU and wait for its QMP server.

        :raises LaunchError: it has none, or ended before it greeted.
        """
        label = self.domain.name
        addresses = command_line.qmp_addresses(read_configuration(how.argv, how.cwd).words, how.cwd)
        if self.request.qmp_socket:
            addresses.insert(0, self.request.qmp_socket)
        if not addresses:
            raise LaunchError(
                f"The command of {label} opens no QMP server", cure="Add -qmp unix:PATH,server=on,wait=off to it"
            )
        self.launched = choose_launch(how, launch_log_path(self.head.path), label)
        self.run.situation = Situation(
            f"The QEMU that was started for {label} is being ended", self.run.word_for(self.head)
        )
        await self.launched.start()
        deadline = time.monotonic() + LAUNCH_TIMEOUT
        while True:
            if await self.launched.ended():
                said = await self._said(self.launched) or "it said nothing"
                raise LaunchError(
                    f"The QEMU that was started for {label} ended at once: {said}",
                    cure=f"Correct what it says and restore again; its log is {self.launched.log}",
                )
            try:
                monitor = await Monitor.connect(addresses[0])
                if self._is_launched(monitor, how):
                    return monitor
                # Someone else listened there before; our QEMU has not come to it yet.
                await monitor.close()
                raise MonitorMissingError(f"Another process (pid {monitor.peer_pid}) listens at {addresses[0]}")
            except (MonitorMissingError, MonitorBusyError, MonitorProtocolError) as exc:
                # Protocol: it opened its server and ended before it greeted, which the next look at it tells.
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"The QEMU that was started for {label} opened no QMP server at {addresses[0]} within"
                        f" {LAUNCH_TIMEOUT:g} seconds ({exc.what})",
                        cure=f"See its log {self.launched.log}",
                    ) from exc
            await asyncio.sleep(_LAUNCH_INTERVAL)

    def _is_launched(self, monitor: Monitor, how: Launch) -> bool:
        """Whether the QEMU that was started here may answer on a monitor, or whoever listens for it."""
        process = process_behind(monitor)
        pid = process.pid if process else monitor.peer_pid
        if pid is not None:
            return self.launched is not None and self.launched.is_or_started(pid)
        # Behind a TCP port of a container, say; but not one that somebody else has taken.
        wanted = how.rights.uid if how.rights else os.geteuid()
        return monitor.peer_uid is None or monitor.peer_uid in (0, os.geteuid(), wanted)

    # --- loading ---

    async def _load(self) -> None:
        support = await read_support(self.session.monitor)
        sparse = self.head.header.mapped_ram
        if sparse and not support.mapped_ram:
            raise UnsupportedByQemuError(
                f"QEMU {support.version} cannot read the sparse format of {self.head.path}: it needs mapped-ram with"
                " direct-io, as in QEMU 9.1 and later",
                cure="Use the QEMU that saved it, or a newer one",
            )
        self.access = choose_access(
            self.head.path,
            self.head.header.format,
            self.request.parallel_channels,
            self.request.bypass_cache,
            lambda: direct_read_reason(self.head.path),
        )
        self.run.reasons.update(self.access.reasons)
        self.transfer = transfer = Transfer(self.session)
        await transfer.settings.plan(
            mapped_ram=sparse,
            parallel_channels=self.access.parallel_channels,
            direct_io=self.access.bypass_cache,
            bandwidth=None,
        )
        uri = await self._pass_descriptors(support, transfer)
        if sparse:
            await self._empty_memory()
        await transfer.settings.apply()
        # Before a load, stop means "do not start the guest when it is loaded": whether and when it runs is decided
        # here, however QEMU was started.
        await self.session.monitor.execute("stop")
        self.run.situation = Situation(f"{self.domain.name} is being loaded", self.run.word_for(self.head))
        reader = self.expander.pid if self.expander else self.session.pid or 0
        try:
            with Publisher(self.session.label, "restore") as progress:
                async with progress.following(self._bytes_read(reader)):
                    await transfer.migration.start_incoming(uri, keep_alive=support.exit_on_error)
                    await self._wait_for_load(transfer.migration)
        except MigrationError as exc:
            failure = await self.expander.failure() if self.expander else ""
            if failure:
                exc.what += f" ({failure})"
            exc.what = f"{self.domain.name} could not be loaded from {self.head.path}: {exc.what}"
            exc.cure = exc.cure or cure_for(exc.what)
            if not self.launched:
                exc.cure = exc.cure or "See what QEMU says (its stderr, or the log of its unit), then restore again"
            raise
        except MonitorLostError as exc:
            # QEMU (10.0) dies without a word of a page that it cannot read.
            exc.what = f"{self.domain.name} could not be loaded from {self.head.path}: {exc.what}"
            exc.cure = "See why QEMU ended (the kernel's log tells of a crash, and of a disk that fails), restore again"
            raise
        await self._see_expander_off()

    async def _pass_descriptors(self, support: MigrationSupport, transfer: Transfer) -> str:
        """Descriptors, with a note of this restore; the migration URI."""
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
            if self.access.bypass_cache:
                files.append(open_image_of(self.head, direct=True))
            # Also where QEMU reads from elsewhere: the note is kept with them.
            await transfer.pass_files(record.opaque(), *files)
            if compressor is None and support.file_uri:
                return transfer.descriptors.uri(offset)
            # One stream from a descriptor: a pipe from the tool or, before QEMU 9.1, the file itself.
            os.lseek(files[0], offset, os.SEEK_SET)
            source = files[0]
            if compressor:
                self.expanded, write_end = make_pipe()
                source = self.expanded
                files.append(write_end)
                self.expander = await Filter.start(compressor.expand_command(), stdin=files[0], stdout=write_end)
            return await transfer.descriptors.pass_named(source)
        finally:
            for descriptor in files:
                os.close(descriptor)

    async def _empty_memory(self) -> None:
        """A sparse image leaves zero pages alone: memory in a file that has outlived a QEMU must be empty.

        :raises MismatchError: it is not, and cannot be emptied.
        """
        files = await memory_files(self.session.monitor, self.session.process)
        problems = await despite_cancellation(in_thread(empty_memory, files))
        if problems:
            raise MismatchError(
                f"{self.head.path} cannot be loaded into the memory of {self.session.label}: {problems[0].what}",
                cure=problems[0].cure,
                problems=[problem.as_result() for problem in problems],
            )

    async def _wait_for_load(self, migration: Migration) -> None:
        """Wait until QEMU has loaded the guest.

        :raises ImageError: the tool that expands the image failed, and QEMU does not tell.
        """
        if self.expander is None:
            await migration.wait()
            return
        loading = asyncio.ensure_future(migration.wait())
        expanding = asyncio.ensure_future(self.expander.wait(self.head.path))
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

    async def _see_expander_off(self) -> None:
        """See that the tool came to the end of the image, whose checksum it compares only there.

        QEMU stops to read where the guest's state ends; what follows is read here, so that the tool is not cut off.

        :raises ImageError: the tool failed: the guest that was loaded is not the one that was saved.
        """
        if self.expander is None:
            return
        os.set_blocking(self.expanded, True)
        await in_thread(_drain, self.expanded)
        await self.expander.wait(self.head.path)

    async def _complete(self) -> dict[str, t.Any]:
        """Everything from the loaded guest on; runs to its end whatever happens."""
        label = self.domain.name
        running = self.run.wants_running(self.head)
        image = image_result(self.head.path)
        self.run.situation = Situation(
            f"{label} is loaded and its image {self.head.path} was kept; whether it runs is not known"
        )
        unit = freeable_unit(self.domain, self.head.path)
        kept = "kept"
        if await finish_restore(self.run, self.head, self.session.process, unit, lambda: self._go_on(running)):
            kept, image = "removed", {**image, "exists": False, "state": "absent"}
        if self.transfer:
            # Last, as the note in it tells a later run that the image is used up.
            await self.session.twice(self.transfer.descriptors.remove)
        duration = time.monotonic() - self.started
        resume = self.session.monitor.find_event("RESUME")
        return {
            "changed": True,
            "msg": f"{label} was restored from {self.head.path} in {duration:.1f} s and"
            f" {'runs' if running else 'is paused'}; the image was {kept}",
            "image": image,
            "vm": self.session.vm.as_result(),
            "launched": self.launched is not None,
            "running_at": round(event_seconds(resume), 3) if resume else None,
            "unit": (unit_of_process(self.session.process.pid) if self.session.process else "") or None,
            "duration": round(duration, 3),
            "parallel_channels": self.access.parallel_channels,
            "bypass_cache": self.access.bypass_cache,
            "reasons": self.run.reasons,
            "warnings": self.run.warnings,
            "diff": {"before": self.run.before, "after": self.run.outcome(running)},
        }

    async def _go_on(self, running: bool) -> None:
        """The guest as it shall be, also over a new connection.

        :raises MigrationError: it does not come to that.
        """
        label = self.domain.name
        run_state = await self.session.twice(lambda: self._let_go_on(running))
        if (run_state == "running") != running:
            raise MigrationError(
                f"{label} was loaded, but is in QEMU's run state {run_state}",
                situation=Situation(f"{label} is loaded; its image {self.head.path} was kept", guest_in(run_state)),
                cure="Look at the guest; let it go on with QMP cont",
            )
        self.run.situation = Situation(f"{label} {'runs' if running else 'is paused'}", guest_in(run_state))
        self.session.vm = dataclasses.replace(self.session.vm, run_state=run_state)

    async def _let_go_on(self, running: bool) -> str:
        """QEMU's settings as they were found, and then the guest; its run state."""
        if self.transfer:
            await self.transfer.settings.restore()
        return await self.session.put_guest_back("running" if running else "paused")

    # --- the way back ---

    async def _roll_back(self, cause: BaseException) -> None:
        """End a QEMU that was started here or that has begun to load; leave one that only waits as it was found."""
        label = self.domain.name
        word = self.run.word_for(self.head)
        if self.expander:
            await self.expander.end()
        try:
            if self.launched:
                await self._explain(cause, self.launched)
                await self.launched.end()
                self.run.situation = Situation(f"{label} is not running, and its image is untouched", word)
            elif await self._has_begun():
                await self.session.end()
                self.run.situation = Situation(
                    f"{label} is not running (a QEMU that failed to load cannot be used again and was ended), and its"
                    " image is untouched",
                    word,
                )
            elif hasattr(self, "session"):  # else none was started
                if self.transfer:
                    await self.session.twice(self.transfer.clean)
                self.run.situation = Situation(
                    f"{label} is not running, as its QEMU has ended, and its image is untouched"
                    if await self.session.has_ended()
                    else f"{label}'s QEMU still waits for its state, and the image is untouched",
                    word,
                )
        except MonitorError as exc:
            self.run.situation = Situation(
                f"{label} is not running, its image is untouched; the QEMU at {self.session.monitor.address} cannot be"
                f" reached any more ({exc.what})",
                word,
            )
        if isinstance(cause, VmopsError):
            cause.situation = self.run.situation
            cause.cure = cause.cure or "Correct what QEMU says, then run the task again"

    async def _has_begun(self) -> bool:
        """Whether QEMU has begun to load; one that refused to, or was not told to, is as good as before."""
        if self.transfer is None or not self.transfer.migration.started:
            return False
        try:
            state = await query_state(self.session.monitor)
        except MonitorError:
            return True
        return bool(state["status"] != "none")

    async def _explain(self, cause: BaseException, launched: LaunchedQemu) -> None:
        """Why a load failed is often only on QEMU's stderr."""
        if isinstance(cause, MonitorLostError):
            # A dying QEMU closes its socket a moment before it is gone.
            await launched.wait_end(2.0)
        if isinstance(cause, (MigrationError, MonitorLostError)):
            text = await self._said(launched)
            if text and text not in cause.what:
                cause.what += f" (QEMU said: {text})"
            cause.cure = cause.cure or "Correct what it says and restore again"
            cause.cure += f"; QEMU's log is {launched.log}"

    async def _said(self, launched: LaunchedQemu) -> str:
        """What the QEMU that was started wrote to stderr, where it repeats its words, but not the secrets in them."""
        text = await launched.stderr()
        for word in launched.how.argv:
            text = text.replace(word, command_line.redact_argument(word))
        return text


def _drain(descriptor: int) -> None:
    """Read a pipe to its end."""
    while os.read(descriptor, 65536):
        pass
