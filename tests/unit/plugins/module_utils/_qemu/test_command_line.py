# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import (
    HIDDEN,
    CommandOption,
    MemoryBackend,
    agent_chardev,
    changes_user,
    daemonizes,
    guest_name,
    human_addresses,
    machine_type,
    memory_backends,
    memory_size,
    options,
    own_clock,
    parse_option_string,
    qmp_addresses,
    redact_argument,
    replay_obstacles,
    restore_command,
    vcpu_count,
    vm_uuid,
    why_not_replayable,
    without_change_of_user,
)
from hypothesis import given
from hypothesis import strategies as st

QEMU = "/usr/bin/qemu-system-x86_64"
SOCKET = ["-chardev", "socket,id=q,path=/a,server=on"]

# --- what command lines are made of, for the properties ---

WORD = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]))
KEY = st.from_regex("[a-z][a-z0-9._-]{0,8}", fullmatch=True)
DASHES = st.sampled_from(["-", "--"])


def option_words(names, argument=None):
    """The words of an option, with one dash or two."""
    name = st.builds(str.__add__, DASHES, st.sampled_from(names))
    return st.tuples(name) if argument is None else st.tuples(name, argument)


#: What the guest is made of; an argument may be anything, also what looks like an option.
KEPT = st.one_of(
    option_words(["enable-kvm", "nodefaults", "nographic", "no-reboot", "s", "usb"]),
    option_words(["name", "uuid", "m", "smp", "drive", "device", "append", "qmp", "chardev"], WORD),
    option_words(["name", "append"], st.sampled_from(["-S", "--incoming", "-loadvm", "-daemonize", "defer"])),
    option_words(["machine", "M"], st.sampled_from(["pc", "q35,accel=kvm", "type=pc-q35-10.0", "accel=tcg"])),
    st.tuples(WORD.filter(lambda word: not word.startswith("-"))),
)
DROPPED = st.one_of(
    option_words(["S", "daemonize"]),
    option_words(["incoming", "loadvm"], st.one_of(WORD, st.sampled_from(["-S", "defer", "tcp:0:4444"]))),
)
MACHINE = st.sampled_from(["", "pc-q35-10.0", "pc-i440fx-9.2"])


def is_kept(groups):
    return [word for kept, words in groups if kept for word in words]


GROUPS = st.lists(st.one_of(st.tuples(st.just(True), KEPT), st.tuples(st.just(False), DROPPED)), max_size=12)

# --- options ---


def test_options_have_their_arguments_and_places():
    argv = [QEMU, "-name", "web1", "--nodefaults", "disk.img", "-m", "1G", "-S"]
    assert options(argv) == [
        CommandOption("name", "web1", 1, 3),
        CommandOption("nodefaults", None, 3, 4),
        CommandOption("m", "1G", 5, 7),
        CommandOption("S", None, 7, 8),
    ]


def test_an_argument_may_look_like_an_option():
    assert options([QEMU, "-name", "-S", "-append", "--incoming"]) == [
        CommandOption("name", "-S", 1, 3),
        CommandOption("append", "--incoming", 3, 5),
    ]


@pytest.mark.parametrize("name", ["s", "S", "preconfig", "perfmap", "jitdump", "async-teardown", "no-hpet", "h"])
def test_options_without_argument_leave_the_next_word_alone(name):
    assert [option.name for option in options([QEMU, f"-{name}", "-incoming", "defer"])] == [name, "incoming"]


def test_odd_command_lines():
    assert options([]) == []
    assert options([QEMU]) == []
    assert options(["-S"]) == []  # the program's name, whatever it looks like
    assert options([QEMU, "-", "disk.img", ""]) == []
    assert options([QEMU, "-name"]) == [CommandOption("name", None, 1, 2)]


@given(GROUPS)
def test_every_option_is_found_where_it_stands(groups):
    argv = [QEMU]
    places = []
    for _kept, words in groups:
        if words[0].startswith("-"):
            places.append((words[0].lstrip("-"), len(argv), len(argv) + len(words)))
        argv.extend(words)
    assert [(option.name, option.start, option.end) for option in options(argv)] == places


# --- option strings ---


