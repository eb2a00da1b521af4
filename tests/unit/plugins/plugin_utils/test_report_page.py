# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page that operators read: complete, of one piece, and safe whatever a VM is named."""

from __future__ import annotations

import dataclasses
import html.parser
import os
import re

import pytest
import yaml
from ansible_collections.vmops.qemu.plugins.modules.maintenance_report import DOCUMENTATION
from ansible_collections.vmops.qemu.plugins.plugin_utils import _report
from ansible_collections.vmops.qemu.plugins.plugin_utils._report_page import OWN, ReportTemplateError, report_page
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
        #: Those of the picture.
        self.told: list[str] = []
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
        if self.open and self.open[-1] == "text":
            self.told.append(data)


def vm(name="web1", **more):
    facts = {"name": name, "state": "restored", "msg": "restored", "bytes": 2**30, "written": True}
    facts |= {"throughput": 2**28, "save_seconds": 4.0, "restore_seconds": 2.0, "stopped_at": 1000.0}
    return {**facts, "running_at": 1130.0, **more}


def host(name="hv1", **more):
    facts = {"host": name, "state": "done", "msg": "", "vms": [vm()]}
    return {**facts, "save_seconds": 5.0, "work_seconds": 90.0, "restore_seconds": 3.0, **more}


def page(*hosts, **more):
    return Page(report_page({"title": "Kernel", "started_at": 990.0, "ended_at": 1200.0, "hosts": hosts, **more}))


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


@pytest.mark.parametrize("others", [[], [vm("a")]], ids=["alone", "beside another"])
@pytest.mark.parametrize("stopped_at", [1000.0, 1200.0, None, 5.0, 9e8])
def test_vm_that_is_still_saved_has_an_open_bar_to_the_end(others, stopped_at):
    """Also one that an earlier run has saved, and one that was stopped as the report was written."""
    saved = vm("b", state="saved", stopped_at=stopped_at, running_at=None, restore_seconds=None, save_seconds=None)
    shown = page(host(state="failed", vms=[*others, saved]))
    assert "still saved" in shown.told
    assert shown.attributes.count("class=still-saved") == 3, "in the key, a bar and its arrow"


def test_host_that_was_unreachable_shows_why():
    shown = page(host(), host("hv2", state="unreachable", msg="No route to host", vms=[vm("b", state="saved")]))
    assert "hv2: No route to host" in shown.words
    assert shown.words.count("No route to host") == 2
    assert "unreachable" in shown.words
    assert "b on hv2" in shown.words


def test_vms_that_were_not_saved_are_listed():
    lost = {"name": HOSTILE, "pid": 4711, "reason": "it has no monitor", "fate": "not started again"}
    kept = {"name": "scratch", "pid": None, "reason": HOSTILE, "fate": "ignored"}
    odd = {"name": "odd", "pid": 10**400, "reason": None, "fate": HOSTILE}
    shown = page(host(unsaved=[lost, kept, odd]), host("hv2", unsaved=[]), host("hv3", unsaved="none"))
    assert "script" not in shown.seen
    for words in ("VMs that were not saved", "it has no monitor", "left as it was", "4711", "not known"):
        assert words in shown.words, words
    assert "it was not saved, and not started again; it has no monitor" in shown.words
    assert "it was not saved, and what became of it is not known" in shown.words
    assert "scratch on hv1" not in shown.words
    for entries in ([], None, "x", [1]):
        assert "not saved" not in page(host(unsaved=entries)).words


def test_page_can_be_read_without_eyes_and_in_the_dark():
    image = {"name": "web1", "path": "/save/web1-before.save", "saved_at": None, "why": "older"}
    shown = page(host(left_alone=[image], unsaved=[{"name": "a", "fate": "ignored"}]))
    assert shown.seen.count("table") == shown.seen.count("caption") == 4
    assert shown.seen.count("th") == sum(attribute.startswith("scope=") for attribute in shown.attributes)
    assert "desc" in shown.seen
    assert "prefers-color-scheme: dark" in shown.words


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
    texts = re.findall(r'<text class="name"[^>]*>([^<]*)', report_page({"hosts": many}))
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
    text = report_page(
        {
            "started_at": 990.0,
            "ended_at": 1200.0,
            "hosts": [host(vms=[vm("honest")]), host("hv2", vms=[vm("liar", stopped_at=stopped_at, running_at=4.1e9)])],
        }
    )
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([0-9.]+)"', text)]
    assert max(widths[:3]) > 25
    assert text.count("<line") <= 12


def test_page_stays_small():
    """Whatever one host tells: many VMs, long names, eighty centuries, also without the controller's clock."""
    for times in ({"started_at": None, "ended_at": None}, {"started_at": 990.0, "ended_at": 1200.0}):
        many = [vm("\u202e" * 10**6, msg="<" * 10**6, state="x" * 10**6, stopped_at=1.0, running_at=4.1e9)] * 3
        many += [vm(str(number)) for number in range(20000)]
        text = report_page({"hosts": [host(vms=many, msg="m" * 10**7, state="&" * 10**6)], **times})
        assert len(text) < 3 * 2**20
        assert "only 1000 of its 20003 VMs are shown" in text


def anything():
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400)
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    )


HOST_KEYS = ("predicted", "msg", "state", "vms", "unsaved", "left_alone", "save_seconds", "disbelieved")
KEYS = ("name", "state", "msg", "bytes", "written", "throughput", "save_seconds", "restore_seconds", "stopped_at")


