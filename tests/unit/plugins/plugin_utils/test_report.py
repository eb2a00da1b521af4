# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a report's template gets: of the documented types and bounded, whatever the hosts have told."""

from __future__ import annotations

import dataclasses
import math
import types
import typing

import pytest
from ansible_collections.vmops.qemu.plugins.plugin_utils import _report
from ansible_collections.vmops.qemu.plugins.plugin_utils._report import FATES, checked_report
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup


def vm(name="web1", **more):
    facts = {"name": name, "state": "restored", "msg": "restored", "bytes": 2**30, "written": True}
    return {**facts, "save_seconds": 4.0, "restore_seconds": 2.0, "stopped_at": 1000.0, "running_at": 1130.0, **more}


def host(name="hv1", *vms, **more):
    return {"host": name, "state": "done", "vms": list(vms) or [vm()], **more}


def report(*hosts, **more):
    return checked_report({"title": "Kernel", "started_at": 990.0, "ended_at": 1200.0, "hosts": hosts, **more})


def rows(made):
    return {row.vm.name: row for group in made.picture.groups for row in group.rows}


def check(value, kind):
    """That a value is of the type that its field has been given."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        assert value.__class__ is list
        for entry in value:
            check(entry, arguments[0])
    elif origin in (types.UnionType, typing.Union):
        if value is not None:
            check(value, next(argument for argument in arguments if argument is not type(None)))
    elif dataclasses.is_dataclass(kind):
        assert value.__class__ is kind
        for name, of_field in typing.get_type_hints(kind).items():
            check(getattr(value, name), of_field)
    elif kind is float:
        assert value.__class__ in (int, float)
        assert not math.isnan(value)
        assert abs(value) < float("inf")
    else:
        assert value.__class__ is kind
        if kind is str:
            assert len(value) < 8 * 1000
            assert "\n" not in value


def anything():
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400)
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    )


def told(*keys, **right):
    return st.fixed_dictionaries({}, optional={**{key: anything() for key in keys}, **right})


OF_VM = ("name", "state", "msg", "bytes", "written", "throughput", "save_seconds", "restore_seconds", "stopped_at")
VMS = st.lists(told(*OF_VM, "running_at", "disbelieved") | told(state=st.just("saved")), max_size=3)
UNSAVED = st.lists(told("name", "pid", "reason", fate=anything() | st.sampled_from(FATES)), max_size=2)
LEFT_ALONE = st.lists(told("name", "path", "saved_at", "why"), max_size=2)
HOSTS = st.lists(
    told(
        "host",
        "msg",
        "save_seconds",
        "work_seconds",
        "disbelieved",
        state=anything() | st.sampled_from(("done", "failed", "unreachable")),
        predicted=anything() | told("bytes", "save_seconds", "restore_seconds"),
        vms=anything() | VMS,
        unsaved=anything() | UNSAVED,
        left_alone=anything() | LEFT_ALONE,
    ),
    max_size=3,
)


@given(data=told("title", "check_mode", "started_at", "ended_at", hosts=anything() | HOSTS))
def test_whatever_was_told_all_is_of_its_type(data):
    made = checked_report(data)
    check(made, _report.Report)
    if made.picture is not None:
        width = made.picture.width
        assert 1 <= len(made.picture.ticks) <= 10
        for row in (row for group in made.picture.groups for row in group.rows):
            assert all(made.picture.left <= piece.x <= piece.x + piece.width <= width for piece in row.bars)


def test_text_that_claims_to_be_markup_is_none():
    made = report(host(Markup("<b>"), vm(Markup("<i>"))), title=Markup("<u>"))
    assert [type(text) for text in (made.title, made.hosts[0].name, made.hosts[0].vms[0].name)] == [str] * 3


def test_bars_of_a_vm_follow_one_another():
    made = report(host("hv1", vm()))
    (row,) = rows(made).values()
    assert [piece.kind for piece in row.bars] == ["saving", "saved", "restoring"]
    for before, after in zip(row.bars, row.bars[1:]):
        assert before.x + before.width == pytest.approx(after.x)
    assert row.end == pytest.approx(row.bars[-1].x + row.bars[-1].width)
    assert (row.from_before, row.goes_on) == (False, False)


@pytest.mark.parametrize("times", [{}, {"started_at": None, "ended_at": None}], ids=["clock", "no clock"])
@pytest.mark.parametrize("stopped_at", [1000.0, 1130.0, 1.0])
def test_bar_of_a_vm_that_is_still_saved_goes_to_the_end(stopped_at, times):
    saved = vm("b", state="saved", stopped_at=stopped_at, running_at=None, restore_seconds=None)
    made = report(host("hv1", vm("a"), saved, state="failed"), **times)
    row = rows(made)["b"]
    assert row.bars[-1].kind == "still-saved"
    assert row.goes_on
    assert row.end == max(other.end for other in rows(made).values())
    if not times:
        assert row.end > rows(made)["a"].end, "the report ended later"
    assert row.from_before is (stopped_at == 1.0 and not times)


def test_vm_that_an_earlier_run_has_saved_is_in_the_picture():
    """Its time is not known, so its bar begins before the picture."""
    row = rows(report(host("hv1", vm("b", state="saved", stopped_at=None, running_at=None))))["b"]
    assert [piece.kind for piece in row.bars] == ["still-saved"]
    assert (row.from_before, row.goes_on) == (True, True)
    for state in ("predicted", "not reached", "begun"):
        assert report(host("hv1", vm(state="saved", stopped_at=None, running_at=None), state=state)).picture is None


def test_vm_whose_end_is_not_known_is_not_called_saved():
    for state in ("restored", "failed", "x"):
        row = rows(report(host("hv1", vm(state=state, running_at=None))))["web1"]
        assert [piece.kind for piece in row.bars] == ["saving", "unknown"]


def test_picture_is_that_of_the_maintenance():
    """What was stopped long before it, or by a clock that is wrong, makes it no longer."""
    made = report(host("hv1", vm("a"), vm("old", stopped_at=5.0), vm("late", stopped_at=3e9, running_at=3e9 + 5)))
    assert made.picture.begin == 990.0
    assert rows(made)["old"].from_before
    assert rows(made)["late"].bars == []
    assert rows(made)["a"].bars[1].width > 500


def test_picture_groups_by_host_and_sorts_by_time():
    made = report(
        host("hv1", vm("b", stopped_at=1010.0), vm("a", stopped_at=1000.0)),
        host("hv2", vm("c", stopped_at=None, running_at=None)),
        host("hv3", vm("d", stopped_at=995.0)),
    )
    assert [[row.vm.name for row in group.rows] for group in made.picture.groups] == [["a", "b"], ["d"]]
    assert [vm.name for vm in made.hosts[0].vms] == ["b", "a"], "as they were told of"
    places = [place for group in made.picture.groups for place in (group.y, *(row.y for row in group.rows))]
    assert all(after - before >= made.picture.row_height for before, after in zip(places, places[1:]))
    assert made.picture.height > places[-1] + made.picture.row_height


def test_axis_of_a_long_picture_comes_again():
    assert len(report(host()).picture.axes) == 2
    long = report(*(host(f"hv{number}", *[vm()] * 16) for number in range(64))).picture
    gaps = [after - before for before, after in zip(long.axes, long.axes[1:])]
    assert max(gaps) < 80 * long.row_height
    taken = {row.y for group in long.groups for row in group.rows} | {group.y for group in long.groups}
    assert not [place for place in taken for axis in long.axes if axis <= place < axis + long.row_height]


def test_totals():
    saved = vm("b", state="saved", running_at=None, bytes=2**20)
    made = report(
        host("hv1", vm(), saved, state="failed", predicted={"bytes": 5}),
        host("hv2", vm(written=False), unsaved=[{"name": "x"}]),
        host("hv3", vm(state="saved", stopped_at=None, running_at=None), state="begun"),
        host("hv4", vm(state="saved", running_at=None), state="unreachable", predicted={"bytes": 2}),
    ).totals
    assert (made.hosts, made.hosts_done, made.hosts_failed) == (4, 1, 3)
    assert (made.vms_restored, made.vms_still_saved, made.vms_unsaved) == (2, 2, 1)
    assert (made.bytes_written, made.bytes_predicted) == (2**30 + 2**20 + 2 * 2**30, 7)
    assert made.longest_pause == 130.0


def test_what_went_wrong():
    made = report(
        host("hv1"),
        host("hv2", vm("a", state="saved", msg="kept"), vm("b"), state="failed", msg="its disk is gone"),
        host("hv3", vm("c", state="failed"), state="not reached"),
        host("hv4", unsaved=[{"name": "d", "reason": "no monitor", "fate": fate} for fate in FATES]),
        host("hv5", vm("e", bytes=-1)),
    )
    assert [(it.host, it.vm) for it in made.wrong] == [("hv2", ""), ("hv2", "a"), ("hv5", "e"), ("hv4", "d")]
    assert [it.msg for it in made.wrong][:2] == ["its disk is gone", "kept"]
    assert "not started again; no monitor" in made.wrong[-1].msg


@pytest.mark.parametrize(
    ("fate", "shown", "is_bad"),
    [
        ("ignored", "ignored", False),
        ("shut down", "shut down", False),
        ("started again", "started again", False),
        ("not started again", "not started again", True),
        (None, "", False),
        ("", "", False),
        ("well", "", True),
        (["ignored"], "", True),
    ],
)
def test_fate_of_a_vm_that_was_not_saved(fate, shown, is_bad):
    (unsaved,) = report(host(unsaved=[{"name": "a", "fate": fate}])).hosts[0].unsaved
    assert (unsaved.fate, unsaved.is_bad) == (shown, is_bad)


@pytest.mark.parametrize(
    ("pid", "known"), [(4711, 4711), ("4711", 4711), (None, None), (-1, None), (2**22 + 1, None), ("x", None)]
)
def test_pid_of_a_vm_that_was_not_saved(pid, known):
    (unsaved,) = report(host(unsaved=[{"name": "a", "pid": pid}])).hosts[0].unsaved
    assert unsaved.pid == known
    assert ("pid" in unsaved.reason) is (known is None and pid is not None)


@pytest.mark.parametrize("key", ["vms", "unsaved", "left_alone"])
def test_number_of_entries_is_bounded(key):
    (made,) = report(host(**{key: [{"name": str(number)} for number in range(20000)]})).hosts
    assert len(getattr(made, key)) == 1000


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (_report.time(None), "–"),
        (_report.time(0), "1970-01-01 00:00:00"),
        (_report.clock(3661.0, 5), "01:01:01"),
        (_report.clock(3661.0, 60), "01:01"),
        (_report.clock(3661.0, 86400), "01 Jan 01:01"),
        (_report.seconds(None), "–"),
        (_report.seconds(0), "0.0 s"),
        (_report.seconds(119.94), "119.9 s"),
        (_report.seconds(130), "2 min 10 s"),
        (_report.seconds(7199.6), "2 h 00 min"),
        (_report.size(None), "–"),
        (_report.size(2**20), "1 MiB"),
        (_report.size(3 * 2**29), "1.5 GiB"),
        (_report.size(2**41), "2.0 TiB"),
        (_report.rate(None), "–"),
        (_report.rate(2**28), "256 MiB/s"),
        (_report.shorten("short", 5), "short"),
        (_report.shorten("abcdefghij-1", 6), "ab…j-1"),
    ],
)
def test_formats(made, expected):
    assert made == expected