@pytest.mark.parametrize(
    ("text", "implied", "parsed"),
    [
        ("", "guest", {}),
        ("web1", "guest", {"guest": "web1"}),
        ("guest=web1,debug-threads=on", "guest", {"guest": "web1", "debug-threads": "on"}),
        ("web1,process=qemu", "guest", {"guest": "web1", "process": "qemu"}),
        ("a,,b", "guest", {"guest": "a,b"}),
        ("a,,b=c,,d,,,e=f", "guest", {"guest": "a,b=c,d,", "e": "f"}),
        ("guest=a,,b,,,,c", "guest", {"guest": "a,b,,c"}),
        ("guest=a=b", "guest", {"guest": "a=b"}),
        ("guest=a,guest=b", "guest", {"guest": "b"}),
        ("nobody", "guest", {"guest": "nobody"}),
        ("/p,server,nowait,nodelay", "path", {"path": "/p", "server": "on", "wait": "off", "delay": "off"}),
        ("/p,server=on,wait=off,", "path", {"path": "/p", "server": "on", "wait": "off"}),
        ("server,nowait", "", {"server": "on", "wait": "off"}),
        ("key=", "", {"key": ""}),
    ],
)
def test_an_option_string(text, implied, parsed):
    assert parse_option_string(text, implied) == parsed


@given(st.dictionaries(KEY, WORD))
def test_what_is_written_as_qemu_wants_it_is_read_again(values):
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in values.items())
    assert parse_option_string(text, "implied") == values


@given(WORD.filter(bool), st.dictionaries(KEY, WORD))
def test_an_implied_value_may_hold_anything_but_an_equals_sign_first(value, others):
    doubled = value.replace(",", ",,")
    if "=" in doubled.split(",")[0]:
        doubled = f"implied={doubled}"
    others.pop("implied", None)
    text = ",".join([doubled, *(f"{key}={other.replace(',', ',,')}" for key, other in others.items())])
    assert parse_option_string(text, "implied") == {"implied": value, **others}


@given(WORD, st.sampled_from(["", "guest"]))
def test_any_text_can_be_read(text, implied):
    parse_option_string(text, implied)


# --- the name ---


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], ""),
        (["-name", "web1"], "web1"),
        (["--name", "web1,debug-threads=on"], "web1"),
        (["-name", "guest=web1,process=x"], "web1"),
        (["-name", "a,,b=c"], "a,b=c"),
        (["-name", "process=x"], ""),
        (["-name", "web1", "-name", "process=x"], "web1"),
        (["-name", "web1", "-name", "web2"], "web2"),
        (["-append", "-name", "web1"], ""),
        (["-name"], ""),
    ],
)
def test_the_name(words, name):
    assert guest_name([QEMU, *words]) == name


@given(WORD)
def test_any_name_is_read_as_it_was_meant(name):
    assert guest_name([QEMU, "-name", f"guest={name.replace(',', ',,')}"]) == name


# --- QMP servers ---


