# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The save itself: write, flush, check, complete, end; whatever goes wrong before the image is complete is undone.

Create the partial image beside the target; stop the guest (or leave it running while its memory is written); let QEMU
write; flush; check the file against what it promises; complete and rename it; only then let QEMU quit. Whatever goes
wrong before the rename puts the guest back as it was and leaves the target alone. A guest that shall run after the save
does so as soon as QEMU has written, as it would after a failure: the rest of the save can fail without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import threading
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
    CommandError,
    ImageError,
    ImageFormatError,
    MigrationError,
    MonitorError,
    VmopsError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS, Filter, make_pipe
from ansible_collections.vmops.qemu.plugins.module_utils._image.digest import stream_digest
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import cure_for
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_result
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import vm_label
from ansible_collections.vmops.qemu.plugins.module_utils._image.partial import PartialImage
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import structure_problems
from ansible_collections.vmops.qemu.plugins.module_utils._launch import free_units
from ansible_collections.vmops.qemu.plugins.module_utils._progress import Publisher
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import fingerprint, query_state
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import event_seconds
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.transfer import Transfer
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import LIVE_STATES
from ansible_collections.vmops.qemu.plugins.module_utils._save.ending import end_checkpoint, end_save, guard
from ansible_collections.vmops.qemu.plugins.module_utils._save.in_qemu import InterruptedSave, SaveRecord
from ansible_collections.vmops.qemu.plugins.module_utils._save.plan import SavePlan, adopted_plan, bytes_needed
from ansible_collections.vmops.qemu.plugins.module_utils._save.run import SaveRun
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation, guest_in
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_changes import settling_time
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.survey import read_all_media
from ansible_collections.vmops.qemu.plugins.module_utils._written_bound import WrittenBound


@dataclasses.dataclass(frozen=True)
class _Written:
    """What QEMU has written, and how the VM was then."""

    #: QEMU's last ``query-migrate``.
    state: dict[str, t.Any]
    #: Seconds from the start until it was on disk.
    seconds: float
    surroundings: Surroundings
    #: How long the checksum took, in milliseconds, where there is one.
    checksum_ms: int | None
    #: QEMU's run state before the save.
    run_state: str


