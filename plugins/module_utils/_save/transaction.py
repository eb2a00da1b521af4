# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The save itself: write, flush, check, complete, end; whatever goes wrong before the image is complete is undone.

Create the partial image beside the target; stop the guest (or leave it running while its memory is written); let QEMU
write; flush; check the file against what it promises; complete and rename it; only then let QEMU quit. Whatever goes
wrong before the rename puts the guest back as it was and leaves the target alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._access import Access, choose_access
from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import (
    despite_cancellation,
    in_stoppable_thread,
    in_thread,
)
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageError,
    ImageFormatError,
    MigrationError,
    MonitorError,
    VmopsError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS, Filter, make_pipe
from ansible_collections.vmops.qemu.plugins.module_utils._image.digest import stream_digest
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import cure_for
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_result
from ansible_collections.vmops.qemu.plugins.module_utils._image.partial import PartialImage
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import structure_problems
from ansible_collections.vmops.qemu.plugins.module_utils._launch import free_units
from ansible_collections.vmops.qemu.plugins.module_utils._progress import Publisher
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import fingerprint
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import event_seconds
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.transfer import Transfer
from ansible_collections.vmops.qemu.plugins.module_utils._save.ending import end_save, guard
from ansible_collections.vmops.qemu.plugins.module_utils._save.in_qemu import InterruptedSave, SaveRecord
from ansible_collections.vmops.qemu.plugins.module_utils._save.plan import SavePlan, adopted_plan, bytes_needed
from ansible_collections.vmops.qemu.plugins.module_utils._save.run import SaveRun
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation, guest_in
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_changes import settling_time
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.survey import read_all_media
from ansible_collections.vmops.qemu.plugins.module_utils._version import COLLECTION_VERSION
from ansible_collections.vmops.qemu.plugins.module_utils._written_bound import WrittenBound