@pytest.mark.parametrize(
    ("words", "addresses"),
    [
        (["-qmp", "unix:/run/a.qmp,server=on,wait=off"], ["/run/a.qmp"]),
        (["-qmp", "unix:/run/a.qmp,server,nowait"], ["/run/a.qmp"]),
        (["-qmp", "unix:/run/a,,b.qmp,server=on"], ["/run/a,b.qmp"]),
        (["-qmp", "unix:run/a.qmp,server=on"], ["/vm/run/a.qmp"]),
        (["-qmp", "unix:path=a.qmp,server=on"], ["/vm/a.qmp"]),
        (["-qmp", "unix:name,server=on,abstract=on"], ["\0name"]),
        (["-qmp-pretty", "unix:/run/a.qmp,server=on"], ["/run/a.qmp"]),
        (["-qmp", "tcp:127.0.0.1:4444,server=on,wait=off"], ["127.0.0.1:4444"]),
        (["-qmp", "tcp::4444,server,nowait"], ["localhost:4444"]),
        (
            ["-chardev", "socket,id=q,path=/run/a.qmp,server=on,wait=off", "-mon", "chardev=q,mode=control"],
            ["/run/a.qmp"],
        ),
        (["-mon", "q,mode=control", "-chardev", "backend=socket,id=q,path=a.qmp,server=on"], ["/vm/a.qmp"]),
        (["-chardev", "socket,id=q,path=/run/a.qmp,server=on", "-qmp", "chardev:q"], ["/run/a.qmp"]),
        (["-chardev", "socket,id=q,path=n,abstract=on,server=on", "-mon", "q,mode=control"], ["\0n"]),
        (["-chardev", "socket,id=q,host=::1,port=4444,server=on", "-mon", "q,mode=control"], ["[::1]:4444"]),
        (["-chardev", "socket,id=q,port=4444,server=on", "-mon", "q,mode=control,pretty=on"], ["localhost:4444"]),
        (
            ["-qmp", "unix:/b,server=on", "-mon", "q,mode=control", "-chardev", "socket,id=q,path=/a,server=on"],
            ["/b", "/a"],
        ),
        (
            ["-object", "monitor-qmp,id=m,chardev=q", "-chardev", "socket,id=q,path=/a,server=on"],
            ["/a"],
        ),
        (
            [*SOCKET, "-object", "qom-type=monitor-qmp,chardev=q,id=m,pretty=on,close-action=delete"],
            ["/a"],
        ),
        (
            [*SOCKET, "-object", '{"qom-type": "monitor-qmp", "id": "m", "chardev": "q", "pretty": true}'],
            ["/a"],
        ),
    ],
)
def test_a_qmp_server(words, addresses):
    assert qmp_addresses([QEMU, *words], "/vm") == addresses


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-qmp", "stdio"],
        ["-qmp", "none"],
        ["-qmp", "pty"],
        ["-qmp", "unix:/run/a.qmp"],  # a client
        ["-qmp", "unix:/run/a.qmp,server=off"],
        ["-qmp", "unix:/run/a.qmp,noserver"],
        ["-qmp", "tcp:127.0.0.1:4444"],
        ["-qmp", "tcp:127.0.0.1:4444,server=no"],
        ["-qmp", "tcp:,server=on"],
        ["-qmp", "tcp:"],
        ["-qmp", "chardev:none"],
        ["-qmp", "telnet::4444,server=on"],
        ["-qmp"],
        ["-monitor", "unix:/run/hmp,server=on"],
        ["-mon", "q", "-chardev", "socket,id=q,path=/run/hmp,server=on"],
        ["-mon", "q,mode=readline", "-chardev", "socket,id=q,path=/run/hmp,server=on"],
        ["-mon", "q,mode=control", "-chardev", "socket,id=other,path=/run/a,server=on"],
        ["-mon", "q,mode=control", "-chardev", "socket,id=q,fd=5,server=on"],
        ["-mon", "q,mode=control", "-chardev", "stdio,id=q"],
        ["-append", "-qmp", "unix:/run/a.qmp,server=on"],
        [*SOCKET, "-object", "monitor-hmp,id=m,chardev=q"],
        [*SOCKET, "-object", "secret,id=monitor-qmp,data=q"],
        [*SOCKET, "-object", "monitor-qmp,id=m"],
        [*SOCKET, "-object", "monitor-qmp,id=m,chardev=other"],
        [*SOCKET, "-object", '{"qom-type": "monitor-qmp", "chardev": ["q"]}'],
        [*SOCKET, "-object", '{"qom-type": "monitor-qmp", "chardev"'],
        [*SOCKET, "-object", "{" * 100_000],
    ],
)
def test_no_qmp_server(words):
    assert qmp_addresses([QEMU, *words], "/vm") == []


@pytest.mark.parametrize(
    ("words", "addresses"),
    [
        (["-monitor", "unix:/run/a.hmp,server=on,wait=off"], ["/run/a.hmp"]),
        (["--monitor", "unix:a.hmp,server,nowait"], ["/vm/a.hmp"]),
        (["-monitor", "tcp:127.0.0.1:4444,server=on"], ["127.0.0.1:4444"]),
        (["-monitor", "telnet::4444,server,nowait"], ["localhost:4444"]),
        (["-monitor", "chardev:q", *SOCKET], ["/a"]),
        (["-mon", "q", *SOCKET], ["/a"]),
        ([*SOCKET, "-mon", "mode=readline,chardev=q"], ["/a"]),
        ([*SOCKET, "-object", "monitor-hmp,id=m,chardev=q"], ["/a"]),
        ([*SOCKET, "-object", '{"qom-type": "monitor-hmp", "id": "m", "chardev": "q", "readline": true}'], ["/a"]),
        ([*SOCKET, "-object", "{'chardev':'q','qom-type':'monitor-hmp','id':'m'}"], ["/a"]),
        (["-monitor", "tcp::1,server=on", "-mon", "q", *SOCKET], ["/a", "localhost:1"]),
        (["-monitor", "stdio"], []),
        (["-monitor", "unix:/run/a.hmp"], []),
        (["-monitor", "none"], []),
        (["-qmp", "unix:/run/a.qmp,server=on"], []),
        (["-serial", "mon:unix:/run/a,server=on"], []),
        (["-mon", "q,mode=control", *SOCKET], []),
        (["-mon", "q", "-chardev", "socket,id=q,path=/a,server=on,mux=on"], []),
        ([*SOCKET, "-object", "monitor-hmp,id=m,chardev=q,readline=off"], []),
        ([*SOCKET, "-object", "{'qom-type':'monitor-hmp','id':'m','chardev':'q','readline':false}"], []),
    ],
)
def test_human_monitors(words, addresses):
    assert human_addresses([QEMU, *words], "/vm") == addresses


