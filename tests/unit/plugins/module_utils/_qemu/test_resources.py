# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a process may use of its host: recorded, read back whatever is there, and given to another process."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import resources
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.resources import (
    Resources,
    Scheduling,
    give_threads,
    not_given,
    parse_resources,
    ranges,
    read_resources,
    refused,
    resource_words,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import Capabilities, Rights

ALL = Resources(
    Scheduling("0-1,7", "rr", 3, -5),
    "2:6",
    -17,
    (("nofile", "1024", "4096"), ("memlock", "0", "unlimited")),
    "interleave:0-1",
    (("cpu 0", Scheduling("0")), ("iothread a b", Scheduling(nice=4))),
)
NOBODY = Rights(65534, 65534, capabilities=Capabilities(0, 0, 0, 0))
ROOT = Rights(0, 0, capabilities=Capabilities(-1, 0, -1, 0))


@pytest.mark.parametrize("found", [Resources(), ALL], ids=["nothing", "all"])
def test_is_read_as_it_was_recorded(found):
    assert parse_resources(found.dump()) == found


def changed(*path_and_value):
    value = json.loads(ALL.dump())
    *path, last, new = path_and_value
    place = value
    for key in path:
        place = place[key]
    place[last] = new
    return json.dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        "[" * 100000,
        changed("scheduling", "cpus", "0;id"),
        changed("scheduling", "cpus", "3-1"),
        changed("scheduling", "cpus", "70000"),
        changed("scheduling", "cpus", 3),
        changed("scheduling", "policy", "fifo -p 1 1;"),
        changed("scheduling", "policy", ["rr"]),
        changed("scheduling", "priority", "1"),
        changed("scheduling", "nice", 20),
        changed("scheduling", "nice", True),
        changed("io", "2:6 -p 1"),
        changed("io", None),
        changed("oom_score", 1001),
        changed("oom_score", "$(id)"),
        changed("limits", [["nofile", "1", "$(id)"]]),
        changed("limits", [["nofile;id", "1", "1"]]),
        changed("limits", [["nofile", "1"]]),
        changed("limits", [["nofile", 1, 1]]),
        changed("memory", "interleave:0;id"),
        changed("memory", "interleave:0 x"),
        changed("threads", []),
        changed("threads", {"cpu 0": {}}),
        changed("threads", {f"cpu {n}": dataclasses.asdict(Scheduling()) for n in range(1025)}),
    ],
)
def test_what_is_no_such_record_is_none(text):
    assert parse_resources(text) is None


def test_ranges():
    assert ranges([9, 0, 1, 2]) == "0-2,9"
    assert ranges([]) == ""


# --- giving ---


def test_nothing_is_said_where_it_is_so_already():
    own = read_resources(os.getpid())
    assert resource_words(own, own) == []
    assert resource_words(None, own) == []
    assert list(refused(own, own, NOBODY)) == []
    assert not_given(own, os.getpid()) == []