class SaveTransaction:
    """One save after its plan, with the way back."""

    def __init__(self, run: SaveRun, session: VmSession, transfer: Transfer, partial: PartialImage) -> None:
        self.run = run
        self.request = run.request
        self.session = session
        #: What QEMU has set and holds for it.
        self.transfer = transfer
        self.partial = partial
        self.plan: SavePlan
        self.access: Access
        #: How much QEMU may write.
        self.bound: WrittenBound
        self.since = session.monitor.mark()
        #: The guest's media when QEMU had written.
        self.surroundings = Surroundings((), ())
        #: Whether the VM's unit may have been kept from starting the VM beside the image.
        self.guarded = False
        #: The tool that QEMU writes to, for a compressed format.
        self.compressor: Filter | None = None
        #: Whether anything was done to the guest that has to be undone.
        self.touched = False
        #: How the guest is that was put back, as soon as it was.
        self.put_back: Situation | None = None
        #: Whether an earlier run began this save.
        self.adopted = False
        #: Whether the image is complete: from then on there is no way back.
        self.completed = False
        #: How long the checksum took, in milliseconds.
        self.checksum_ms: int | None = None
        self.started = self.write_started = time.monotonic()

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
        save = cls(run, session, Transfer(session), partial)
        save.started = started
        return await save._or_back(lambda: save._save(plan))

    @classmethod
    async def adopt(
        cls, run: SaveRun, session: VmSession, interrupted: InterruptedSave, partial: PartialImage
    ) -> dict[str, t.Any]:
        """Go on with a save that an earlier run began and that QEMU carried on alone; as :meth:`save`.

        :param partial: what ``interrupted`` has adopted.
        """
        save = cls(run, session, interrupted.transfer, partial)
        save.adopted = save.touched = True
        return await save._or_back(lambda: save._adopt(interrupted.record))

    async def _or_back(self, work: t.Callable[[], t.Awaitable[dict[str, t.Any]]]) -> dict[str, t.Any]:
        try:
            return await work()
        except BaseException as exc:
            # Also a cancellation (timeout, signal): whatever happens, the guest goes back first.
            await despite_cancellation(self._roll_back(exc))
            raise

    async def _save(self, plan: SavePlan) -> dict[str, t.Any]:
        self.plan = plan
        self.access = choose_access(
            self.run.path,
            plan.format,
            self.request.parallel_channels,
            self.request.bypass_cache,
            self.partial.direct_io_reason,
        )
        uri = await self._prepare()
        self.write_started = time.monotonic()
        await self._start(uri)
        return await self._finish()

    async def _adopt(self, record: SaveRecord) -> dict[str, t.Any]:
        self.plan = await adopted_plan(self.run, self.session, self.partial)
        self.access = Access(record.parallel_channels, record.bypass_cache, {})
        self.run.situation = Situation(f"{self.session.label} is being saved")
        return await self._finish()

    async def _finish(self) -> dict[str, t.Any]:
        """From the migration that runs to the end."""
        with Publisher(self.session.label, "save") as progress:
            async with progress.following(self.transfer.migration.memory_done):
                self.bound = WrittenBound(
                    self.partial, self.session.label, bytes_needed(self.session), self.session.vm.memory
                )
                state = await self.bound.guard(self._follow(), self.session.stop_if_running)
            progress.phase("flush")
            if self.compressor:
                await self.compressor.wait(self.partial.path)
            await in_thread(self.partial.flush)
            write_seconds = time.monotonic() - self.write_started
            progress.phase("check")
            await self._check_file()
            progress.phase("checksum")
            digest = await self._digest() if self.request.checksum else ""
            await self._record_media()
            xml = self._final_xml(state, digest)
            # Before there is an image for it to look at, so that there never is one without it.
            self.bound.check()
            self.guarded = bool(self.plan.unit) and self.request.guards
            await guard(self.run, self.plan.unit)
            return await despite_cancellation(self._complete(xml, state, write_seconds))

    # --- with the guest ---

    async def _prepare(self) -> str:
        """Descriptors, with a note of this save, and settings; the migration URI."""
        settings = self.transfer.settings
        await settings.plan(
            mapped_ram=self.plan.format is ImageFormat.SPARSE,
            parallel_channels=self.access.parallel_channels,
            direct_io=self.access.bypass_cache,
            bandwidth=self.request.bandwidth,
        )
        record = SaveRecord(
            partial=self.partial.path,
            run_state=self.session.vm.run_state,
            capabilities=settings.found_capabilities,
            parameters=settings.found_parameters,
            parallel_channels=self.access.parallel_channels,
            bypass_cache=self.access.bypass_cache,
        )
        compressor = COMPRESSORS.get(self.plan.format)
        files = [self.partial.open_for_qemu(direct=False)]
        try:
            if self.access.bypass_cache:
                files.append(self.partial.open_for_qemu(direct=True))
            await self.transfer.pass_files(record.opaque(), *files)
            await settings.apply()
            if compressor is None and self.plan.support.file_uri:
                return self.transfer.descriptors.uri(self.partial.stream_offset)
            # One stream into a descriptor: a pipe to the compressor or, before QEMU 9.1, the file itself.
            os.lseek(files[0], self.partial.stream_offset, os.SEEK_SET)
            if compressor:
                files += make_pipe()
                self.compressor = await Filter.start(compressor.compress_command(), stdin=files[-2], stdout=files[0])
            return await self.transfer.descriptors.pass_named(files[-1])
        finally:
            for descriptor in files:
                os.close(descriptor)

    async def _start(self, uri: str) -> None:
        """Stop the guest, unless the save is live, and let QEMU begin to write."""
        label = self.session.label
        self.since = self.session.monitor.mark()
        self.touched = True
        if self.session.vm.run_state == "running" and not self.request.live:
            self.run.situation = Situation(f"{label} is being stopped")
            await self.session.monitor.execute("stop")
        self.run.situation = Situation(f"{label} is being saved")
        await self.transfer.migration.start_outgoing(uri)

    async def _follow(self) -> dict[str, t.Any]:
        """Wait until QEMU has written everything; returns its last C(query-migrate)."""
        waiting = asyncio.ensure_future(self.transfer.migration.wait())
        try:
            if await self.session.run_state() == "running":
                done, _pending = await asyncio.wait({waiting}, timeout=self.request.live_timeout)
                if not done:
                    # It dirties its memory faster than the disk takes it: stopped, it cannot.
                    await self.session.monitor.execute("stop")
            return await waiting
        except MigrationError as exc:
            # QEMU knows only that nobody reads any more.
            failure = await self.compressor.failure() if self.compressor else ""
            if failure:
                exc.what += f" ({failure})"
            exc.what = f"{self.session.label} could not be saved in {self.run.path}: {exc.what}"
            exc.cure = exc.cure or cure_for(exc.what) or "See what QEMU says, then save again"
            raise
        finally:
            waiting.cancel()

    async def _check_file(self) -> None:
        """Check that the file holds what its bitmaps promise: QEMU before 11.1 takes a short write for a success."""
        problems = await in_thread(structure_problems, self.partial.path)
        if problems:
            raise ImageFormatError(
                self.run.path,
                f"QEMU reported success, but the file is not complete: {'; '.join(problems[:3])}",
                cure="Check the file system and the disk below it (dmesg), then save again",
            )

    async def _digest(self) -> str:
        """The digest of what QEMU has written; what went through the page cache is still there, and is read from it."""
        started = time.monotonic()
        digest = await in_stoppable_thread(stream_digest, self.partial.path, self.access.bypass_cache)
        self.checksum_ms = round((time.monotonic() - started) * 1000)
        return digest

    async def _record_media(self) -> None:
        """The guest's media as they are now: QEMU has made them inactive, and nothing writes to them any more."""
        media = tuple(await read_all_media(self.session.monitor, self.session.process))
        self.surroundings = dataclasses.replace(self.plan.surroundings, media=media)
        if self.request.after_save == "resume":
            # A write of the guest that goes on must show in the time of its file's last change.
            await asyncio.sleep(settling_time(media))

    def _final_xml(self, state: dict[str, t.Any], digest: str) -> str:
        """The XML with what is known only after QEMU has written."""
        recorded = domain_xml.parse(self.plan.xml, self.run.path).save_facts
        if recorded is None:  # of an adopted save of which another user has made what he liked
            recorded = domain_xml.SaveFacts(COLLECTION_VERSION, self.plan.support.version, domain_xml.now())
        facts = dataclasses.replace(
            recorded,
            parallel_channels=self.access.parallel_channels or 0,
            migration=fingerprint(state),
            digest=digest,
            surroundings=self.surroundings.dump(),
        )
        return self.plan.vouched(domain_xml.embed(self.plan.xml, facts, self.plan.launch_record), self.run.path)

    async def _complete(self, xml: str, state: dict[str, t.Any], write_seconds: float) -> dict[str, t.Any]:
        """Everything from the complete magic on; runs to its end whatever happens."""
        await in_thread(self.partial.finish, xml, self.request.after_save == "resume")
        self.completed = self.run.written = True
        self.run.locks.callback(self.partial.release)
        self.run.situation = Situation(
            f"{self.session.label} is stopped and the image {self.run.path} is complete", "paused"
        )
        if self.request.after_save != "quit":
            await self.session.twice(self.transfer.clean)
        await end_save(self.run, self.session, self.session.vm.run_state)
        bytes_written = int(state.get("ram", {}).get("transferred", 0))
        outcome = self.run.outcome()
        if self.request.after_save != "quit":
            outcome["vm"] = await self.session.twice(self.session.run_state)
        past = {"quit": "QEMU has quit", "pause": "the guest is paused", "resume": "the guest goes on"}
        image = image_result(self.run.path)
        return {
            "changed": True,
            "msg": f"{self.session.label} was saved in {self.run.path}, {image['allocated'] / 2**20:.0f} MiB on disk,"
            f" in {time.monotonic() - self.started:.1f} s"
            f"{', taking over from an earlier run' if self.adopted else ''}; {past[self.request.after_save]}",
            "image": image,
            "vm": self.session.vm.as_result(outcome["vm"]),
            "diff": {"before": self.run.before, "after": outcome},
            "duration": round(time.monotonic() - self.started, 3),
            "pause_ms": self._pause_ms(),
            "stopped_at": self._stopped_at(),
            "checksum_ms": self.checksum_ms,
            "bytes_written": bytes_written,
            "throughput": int(bytes_written / write_seconds) if write_seconds > 0 else None,
            "parallel_channels": self.access.parallel_channels,
            "bypass_cache": self.access.bypass_cache,
            "launch": self.plan.launch,
            "problems": [problem.as_result() for problem in self.surroundings.problems],
            "reasons": {**self.plan.reasons, **self.access.reasons},
            "warnings": self.plan.warnings,
        }

    def _pause_ms(self) -> int | None:
        """How long the guest stood still, by QEMU's own clock: from STOP to RESUME, or to SHUTDOWN.

        0 where it was paused before; None where it was stopped under an earlier run's eyes.
        """
        stop = self.session.monitor.find_event("STOP", since=self.since)
        if stop is None:
            return None if self.adopted and self.session.vm.run_state == "running" else 0
        end = self.session.monitor.find_event("RESUME", "SHUTDOWN", since=self.since)
        finished = event_seconds(end) if end else time.time()
        return max(0, round((finished - event_seconds(stop)) * 1000))  # the clock may have been set between them

    def _stopped_at(self) -> float | None:
        """When QEMU stopped the guest for this run, in seconds since the epoch."""
        stop = self.session.monitor.find_event("STOP", since=self.since)
        return round(event_seconds(stop), 3) if stop else None

    # --- the way back ---

    async def _roll_back(self, cause: BaseException) -> None:
        """The guest as it was, QEMU as it was, no file left; then the run's situation says what was reached."""
        if self.completed:
            # Too late: the image is complete, and the guest must not run beside it.
            return
        try:
            await self.session.twice(self._put_back)
        except MonitorError as exc:
            # What cannot be put back now is noted in QEMU for the next run.
            known = self.put_back or Situation(f"What {self.session.label} does now is not known")
            self.run.situation = Situation(
                f"{known.sentence}, and QEMU may not be set as before ({exc.what})", known.guest
            )
        finally:
            if self.compressor:
                await self.compressor.end()
            # What cannot be removed now is a leftover that the next save removes.
            with contextlib.suppress(ImageError):
                self.partial.discard()
            if self.guarded:
                # What is left of it looks for an image, and the VM's next save or restore removes it.
                await free_units(self.plan.unit, self.session.process, self.run.path)
        if self.session.process and await self.session.has_ended():
            ended = f"QEMU (pid {self.session.process.pid}) has ended"
            self.run.situation = Situation(f"{ended}, so {self.session.label} does not run any more", "ended")
        if isinstance(cause, VmopsError):
            cause.situation = self.run.situation
            cause.cure = cause.cure or "Correct what QEMU says, then run the task again"

    async def _put_back(self) -> None:
        """Guest and QEMU as they were found, and the sentence that says so; may be done twice.

        :raises MonitorError: it could not be done.
        """
        label = self.session.label
        if self.touched:
            run_state = await self.transfer.call_off(self.session.vm.run_state)
            self.put_back = self.run.situation = Situation(
                f"{label} runs again"
                if run_state == "running"
                else f"{label} is stopped as before (QEMU's run state is {run_state})",
                guest_in(run_state),
            )
        await self.transfer.clean()