@given(WORD.filter(bool))
def test_any_path_of_a_socket(path):
    doubled = path.replace(",", ",,")
    argv = [QEMU, "-chardev", f"socket,id=q,path={doubled},server=on", "-mon", "q,mode=control"]
    expected = path if path.startswith("/") else f"/vm/{path}"
    assert qmp_addresses(argv, "/vm") == [expected]


# --- the machine type ---


@pytest.mark.parametrize(
    ("words", "machine"),
    [
        ([], ""),
        (["-machine", "pc-q35-10.0,accel=tcg"], "pc-q35-10.0"),
        (["-machine", "accel=tcg,type=q35"], "q35"),
        (["-M", "q35"], "q35"),
        (["-machine", "accel=tcg"], ""),
        (["-machine", "pc", "-machine", "usb=off", "-M", "q35"], "q35"),
    ],
)
def test_the_machine_type(words, machine):
    assert machine_type([QEMU, *words]) == machine


# --- the command line of a restore ---

WAITING = ["-S", "-incoming", "defer"]


@pytest.mark.parametrize(
    "words",
    [
        ["-S"],
        ["--S"],
        ["-incoming", "tcp:0:4444"],
        ["--incoming", "defer"],
        ["-loadvm", "snap"],
        ["--loadvm", "-S"],
        ["-daemonize"],
        ["--daemonize", "-S", "-incoming", "defer", "-S"],
    ],
)
def test_a_restore_drops_how_the_guest_was_started(words):
    assert restore_command([QEMU, "-name", "web1", *words, "-s", "disk.img"]) == [
        *(QEMU, "-name", "web1", "-s", "disk.img"),
        *WAITING,
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["-name", "-S"],
        ["-append", "-incoming", "-nodefaults"],
        ["-name", "--loadvm"],
        ["-device", "pc-testdev", "defer"],
        ["-s", "S"],
    ],
)
def test_a_restore_keeps_what_only_looks_like_it(words):
    assert restore_command([QEMU, *words]) == [QEMU, *words, *WAITING]


def test_a_restore_pins_the_machine_type():
    argv = [QEMU, "-machine", "q35,accel=tcg"]
    assert restore_command(argv, "pc-q35-10.0") == [*argv, "-machine", "pc-q35-10.0", *WAITING]
    assert restore_command([QEMU], "pc-q35-10.0") == [QEMU, "-machine", "pc-q35-10.0", *WAITING]
    argv = [QEMU, "-M", "pc-q35-10.0,accel=tcg"]
    assert restore_command(argv, "pc-q35-10.0") == [*argv, *WAITING]


@given(GROUPS, MACHINE)
def test_a_restore_keeps_all_other_words_in_their_order(groups, machine):
    argv = [QEMU, *(word for _kept, words in groups for word in words)]
    kept = [QEMU, *is_kept(groups)]
    command = restore_command(argv, machine)
    assert command[: len(kept)] == kept
    pinned = ["-machine", machine] if machine and machine_type(argv) != machine else []
    assert command[len(kept) :] == [*pinned, *WAITING]
    assert guest_name(command) == guest_name(argv)
    assert machine_type(command) == (machine or machine_type(argv))


@given(GROUPS, MACHINE)
def test_a_restore_of_a_restored_vm_is_started_the_same_way(groups, machine):
    command = restore_command([QEMU, *(word for _kept, words in groups for word in words)], machine)
    assert restore_command(command, machine) == command


