# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page that operators read: complete, of one piece, and safe whatever a VM is named."""

from __future__ import annotations

import html.parser
import re

import pytest
from ansible_collections.vmops.qemu.plugins.filter.maintenance_report import maintenance_report
from hypothesis import given
from hypothesis import strategies as st

HOSTILE = "<script>alert('x')</script>\"&\n\u202e"


class Page(html.parser.HTMLParser):
    """Its elements, and whether they end as they begin."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [f"{name}={value}" for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [f"{name}={value}" for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def vm(name="web1", **more):
    facts = {"name": name, "state": "restored", "msg": "restored", "bytes": 2**30, "written": True}
    facts |= {"throughput": 2**28, "save_seconds": 4.0, "restore_seconds": 2.0, "stopped_at": 1000.0}
    return {**facts, "running_at": 1130.0, **more}


def host(name="hv1", **more):
    facts = {"host": name, "state": "done", "msg": "", "vms": [vm()]}
    return {**facts, "save_seconds": 5.0, "work_seconds": 90.0, "restore_seconds": 3.0, **more}


def page(*hosts, **more):
    return Page(
        maintenance_report({"title": "Kernel", "started_at": 990.0, "ended_at": 1200.0, "hosts": hosts, **more})
    )


@pytest.mark.parametrize("where", ["title", "host", "name", "msg", "vm msg", "state", "vm state"])
def test_names_and_messages_are_no_markup(where):
    hosts = [
        host(
            HOSTILE if where == "host" else "hv1",
            msg=HOSTILE if where == "msg" else "no",
            state=HOSTILE if where == "state" else "failed",
            vms=[
                vm(
                    HOSTILE if where == "name" else "web1",
                    msg=HOSTILE if where == "vm msg" else "no",
                    state=HOSTILE if where == "vm state" else "saved",
                )
            ],
        )
    ]
    shown = page(*hosts, title=HOSTILE if where == "title" else "Kernel")
    assert "script" not in shown.seen
    assert "alert('x')" in shown.words
    assert "\u202e" not in shown.words
    assert not [attribute for attribute in shown.attributes if "alert" in attribute]


def test_page_needs_no_other_file_and_no_script():
    shown = page(host(), host("hv2", state="failed", msg="no"))
    assert {"link", "script", "img", "iframe"} & set(shown.seen) == set()
    assert [attribute for attribute in shown.attributes if re.search(r"https?:|^(src|href|on[a-z]+)=", attribute)] == []


def test_what_went_wrong_stands_first():
    shown = page(
        host("hv1"), host("hv2", state="failed", msg="its disk is gone", vms=[vm("web7", state="saved", msg="kept")])
    )
    assert shown.words.index("its disk is gone") < shown.words.index("hosts done")
    assert "web7 on hv2: kept" in shown.words
    assert "What went wrong" not in page(host()).words


def test_times_and_units():
    words = page(host()).words
    for word in ("2 min 10 s", "1.0 GiB", "256 MiB/s", "90.0 s", "00:16:40"[:5]):
        assert word in words, word


def test_axis_has_a_few_ticks_whatever_the_span():
    for span in (0.2, 3, 100, 5000, 90000, 900000):
        shown = page(host(vms=[vm(running_at=1000.0 + span)]))
        assert 1 <= sum(tag == "line" for tag in shown.seen) <= 10


def test_vm_that_is_still_saved_has_a_bar_to_the_end():
    shown = page(host(vms=[vm("a"), vm("b", state="saved", running_at=None, restore_seconds=None)]))
    assert "still saved" in shown.words
    assert "fill=var(--lost)" in shown.attributes


def test_prediction():
    shown = page(
        host(
            state="predicted",
            save_seconds=None,
            restore_seconds=None,
            work_seconds=None,
            predicted={"bytes": 2**30, "save_seconds": 4.5, "restore_seconds": None},
            vms=[vm(state="predicted", stopped_at=None, running_at=None, written=False)],
        ),
        check_mode=True,
    )
    assert "≈ 4.5 s" in shown.words
    assert "No VM was stopped." in shown.words
    assert "Prediction of" in shown.words


def test_long_names_and_many_vms():
    many = [host(f"hv{number}", vms=[vm(f"{'x' * 150}-{number}-{n}") for n in range(20)]) for number in range(10)]
    shown = page(*many)
    assert shown.seen.count("tr") == 2 + 10 + 200
    texts = re.findall(r"<text[^>]*text-anchor='end'>([^<]*)", maintenance_report({"hosts": many}))
    assert max(map(len, texts)) <= 45
    assert "…" in texts[0]


def test_images_that_were_left_alone_are_listed():
    image = {"name": "web1", "path": "/save/web1-before.save", "saved_at": None, "why": HOSTILE}
    shown = page(host(left_alone=[image]), host("hv2", left_alone=[]))
    assert "Images that were left alone" in shown.words
    assert "/save/web1-before.save" in shown.words
    assert "script" not in shown.seen
    assert "What went wrong" not in shown.words
    assert "left alone" not in page(host()).words


def test_nothing_to_tell():
    assert "0 of 0" in page().words


LIES = [
    {"stopped_at": 1e30},
    {"running_at": 1e30},
    {"running_at": 253402300799.0},  # the year 9999
    {"stopped_at": -1e30},
    {"stopped_at": float("nan")},
    {"running_at": float("inf")},
    {"bytes": -(2**40)},
    {"bytes": 10**400},
    {"throughput": float("-inf")},
    {"save_seconds": 1e308},
    {"restore_seconds": "for ever"},
    {"bytes": [1]},
    {"throughput": {"a": 1}},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_figure_that_cannot_be_is_that_vms_own(lie):
    """The others are shown as they would be without it."""
    words = page(host(vms=[vm("honest"), vm("liar", **lie)]), host("hv2")).words
    assert f"liar on hv1: it reported figures that cannot be right ({next(iter(lie))})" in words
    assert words.count("2 min 10 s") >= 2 * 2
    assert "longest pause" in words
    assert "-1048576 MiB" not in words


@pytest.mark.parametrize("stopped_at", [0.5, 4102444700.0, 1.0, 999.0])
def test_time_that_can_be_does_not_make_the_others_bars_vanish(stopped_at):
    text = maintenance_report(
        {
            "started_at": 990.0,
            "ended_at": 1200.0,
            "hosts": [host(vms=[vm("honest")]), host("hv2", vms=[vm("liar", stopped_at=stopped_at, running_at=4.1e9)])],
        }
    )
    widths = [float(width) for width in re.findall(r"<rect[^>]* width='([0-9.]+)'", text)]
    assert max(widths[:3]) > 25
    assert text.count("<line") <= 12


def test_page_stays_small():
    """Whatever one host tells: many VMs, long names, eighty centuries, also without the controller's clock."""
    for times in ({"started_at": None, "ended_at": None}, {"started_at": 990.0, "ended_at": 1200.0}):
        many = [vm("\u202e" * 10**6, msg="<" * 10**6, state="x" * 10**6, stopped_at=1.0, running_at=4.1e9)] * 3
        many += [vm(str(number)) for number in range(20000)]
        text = maintenance_report({"hosts": [host(vms=many, msg="m" * 10**7, state="&" * 10**6)], **times})
        assert len(text) < 3 * 2**20
        assert "only 1000 of its 20003 VMs are shown" in text


def anything():
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400)
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    )


KEYS = ("name", "state", "msg", "bytes", "written", "throughput", "save_seconds", "restore_seconds", "stopped_at")


@given(
    lies=st.fixed_dictionaries({}, optional={key: anything() for key in (*KEYS, "running_at", "disbelieved")}),
    of_host=st.fixed_dictionaries({}, optional={key: anything() for key in ("predicted", "msg", "state", "vms")}),
)
def test_nothing_that_a_host_tells_fails_the_page(lies, of_host):
    shown = page(host(vms=[vm() | lies]), host("hv2") | of_host, host("hv3"))
    assert "hv3" in shown.words