@given(
    lies=st.fixed_dictionaries({}, optional={key: anything() for key in (*KEYS, "running_at", "disbelieved")}),
    of_host=st.fixed_dictionaries({}, optional={key: anything() for key in HOST_KEYS}),
)
def test_nothing_that_a_host_tells_fails_the_page(lies, of_host):
    shown = page(host(vms=[vm() | lies]), host("hv2") | of_host, host("hv3"))
    assert "hv3" in shown.words


def own(tmp_path, text, name="mine.html.j2"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def test_template_of_ones_own(tmp_path):
    """What hosts have said is data in it: no markup, no template."""
    template = own(
        tmp_path,
        """<h1>{{ report.title }}</h1>
        {% for host in report.hosts %}
        {% for vm in host.vms %}
        {{ vm.name }} on {{ host.name }}: {{ vm.bytes | size }}, {{ vm.pause | seconds }}
        {% endfor %}
        {% endfor %}
        """,
    )
    name = "{{ 7 * 7 }}{% raw %}<b>"
    text = report_page({"title": "Kernel", "hosts": [host(vms=[vm(name)])]}, template)
    assert text.split("\n")[0] == "<h1>Kernel</h1>"
    assert "{{ 7 * 7 }}{% raw %}&lt;b&gt; on hv1: 1.0 GiB, 2 min 10 s" in text


@pytest.mark.parametrize("name", ["mine.html.j2", OWN.name])
def test_template_that_replaces_a_part_of_the_collections(tmp_path, name):
    extended = """{% extends "vmops.qemu/report.html.j2" %}
    {% block header %}<h1>Our {{ report.title }}</h1>{% include "logo.html" %}{% endblock %}
    """
    own(tmp_path, "<b>logo</b>", "logo.html")
    words = Page(report_page({"title": "Kernel", "hosts": [host()]}, own(tmp_path, extended, name))).words
    for part in ("Our Kernel", "logo", "hosts done", "2 min 10 s"):
        assert part in words, part


@pytest.mark.parametrize("template", [None, "", str(OWN)])
def test_collections_own_template_is_the_default(template):
    assert report_page({"hosts": [host()]}, template) == report_page({"hosts": [host()]})


def test_changed_template_is_read_anew(tmp_path):
    assert report_page({}, own(tmp_path, "one")) == "one"
    path = own(tmp_path, "another")
    os.utime(path, (1e9, 1e9))
    assert report_page({}, path) == "another"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\n\n{% for host in %}", 3),
        ("\n{% nothing %}", 2),
        ("\n{{ report.nothing }}", 2),
        ("{{ nothing }}", 1),
        ("{{ report | nothing }}", 1),
        ("\n{{ lookup('pipe', 'id') }}", 2),
        ("\n{{ 1 // 0 }}", 2),
        ("\n\n{{ report.hosts + 1 }}", 3),
        ("{% set f = report.__class__ %}\n{{ f.__mro__ }}", 2),
        ("\n{{ ''.__class__.__mro__ }}", 2),
        ("\n{% include 'not-there.html' %}", 2),
        ("\n{% include '../mine.html.j2' %}", 2),
        ("{% macro a() %}\n{{ a() }}\n{% endmacro %}\n{{ a() }}", 2),
    ],
)
def test_error_in_a_template_names_file_and_line(tmp_path, text, line):
    path = own(tmp_path, text)
    with pytest.raises(ReportTemplateError, match=re.escape(f"{path}, line {line}: ")):
        report_page({"hosts": [host()]}, path)


def test_error_in_a_file_that_a_template_includes_names_that_file(tmp_path):
    part = own(tmp_path, "\n{{ nothing }}", "part.html")
    with pytest.raises(ReportTemplateError, match=re.escape(f"{part}, line 2: 'nothing' is undefined")):
        report_page({}, own(tmp_path, "{% include 'part.html' %}"))


@pytest.mark.parametrize("kind", ["missing", "directory", "no text"])
def test_file_that_is_no_template_is_named(tmp_path, kind):
    path = tmp_path / "mine.html.j2"
    if kind == "directory":
        path.mkdir()
    elif kind == "no text":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(ReportTemplateError, match=re.escape(str(path))):
        report_page({}, str(path))


def test_documentation_names_all_that_a_template_gets():
    """By kind of thing, each field; what a VM has as a host has it, is named there."""
    paragraphs = yaml.safe_load(DOCUMENTATION)["options"]["template"]["description"]
    kinds = {
        "C(report): ": _report.Report,
        "A host: ": _report.Host,
        "A VM: ": _report.Vm,
        "An unsaved VM, ": _report.Unsaved,
        "An image left alone: ": _report.LeftAlone,
        "A wrong, ": _report.Wrong,
        "The totals: ": _report.Totals,
        "A picture: ": _report.Picture,
        "A tick: ": _report.Tick,
        "A group, ": _report.Group,
        "A row: ": _report.Row,
        "A bar: ": _report.Bar,
    }
    for start, kind in kinds.items():
        text = next(paragraph for paragraph in paragraphs if paragraph.startswith(start))
        assert {field.name for field in dataclasses.fields(kind)} <= set(re.findall(r"C\((\w+)\)", text)), start
    (filters,) = (paragraph for paragraph in paragraphs if paragraph.startswith("Besides those of Jinja2"))
    assert set(re.findall(r"C\((\w+)", filters)) == set(_report.FORMATS)
    blocks = set(re.findall(r"{% block (\w+) %}", OWN.read_text(encoding="utf-8")))
    assert blocks <= set(re.findall(r"C\((\w+)\)", " ".join(paragraphs)))