def test_is_given_to_a_program_with_odd_words():
    """Through a shell, which is told nothing but numbers."""
    starter = read_resources(os.getpid())
    limits = {name: (soft, hard) for name, soft, hard in starter.limits}
    wanted = dataclasses.replace(
        starter,
        scheduling=dataclasses.replace(starter.scheduling, nice=17, cpus=str(min(os.sched_getaffinity(0)))),
        io="3:0",
        oom_score=77,
        limits=tuple((name, *{**limits, "core": ("0", "0"), "nofile": ("123", "124")}[name]) for name in limits),
    )
    odd = ["a b", "$HOME", "`id`", "'\"", "x=y", "\n", "-n", "\udcff"]
    code = "import os, sys; print(os.getpid(), flush=True); print(ascii(sys.argv[1:]), flush=True); sys.stdin.read()"
    words = resource_words(wanted, starter)
    assert words
    with subprocess.Popen(
        [*words, "python3", "-c", code, *odd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdin
        assert process.stderr
        assert int(process.stdout.readline()) == process.pid, "it is the same process"
        assert process.stdout.readline().decode().strip() == ascii(odd)
        assert not_given(wanted, process.pid) == []
        assert read_resources(process.pid) == wanted
        process.stdin.close()
        assert process.stderr.read() == b""


def test_one_that_is_refused_costs_neither_the_others_nor_the_start():
    starter = dataclasses.replace(read_resources(os.getpid()), limits=())
    wanted = dataclasses.replace(
        starter,
        scheduling=dataclasses.replace(starter.scheduling, cpus="65000"),
        limits=(("core", "0", "0"), ("nofile", "200", "100"), ("fsize", "1099511627776", "unlimited")),
    )
    command = [*resource_words(wanted, starter), "sh", "-c", "ulimit -c; ulimit -f"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stdout.split()[0] == "0"
    assert done.stdout.split()[1] in ("1073741824", "2147483648"), "in blocks, whose size is the shell's affair"
    assert "taskset" in done.stderr


@pytest.mark.parametrize(
    ("wanted", "rights", "kinds"),
    [
        (Resources(Scheduling(nice=5), oom_score=5), NOBODY, []),
        (Resources(Scheduling(nice=-5)), NOBODY, ["priority"]),
        (Resources(Scheduling(nice=-5)), ROOT, []),
        (Resources(Scheduling(policy="fifo", priority=1)), NOBODY, ["priority"]),
        (Resources(Scheduling(policy="fifo", priority=1)), ROOT, []),
        (Resources(Scheduling(policy="deadline")), ROOT, ["priority"]),
        (Resources(Scheduling(policy="idle")), NOBODY, []),
        (Resources(io="1:3"), NOBODY, ["priority"]),
        (Resources(oom_score=-5), NOBODY, ["oom_score"]),
        (Resources(oom_score=-5), ROOT, []),
        (Resources(limits=(("nofile", "10", "20"),)), NOBODY, []),
        (Resources(limits=(("nofile", "10", "unlimited"),)), NOBODY, ["resource_limits"]),
        (Resources(limits=(("nofile", "10", "2000"),)), ROOT, []),
        (Resources(memory="weighted interleave:0"), ROOT, ["memory_policy"]),
    ],
)
def test_what_could_not_be_given(monkeypatch, wanted, rights, kinds):
    monkeypatch.setattr(resources, "find_tool", lambda name: f"/usr/bin/{name}")
    starter = Resources(limits=(("nofile", "100", "1000"), ("nice", "0", "0"), ("rtprio", "0", "0")))
    assert [kind for kind, _what in refused(wanted, starter, rights)] == kinds


def test_memory_policies(monkeypatch):
    for policy, option in [
        ("interleave:0-1", "--interleave=0-1"),
        ("bind:0,2", "--membind=0,2"),
        ("prefer:1", "--preferred=1"),
        ("prefer (many):1", "--preferred-many=1"),
        ("local", "--localalloc"),
    ]:
        script = resource_words(Resources(memory=policy), Resources())[2]
        assert f"exec numactl {option} " in script
        assert script.endswith('exec "$@"')
    assert resource_words(Resources(memory="bind=static:0"), Resources()) == []


def test_threads_of_others():
    """QEMU names them, and may name any."""
    with subprocess.Popen(["sleep", "100"]) as other:
        nice = os.getpriority(os.PRIO_PROCESS, other.pid)
        problems = give_threads({"cpu 0": other.pid}, [("cpu 0", Scheduling(nice=19))], os.getpid())
        assert problems == ["the thread of cpu 0, which it has not got"]
        assert os.getpriority(os.PRIO_PROCESS, other.pid) == nice
        assert give_threads({"cpu 0": other.pid}, [("cpu 0", Scheduling(nice=19))], other.pid) == []
        assert os.getpriority(os.PRIO_PROCESS, other.pid) == 19
        assert give_threads({}, [("cpu 1", Scheduling())], other.pid)
        other.kill()