@pytest.mark.parametrize(
    ("words", "appending"),
    [
        (["-serial", "file:/a"], ["-chardev", "file,id=serial0,path=/a,append=on", "-serial", "chardev:serial0"]),
        (["--serial", "file:a,b"], ["-chardev", "file,id=serial0,path=a,,b,append=on", "--serial", "chardev:serial0"]),
        (
            ["-serial", "none", "-serial", "pty", "-serial", "file:/a"],
            [
                *("-serial", "none", "-serial", "pty"),
                *("-chardev", "file,id=serial2,path=/a,append=on", "-serial", "chardev:serial2"),
            ],
        ),
        (
            ["-serial", "mon:file:/a"],
            [
                *("-chardev", "file,id=serial0,path=/a,append=on,mux=on", "-mon", "chardev=serial0,mode=readline"),
                *("-serial", "chardev:serial0"),
            ],
        ),
        (["-debugcon", "file:/a"], ["-chardev", "file,id=debugcon,path=/a,append=on", "-debugcon", "chardev:debugcon"]),
        (
            ["-parallel", "file:/a"],
            ["-chardev", "file,id=parallel0,path=/a,append=on", "-parallel", "chardev:parallel0"],
        ),
        (
            ["-qmp", "unix:/q,server=on", "-monitor", "file:/a"],
            [
                *("-qmp", "unix:/q,server=on"),
                *("-chardev", "file,id=compat_monitor1,path=/a,append=on", "-monitor", "chardev:compat_monitor1"),
            ],
        ),
        (
            ["-chardev", "null,id=serial0", "-device", "x,chardev=serial0", "-serial", "file:/a"],
            [
                *("-chardev", "null,id=serial0", "-device", "x,chardev=serial0"),
                *("-chardev", "file,id=serial0-log0,path=/a,append=on", "-serial", "chardev:serial0-log0"),
            ],
        ),
        (["-chardev", "file,id=c,path=/a"], ["-chardev", "file,id=c,path=/a,append=on"]),
        (["-chardev", "id=c,backend=file,path=/a"], ["-chardev", "id=c,backend=file,path=/a,append=on"]),
        (["-chardev", "file,id=c,append=off,path=/a"], ["-chardev", "file,id=c,append=off,path=/a,append=on"]),
        (["-chardev", "pty,id=c,logfile=/a"], ["-chardev", "pty,id=c,logfile=/a,logappend=on"]),
        (
            ["-chardev", "file,id=c,path=/a,logfile=/b"],
            ["-chardev", "file,id=c,path=/a,logfile=/b,append=on,logappend=on"],
        ),
        (
            ["-monitor", "unix:/m,server=on,logfile=/a"],
            ["-monitor", "unix:/m,server=on,logfile=/a,logappend=on"],
        ),
        (["-serial", "mon:tcp::4,server,logfile=/a"], ["-serial", "mon:tcp::4,server,logfile=/a,logappend=on"]),
    ],
)
def test_a_restore_appends_to_logs(words, appending):
    command = restore_command([QEMU, *words])
    assert command == [QEMU, *appending, *WAITING]
    assert restore_command(command) == command


@pytest.mark.parametrize(
    "words",
    [
        ["-chardev", "file,id=c,path=/a,append=on"],
        ["-chardev", "file,id=c,path=/a,append"],
        ["-chardev", "file,id=c,path=/a,append=yes"],
        ["-chardev", "socket,id=c,path=/a,server=on,logfile=/b,logappend=on"],
        ["-chardev", "pipe,id=c,path=/a"],
        ["-serial", "file:"],
        ["-serial", "stdio", "-serial", "null", "-serial", "/dev/ttyS0", "-serial", "chardev:c"],
        ["-serial", "unix:/a,server=on,wait=off"],
        ["-serial", "pipe:/file:a"],
        ["-append", "-serial", "file:/a"],
        ["-chardev"],
        ["-serial"],
    ],
)
def test_a_restore_leaves_other_character_devices_alone(words):
    assert restore_command([QEMU, *words]) == [QEMU, *words, *WAITING]


# --- what cannot be started again ---