class SaveTransaction:
    """One save after its plan.

    There are two ways back, since what comes first is not what was done last: first the guest and QEMU, for which the
    guest waits, then files, tools and units.
    """

    def __init__(
        self,
        run: SaveRun,
        session: VmSession,
        transfer: Transfer,
        partial: PartialImage,
        started: float,
        adopted: bool = False,
    ) -> None:
        """:param started: when the work on the VM began (time.monotonic). :param adopted: whether by an earlier run."""
        self.run = run
        self.session = session
        #: What QEMU has set and holds for it.
        self.transfer = transfer
        self.partial = partial
        self.started = started
        self.adopted = adopted
        self.since = session.monitor.mark()
        #: Whether what was written stays for the next run, as the guest cannot go on without it.
        self.kept = False
        #: Whether the guest goes on already, as it shall after the save; None where that is not known.
        self.goes_on: bool | None = False
        self.in_qemu, self.beside = WayBack(), WayBack()
        self.beside.push_async_exit(self._tell_end)
        self.beside.callback(self._discard)

    @classmethod
    async def save(cls, run: SaveRun, session: VmSession, plan: SavePlan, started: float) -> dict[str, t.Any]:
        """Save as planned; the module's return values.

        :param started: when the work on the VM began (time.monotonic).
        :raises VmopsError: it failed, and guest, QEMU and files are as they were, as far as its situation says so.
        """
        request = run.request
        partial = PartialImage.create(
            run.path, plan.header, plan.xml, mode=request.mode, uid=request.uid, gid=request.gid
        )
        save = cls(run, session, Transfer(session), partial, started)
        async with save.beside, save.in_qemu:
            access = choose_access(
                run.path, plan.format, request.parallel_channels, request.bypass_cache, partial.direct_io_reason
            )
            uri, compressor = await save._prepare(plan, access)
            write_started = time.monotonic()
            await save._start(uri)
            return await save._finish(plan, access, compressor, write_started)

    @classmethod
    async def adopt(
        cls, run: SaveRun, session: VmSession, interrupted: InterruptedSave, partial: PartialImage
    ) -> dict[str, t.Any]:
        """Go on with a save that an earlier run began and that QEMU carried on alone; as :meth:`save`.

        :param partial: what ``interrupted`` has adopted.
        """
        record, started = interrupted.record, time.monotonic()
        save = cls(run, session, interrupted.transfer, partial, started, adopted=True)
        async with save.beside, save.in_qemu:
            save.in_qemu.push_async_callback(save._clean)
            save.in_qemu.push_async_callback(save._put_guest_back)
            plan = await adopted_plan(run, session, partial)
            run.situation = Situation(f"{session.label} is being saved")
            access = Access(record.parallel_channels, record.bypass_cache, {})
            return await save._finish(plan, access, None, started)

    async def _finish(
        self, plan: SavePlan, access: Access, compressor: Filter | None, write_started: float
    ) -> dict[str, t.Any]:
        """From the migration that runs to the end."""
        with Publisher(vm_label(self.run.path, self.run.name_in_image), "save", self.run.path) as progress:
            async with progress.following(self.transfer.migration.memory_done):
                bound = WrittenBound(
                    self.partial, self.session.label, bytes_needed(self.session), self.session.vm.memory
                )
                with self.session.patience():
                    following = bound.guard(self._follow(compressor), self.session.stop_if_running)
                    state = await (following if access.bypass_cache else self._with_write_back(following))
            surroundings = await self._surroundings(plan)
            run_state = self._run_state
            # Anew: before 9.2, QEMU may say that it is done a moment before all figures are there.
            figures = fingerprint(await self.session.twice(lambda: query_state(self.session.monitor)))
            describe = functools.partial(
                plan.final_xml,
                self.run.path,
                parallel_channels=access.parallel_channels or 0,
                migration=figures,
                suspended=run_state == "suspended",
                memory_written=int(state.get("ram", {}).get("normal-bytes", 0)),
                surroundings=surroundings.dump(),
            )
            shall_go_on = self.run.request.after_save == "resume" and run_state == "running"
            # Before the guest goes on, now or on the way back: of a run that is killed then, the next one must not take
            # another migration of this QEMU for the save.
            await to_its_end(in_thread(self.partial.describe, describe(digest=""), shall_go_on))
            if shall_go_on:
                await to_its_end(self._let_guest_go_on())
            progress.phase("flush")
            if compressor:
                await compressor.wait(self.partial.path)
            await in_thread(self.partial.flush)
            seconds = time.monotonic() - write_started
            progress.phase("check")
            await self._check_file()
            progress.phase("checksum")
            digest, checksum_ms = await self._digest(access) if self.run.request.checksum else ("", None)
            written = _Written(state, seconds, surroundings, checksum_ms, run_state)
            bound.check()
            # Before there is an image for it to look at, so that there never is one without it.
            if plan.unit and self.run.request.guards:
                self.beside.push_async_callback(free_units, plan.unit, self.session.process, self.run.path)
            await guard(self.run, plan.unit)
            return await despite_cancellation(self._complete(plan, access, describe(digest=digest), written))

    # --- with the guest ---

    async def _prepare(self, plan: SavePlan, access: Access) -> tuple[str, Filter | None]:
        """Descriptors, with a note of this save, and settings; the migration URI and the tool that QEMU writes to."""
        settings = self.transfer.settings
        await settings.plan(
            mapped_ram=plan.format is ImageFormat.SPARSE,
            parallel_channels=access.parallel_channels,
            direct_io=access.bypass_cache,
            bandwidth=self.run.request.bandwidth,
        )
        record = SaveRecord(
            partial=self.partial.path,
            run_state=self.session.vm.run_state,
            capabilities=settings.found_capabilities,
            parameters=settings.found_parameters,
            parallel_channels=access.parallel_channels,
            bypass_cache=access.bypass_cache,
        )
        compressor = COMPRESSORS.get(plan.format)
        files = [self.partial.open_for_qemu(direct=False)]
        try:
            if access.bypass_cache:
                files.append(self.partial.open_for_qemu(direct=True))
            self.in_qemu.push_async_callback(self._clean)
            await self.transfer.pass_files(record.opaque(), *files)
            await settings.apply()
            if compressor is None and plan.support.file_uri:
                return self.transfer.descriptors.uri(self.partial.stream_offset), None
            # One stream into a descriptor: a pipe to the compressor or, before QEMU 9.1, the file itself.
            os.lseek(files[0], self.partial.stream_offset, os.SEEK_SET)
            tool = None
            if compressor:
                files += make_pipe()
                tool = await Filter.start(compressor.compress_command(), stdin=files[-2], stdout=files[0])
                self.beside.push_async_callback(tool.end)
            return await self.transfer.descriptors.pass_named(files[-1]), tool
        finally:
            for descriptor in files:
                os.close(descriptor)

    async def _start(self, uri: str) -> None:
        """Stop the guest, unless the save is live, and let QEMU begin to write."""
        label = self.session.label
        self.since = self.session.monitor.mark()
        self.in_qemu.push_async_callback(self._put_guest_back)
        if self.session.vm.run_state in LIVE_STATES and not self.run.request.live:
            self.run.situation = Situation(f"{label} is being stopped")
            await self._stop()
        self.run.situation = Situation(f"{label} is being saved")
        await self.transfer.migration.start_outgoing(uri)

    async def _follow(self, compressor: Filter | None) -> dict[str, t.Any]:
        """Wait until QEMU has written everything; returns its last ``query-migrate``."""
        waiting = asyncio.ensure_future(self.transfer.migration.wait())
        try:
            if await self.session.run_state() in LIVE_STATES:
                done, _pending = await asyncio.wait({waiting}, timeout=self.run.request.live_timeout)
                if not done:
                    # It dirties its memory faster than the disk takes it: stopped, it cannot.
                    await self._stop()
            return await waiting
        except MigrationError as exc:
            # QEMU knows only that nobody reads any more.
            failure = await compressor.failure() if compressor else ""
            if failure:
                exc.what += f" ({failure})"
            exc.what = f"{self.session.label} could not be saved in {self.run.path}: {exc.what}"
            exc.cure = exc.cure or cure_for(exc.what) or "See what QEMU says, then save again"
            raise
        finally:
            waiting.cancel()

    async def _with_write_back(self, following: t.Coroutine[t.Any, t.Any, dict[str, t.Any]]) -> dict[str, t.Any]:
        """The result of ``following``, during which QEMU writes through the page cache, while the storage takes it.

        Measured on ext4 with 3 GiB of random data, as a part of the time of a save with O_DIRECT: sparse 0.8 with 1, 2
        and 4 channels, without this 1.6 to 1.8; raw 0.9, without this 1.1; lzop 1.2, without this 1.6.
        """
        stop = threading.Event()
        storing = asyncio.ensure_future(in_thread(self.partial.write_back, stop))
        try:
            return await following
        finally:
            stop.set()
            storing.cancel()

    async def _stop(self) -> None:
        await self.run.await_long("QEMU to stop the guest, which flushes all its disks", self.session.stop())

    async def _let_guest_go_on(self) -> None:
        """Let the guest run and put QEMU's settings back, in this order, as where a save fails.

        Quiet where QEMU does not let it run, or does not say: then its image is needed most, and is completed before it
        is tried again.

        :raises MonitorError: it runs, and QEMU's settings could not be put back.
        """
        label = self.session.label
        try:
            with self.session.patience(way_back=True):
                await self.session.twice(lambda: self.session.put_guest_back("running"))
        except CommandError:
            return
        except MonitorError:
            self.goes_on = None
            self.run.situation = Situation(f"Whether {label} runs is not known")
            return
        self.goes_on = True
        self.run.situation = Situation(f"{label} runs again", "running")
        await self.session.twice(self.transfer.clean)
        self.in_qemu.pop_all()

    async def _check_file(self) -> None:
        """Check that the file holds what its bitmaps promise: QEMU before 11.1 takes a short write for a success."""
        problems = await in_thread(structure_problems, self.partial.path)
        if problems:
            raise ImageFormatError(
                self.run.path,
                f"QEMU reported success, but the file is not complete: {'; '.join(problems[:3])}",
                cure="Check the file system and the disk below it (dmesg), then save again",
            )

    async def _digest(self, access: Access) -> tuple[str, int]:
        """The digest of what QEMU has written, and the milliseconds that it took."""
        started = time.monotonic()
        digest = await in_stoppable_thread(stream_digest, self.partial.path, access.bypass_cache)
        return digest, round((time.monotonic() - started) * 1000)

    async def _surroundings(self, plan: SavePlan) -> Surroundings:
        """With the guest's media as they are now: QEMU has made them inactive, and nothing writes to them any more."""
        media = tuple(await read_all_media(self.session.monitor, self.session.process))
        if self.run.request.after_save == "resume":
            # A write of the guest that goes on must show in the time of its file's last change.
            await asyncio.sleep(settling_time(media))
        return dataclasses.replace(plan.surroundings, media=media)

    async def _complete(self, plan: SavePlan, access: Access, xml: str, written: _Written) -> dict[str, t.Any]:
        """Everything from the complete magic on; runs to its end whatever happens."""
        await in_thread(self.partial.finish, xml, self.run.request.after_save == "resume")
        # The point of no return: the guest must not run beside its image.
        self.in_qemu.pop_all()
        self.beside.pop_all()
        self.run.written = True
        self.run.locks.callback(self.partial.release)
        if self.goes_on:
            await end_checkpoint(self.run, self.session)
        else:
            self.run.situation = (
                Situation(f"{self.session.label} is stopped and the image {self.run.path} is complete", "paused")
                if self.goes_on is False
                else Situation(f"The image {self.run.path} is complete; whether {self.session.label} runs is not known")
            )
            if self.run.request.after_save != "quit":
                await self.session.twice(self.transfer.clean)
            await end_save(self.run, self.session, written.run_state)
        bytes_written = int(written.state.get("ram", {}).get("transferred", 0))
        outcome = self.run.outcome()
        if self.run.request.after_save != "quit":
            outcome["vm"] = await self._run_state_now()
        past = {
            "quit": "QEMU has quit",
            "pause": "the guest is paused",
            "resume": "the guest went on, and has ended since" if outcome["vm"] == "ended" else "the guest goes on",
        }
        image = image_result(self.run.path)
        return {
            "changed": True,
            "msg": f"{self.session.label} was saved in {self.run.path}, {image['allocated'] / 2**20:.0f} MiB on disk,"
            f" in {time.monotonic() - self.started:.1f} s"
            f"{', taking over from an earlier run' if self.adopted else ''}; {past[self.run.request.after_save]}",
            "image": image,
            "vm": self.session.vm.as_result(outcome["vm"]),
            "diff": {"before": self.run.before, "after": outcome},
            "duration": round(time.monotonic() - self.started, 3),
            "pause_ms": self._pause_ms(),
            "stopped_at": self._stopped_at(),
            "checksum_ms": written.checksum_ms,
            "bytes_written": bytes_written,
            "throughput": int(bytes_written / written.seconds) if written.seconds > 0 else None,
            "parallel_channels": access.parallel_channels,
            "bypass_cache": access.bypass_cache,
            "launch": plan.launch,
            "problems": [problem.as_result() for problem in written.surroundings.problems],
            "reasons": {**plan.reasons, **access.reasons},
            "warnings": plan.warnings,
        }

    async def _run_state_now(self) -> str:
        """QEMU's run state; ``ended`` where a guest that went on has ended its QEMU, as it may at any time."""
        try:
            return await self.session.twice(self.session.run_state)
        except MonitorError:
            if self.goes_on and await self.session.has_ended():
                return "ended"
            raise

    def _pause_ms(self) -> int | None:
        """How long the guest stood still, by QEMU's own clock: from STOP to RESUME, or to SHUTDOWN.

        0 where it was paused before; None where it was stopped under an earlier run's eyes.
        """
        stop = self.session.monitor.find_event("STOP", since=self.since)
        if stop is None:
            return None if self.adopted and self.session.vm.run_state in LIVE_STATES else 0
        end = self.session.monitor.find_event("RESUME", "SHUTDOWN", since=self.since)
        finished = event_seconds(end) if end else time.time()
        return max(0, round((finished - event_seconds(stop)) * 1000))  # the clock may have been set between them

    def _stopped_at(self) -> float | None:
        """When QEMU stopped the guest for this run, in seconds since the epoch."""
        stop = self.session.monitor.find_event("STOP", since=self.since)
        return round(event_seconds(stop), 3) if stop else None

    @property
    def _run_state(self) -> str:
        """QEMU's run state before the save, but for a guest that has fallen asleep since, or woken."""
        run_state = self.session.vm.run_state
        if run_state not in LIVE_STATES:
            return run_state
        return "suspended" if self.session.sleeps else "running"

    # --- the way back ---

    async def _put_guest_back(self) -> None:
        """The guest as it was."""
        label = self.session.label
        try:
            with self.session.patience(way_back=True):
                run_state = await self.session.twice(lambda: self.transfer.call_off(self._run_state))
        except MonitorError as exc:
            # What is noted in QEMU stays there, for the next run to put back.
            self.in_qemu.pop_all()
            self._tell_failure(Situation(f"What {label} does now is not known"), exc)
            return
        if self._run_state == "suspended" and run_state == "postmigrate":
            # With the note in QEMU, by which the next run knows of it.
            self.in_qemu.pop_all()
            self.kept = True
            self.run.situation = Situation(
                f"{label} sleeps (S3) in a QEMU that cannot let it go on after a save, and its partial image is kept:"
                " the same task, run again, finishes it",
                "paused",
            )
            return
        self.run.situation = Situation(
            f"{label} runs again"
            if run_state == "running"
            else f"{label} sleeps again (S3)"
            if run_state == "suspended"
            else f"{label} is stopped as before (QEMU's run state is {run_state})",
            guest_in(run_state),
        )

    async def _clean(self) -> None:
        """QEMU as it was. What cannot be put back now is noted in it for the next run."""
        try:
            await self.session.twice(self.transfer.clean)
        except MonitorError as exc:
            self._tell_failure(self.run.situation, exc)

    def _tell_failure(self, known: Situation, exc: MonitorError) -> None:
        sentence = f"{known.sentence}, and QEMU may not be set as before ({exc.what})"
        self.run.situation = Situation(sentence, known.guest)

    def _discard(self) -> None:
        """What cannot be removed now is a leftover that the next save removes."""
        if self.kept:
            self.partial.release()
            return
        with contextlib.suppress(ImageError):
            self.partial.discard()

    async def _tell_end(
        self, _kind: type[BaseException] | None, cause: BaseException | None, _trace: types.TracebackType | None
    ) -> None:
        """Last: whether QEMU has ended, and what there is to be said."""
        if self.session.process and await self.session.has_ended():
            ended = f"QEMU (pid {self.session.process.pid}) has ended"
            self.run.situation = Situation(f"{ended}, so {self.session.label} does not run any more", "ended")
        if isinstance(cause, VmopsError):
            cause.situation = self.run.situation
            cause.cure = cause.cure or "Correct what QEMU says, then run the task again"