@pytest.mark.parametrize(
    "words",
    [
        ["-add-fd", "fd=3,set=2"],
        ["--add-fd", "set=2,fd=3"],
        ["-netdev", "tap,id=n,fd=25"],
        ["-netdev", "tap,id=n,fds=25:26,vhostfds=27:28"],
        ["-netdev", "tap,id=n,ifname=t0,vhost=on,vhostfd=30"],
        ["-netdev", '{"type":"tap","fd":"25","vhost":true,"vhostfd":"27","id":"hostnet0"}'],
        ["-netdev", '{"type": "tap", "id": "n", "fds": "25:26"}'],
        ["-netdev", "stream,id=n,addr.type=fd,addr.str=5"],
        ["-netdev", '{"type":"stream","id":"n","addr":{"type":"fd","str":"5"}}'],
        ["-chardev", "socket,id=q,fd=5,server=on"],
        ["-drive", "file=/dev/fdset/2,if=virtio"],
        ["-blockdev", '{"driver":"file","filename":"/dev/fdset/1","node-name":"a"}'],
        ["-kernel", "/proc/self/fd/9"],
        ["-readconfig", "/dev/fd/9"],
    ],
)
def test_inherited_descriptors_are_gone(words):
    assert "descriptor" in why_not_replayable([QEMU, "-name", "web1", *words])


@pytest.mark.parametrize(
    "words", [["-snapshot"], ["-drive", "file=a.img,snapshot=on"], ["-drive", "a.img,if=ide,snapshot"]]
)
def test_temporary_disks_are_gone(words):
    assert "temporary file" in why_not_replayable([QEMU, *words])


def test_a_configuration_over_qmp_is_not_known():
    assert why_not_replayable([QEMU, "--preconfig"]).startswith("-preconfig ")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-incoming", "fd:5"],
        ["-incoming", "file:/dev/fdset/1,offset=0x1000"],
        ["-loadvm", "fd=3"],
        ["-name", "fd=3"],
        ["-append", "console=ttyS0 root=/dev/fd/1 a,fd=3"],
        ["-device", "virtio-net-pci,netdev=n,mac=52:54:00:fd:12:34"],
        ["-device", '{"driver":"virtio-net-pci","netdev":"n","mac":"52:54:00:fd:12:34"}'],
        ["-drive", "file=/srv/fd.img,id=fd0,if=floppy"],
        ["-device", "floppy,unit=0,drive=s,id=fdc0-0-0"],
        ["-drive", "file=a.img,snapshot=off"],
        ["-netdev", "stream,id=n,addr.type=unix,addr.path=/run/a"],
        ["disk.img"],
    ],
)
def test_what_can_be_started_again(words):
    assert why_not_replayable([QEMU, "-name", "web1", *words]) == ""


@given(GROUPS)
def test_a_restored_vm_is_as_replayable_as_before(groups):
    argv = [QEMU, *(word for _kept, words in groups for word in words)]
    assert why_not_replayable(restore_command(argv)) == why_not_replayable(argv)


# --- what is told of a VM that cannot be asked ---


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([], None),
        (["-m", "64"], 64 * 2**20),
        (["-m", "2G"], 2 * 2**30),
        (["-m", "size=1024k,slots=3,maxmem=8g"], 2**20),
        (["-m", "512M", "-m", "1g"], 2**30),
        (["-m", "slots=3"], None),
        (["-m", "much"], None),
        (["-name", "-m"], None),
    ],
)
def test_memory_size(words, size):
    assert memory_size([QEMU, *words]) == size


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([], 1),
        (["-smp", "4"], 4),
        (["-smp", "cpus=2,sockets=4,maxcpus=8"], 2),
        (["-smp", "sockets=2,cores=3,threads=2"], 12),
        (["-smp", "sockets=x"], 1),
        (["-smp", "maxcpus=8"], 1),
    ],
)
def test_vcpu_count(words, count):
    assert vcpu_count([QEMU, *words]) == count


def test_vm_uuid():
    assert vm_uuid([QEMU]) == ""
    assert vm_uuid([QEMU, "-uuid", "0E1C5F0A-7A3C-4F0E-9B4D-2F6D8A1B2C3D"]) == "0e1c5f0a-7a3c-4f0e-9b4d-2f6d8a1b2c3d"


# --- a starter that gives its descriptors again ---


def test_descriptors_of_a_starter_that_gives_them_again():
    argv = [QEMU, "-add-fd", "fd=3,set=5", "-netdev", "tap,fd=4,id=n0"]
    assert why_not_replayable(argv)
    assert not list(replay_obstacles(argv, starter_gives_descriptors=True))
    found = list(replay_obstacles([*argv, "-snapshot"], starter_gives_descriptors=True))
    assert [kind for kind, _reason in found] == ["temporary_disks"]


def test_daemonize_is_left_where_it_counts():
    argv = [QEMU, "-daemonize", "-S", "-name", "-daemonize"]
    assert daemonizes(argv)
    assert not daemonizes(argv[2:])
    assert restore_command(argv) == [QEMU, "-name", "-daemonize", "-S", "-incoming", "defer"]
    assert restore_command(argv, daemonize=True) == [QEMU, "-daemonize", *restore_command(argv)[1:]]


@pytest.mark.parametrize("digits", ["9" * 20, "9" * 5000, "9" * 100_000, "9999999999999999999e"])
def test_sizes_that_no_host_has(digits):
    assert memory_size([QEMU, "-m", digits]) is None
    assert vcpu_count([QEMU, "-smp", digits]) == 1
    levels = ",".join(f"{level}={digits}" for level in ("sockets", "cores", "threads"))
    assert vcpu_count([QEMU, "-smp", levels]) == 1


def test_cpus_that_no_host_has():
    assert vcpu_count([QEMU, "-smp", "sockets=9999999,cores=9999999,threads=9999999"]) == 1 << 20


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        (["-runas", "nobody", "-m", "64"], ["-m", "64"]),
        (["--run-with", "user=nobody"], []),
        (
            ["-run-with", "user=65534:65534,chroot=/a,,b,async-teardown=on"],
            ["-run-with", "chroot=/a,,b,async-teardown=on"],
        ),
        (["-run-with", "chroot=/a,user=b", "x"], ["-run-with", "chroot=/a", "x"]),
        (["-run-with", "chroot=/a"], ["-run-with", "chroot=/a"]),
        (["-name", "-runas", "-append", "user=a"], ["-name", "-runas", "-append", "user=a"]),
    ],
)
def test_change_of_user_is_left_out(words, rest):
    assert without_change_of_user(["qemu", *words]) == ["qemu", *rest]
    assert not changes_user(["qemu", *rest])


@pytest.mark.parametrize(
    ("given", "started"),
    [
        ("exit-with-parent=on", []),
        ("user=nobody,exit-with-parent=on", ["-run-with", "user=nobody"]),
        ("user=nobody", ["-run-with", "user=nobody"]),
    ],
)
def test_restored_qemu_does_not_end_with_the_task(given, started):
    assert restore_command(["qemu", "-run-with", given]) == ["qemu", *started, "-S", "-incoming", "defer"]


# --- secrets ---


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("secret,id=s,data=geheim,,noch,format=raw", f"secret,id=s,data={HIDDEN},format=raw"),
        ("secret,id=s,file=/etc/key,keyid=k", None),
        ("port=5900,password=pw", f"port=5900,password={HIDDEN}"),
        (":1,password=on", None),
        (":1,password,tls-creds=t", None),
        (":1,password-secret=s", None),
        ("driver=https,file.password=pw,file.cookie=c", f"driver=https,file.password={HIDDEN},file.cookie={HIDDEN}"),
        ("file=rbd:pool/image:id=admin:key=AQ==:auth=cephx", f"file=rbd:pool/image:id=admin:key={HIDDEN}:auth=cephx"),
        ("https://me:pw@host/disk.img", f"https://me:{HIDDEN}@host/disk.img"),
        ("iscsi://me%pw@host/iqn", f"iscsi://me%{HIDDEN}@host/iqn"),
        ("root=/dev/vda rd.password=pw quiet", f"root=/dev/vda rd.password={HIDDEN} quiet"),
        ('ro password="two words" quiet', f"ro password={HIDDEN} quiet"),
        ("systemd.set_credential=root:pw ro", f"systemd.set_credential={HIDDEN} ro"),
        ("systemd.set_credential_binary=root:pw ro", f"systemd.set_credential_binary=root:{HIDDEN} ro"),
        (
            "user,id=n,guestfwd=tcp::1-cmd:env API_TOKEN=pw run",
            f"user,id=n,guestfwd=tcp::1-cmd:env API_TOKEN={HIDDEN} run",
        ),
        ("isa-applesmc,osk=pw", f"isa-applesmc,osk={HIDDEN}"),
        ('{"file.password":"pw","password": 12345}', f'{{"file.password":"{HIDDEN}","password": "{HIDDEN}"}}'),
        (r'{"file":"json:{\"password\": \"pw\"}"}', rf'{{"file":"json:{{\"password\": \"{HIDDEN}\"}}"}}'),
        ("luks,id=d,key-secret=s0,file.password-secret=s1", None),
        ("virtio-iommu-pci,boot-bypass=on", None),
        ("root=/dev/vda iommu.passthrough=1 rd.luks.key=/etc/key", None),
        ("tls-creds-x509,id=t,passwordid=s", None),
        ('{"qom-type":"secret","id":"s","data":"a\\"b"}', f'{{"qom-type":"secret","id":"s","data":"{HIDDEN}"}}'),
        ("{'qom-type':'secret', 'data' : 'a\\'b'}", f"{{'qom-type':'secret', 'data' : '{HIDDEN}'}}"),
        ('{"driver":"iscsi", "password" : "x"}', f'{{"driver":"iscsi", "password" : "{HIDDEN}"}}'),
        ("name=opt/x,string=pw", f"name=opt/x,string={HIDDEN}"),
        ("type=11,value=io.systemd.credential:pw=geheim", f"type=11,value=io.systemd.credential:pw={HIDDEN}"),
        ("/var/lib/data=1/x", None),
        ("/srv/PASSWORD", None),
        ("init=/x API_KEY=pw", f"init=/x API_KEY={HIDDEN}"),
    ],
)
def test_redacts_an_argument(argument, shown):
    assert redact_argument(argument) == (argument if shown is None else shown)


@pytest.mark.parametrize(
    "piece", ["://", "io.systemd.credential:", 'password="', '"data":', "a.", ",data=", ":key=", "\\"]
)
def test_redacting_takes_time_in_proportion(piece):
    argument = piece * (2**20 // len(piece))
    started = time.monotonic()
    redact_argument(argument)
    assert time.monotonic() - started < 5


# --- the guest's clock, and where its memory comes from ---


@pytest.mark.parametrize(
    ("device", "chardev"),
    [
        ("virtserialport,chardev=a0,name=org.qemu.guest_agent.0", "a0"),
        ("driver=virtserialport,name=org.qemu.guest_agent.0,bus=s.0,chardev=a0,id=x", "a0"),
        ('{"driver": "virtserialport", "name": "org.qemu.guest_agent.0", "chardev": "a0", "nr": 1}', "a0"),
        ("virtserialport,chardev=a0,name=com.redhat.spice.0", ""),
        ("virtconsole,chardev=a0,name=org.qemu.guest_agent.0", ""),
        ("virtserialport,name=org.qemu.guest_agent.0", ""),
        ("{", ""),
    ],
)
def test_agent_chardev(device, chardev):
    assert agent_chardev([QEMU, "-device", "virtio-serial-pci", "-device", device]) == chardev


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ""),
        (["-rtc", "base=utc"], ""),
        (["-rtc", "base=localtime,clock=host,driftfix=slew"], ""),
        (["-rtc", "base=2001-01-01"], "base="),
        (["--rtc", "clock=vm"], "clock=vm"),
        (["-rtc", "base=2001-01-01", "-rtc", "base=utc"], ""),
    ],
)
def test_own_clock(words, told):
    assert bool(own_clock([QEMU, *words])) == bool(told)
    assert told in own_clock([QEMU, *words])


GIB = 2**30


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], []),
        (["-mem-prealloc"], [MemoryBackend(4 * GIB, prealloc=True)]),
        (["-mem-path", "/dev/hugepages", "-mem-prealloc"], [MemoryBackend(4 * GIB, "/dev/hugepages", prealloc=True)]),
        (["-overcommit", "mem-lock=on"], [MemoryBackend(4 * GIB, prealloc=True)]),
        (["-overcommit", "cpu-pm=on"], []),
        (["-object", "memory-backend-ram,id=m,size=2G,prealloc=on"], [MemoryBackend(2 * GIB, prealloc=True)]),
        (
            [
                "-object",
                '{"qom-type": "memory-backend-file", "id": "m", "size": 2147483648, "share": true,'
                ' "mem-path": "/dev/shm/x"}',
            ],
            [MemoryBackend(2 * GIB, "/dev/shm/x", shared=True)],
        ),
        (
            ["-object", "memory-backend-memfd,id=m,size=2G,hugetlb=on,hugetlbsize=1G", "-overcommit", "mem-lock=on"],
            [MemoryBackend(2 * GIB, prealloc=True, hugetlb=True, page_size=GIB)],
        ),
        (["-object", "rng-random,id=r", "-object", "memory-backend-ram,id=m,size=x"], []),
    ],
)
def test_memory_backends(words, found):
    assert memory_backends([QEMU, "-m", "4G", *words], 4 * GIB) == found
