# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import configuration as module
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import (
    guest_name,
    machine_type,
    memory_size,
    parse_option_string,
    qmp_addresses,
    replay_obstacles,
    vcpu_count,
    why_not_replayable,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import (
    Setting,
    parse_configuration_file,
    read_configuration,
)
from hypothesis import given
from hypothesis import strategies as st

QEMU = "/usr/bin/qemu-system-x86_64"

WHOLE = """
# a VM
[name]
  guest = "web1"
  debug-threads = "on"
[machine]
  type = "q35"
[memory]
  size = "2G"
[smp-opts]
  cpus = "4"
[chardev "qmp"]
  backend = "socket"
  path = "run/web1.qmp"
  server = "on"
  wait = "off"
[mon]
  chardev = "qmp"
  mode = "control"
[device "d0"]
  driver = "virtio-rng-pci"
[drive]
  file = "a,b.img"
  snapshot = "on"
"""


@pytest.fixture
def write(tmp_path):
    """``write(text)``: a configuration file and its path."""

    def write_file(text, name="vm.cfg"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write_file


def parse(text):
    return [(setting.option, setting.argument) for setting in parse_configuration_file(text.encode("latin-1"), "f")]


# --- what is in a file ---


@pytest.mark.parametrize(
    ("line", "argument"),
    [
        ('guest = "x"', "guest=x"),
        ('\t guest="x"', 'guest="x"='),  # one word: QEMU, too, takes it for a key, and then refuses it
        ('guest ="x"', "guest=x"),
        ('guest = "x" trailing', "guest=x"),
        ('guest = "x"\r', "guest=x"),
        ('guest = ""', "guest="),
        ("guest = x", "guest="),
        ('guest = "x', "guest=x\n"),
        ('guest = "a b"', "guest=a b"),
        ('guest = "a,b=c"', "guest=a,,b=c"),
        ('guest = "a\\"b"', "guest=a\\"),
        ('guest = "x\0y"', "guest=x"),
        ('guest = "x" # no comment', "guest=x"),
        ('guest = "a"\nguest = "b"', "guest=b"),
        ('# guest = "x"\n\nguest = "y"', "guest=y"),
    ],
)
def test_a_value(line, argument):
    assert parse(f"[name]\n{line}\n") == [("name", argument)]


@pytest.mark.parametrize(
    ("line", "option", "argument"),
    [
        ('[device "d0"]', "device", "id=d0"),
        ('[device   "d0"', "device", "id=d0"),
        ('[device "d0" ] x', "device", "id=d0"),
        ('[device "a,b"]', "device", "id=a,,b"),
        (f'[device "{"d" * 70}"]', "device", "id=" + "d" * 63),
        ("[device]", "device", ""),
        ("[device] # x", "device", ""),
        ("[memory]", "m", ""),
        ("[smp-opts]", "smp", ""),
        ("[boot-opts]", "boot", ""),
        ("[ name ]", " name ", ""),
    ],
)
def test_a_section(line, option, argument):
    assert parse(f"{line}\n") == [(option, argument)]


@pytest.mark.parametrize(
    "text",
    [
        'guest = "x"\n',
        " # no comment\n",
        '[name]\n guest = "x"\n \n',
        '[name]\r\n guest = "x"\r\n\r\n',
        "[]\n",
        ' [name]\nguest = "x"\n',
        '[name]\n\0\nguest = "x"\n',
    ],
)
def test_what_qemu_does_not_take(text):
    with pytest.raises(ValueError, match=r"^line [0-9]+ is not understood as QEMU's configuration$"):
        parse(text)


def test_a_line_is_cut_where_qemu_cuts_it():
    assert parse('[name]\nguest = "' + "a" * 1020 + '"\n') == [("name", "guest=" + "a" * 1014 + ',aaaaaa"=')]


@given(
    st.lists(
        st.tuples(
            st.from_regex("[a-z][a-z0-9.-]{0,20}", fullmatch=True),
            st.text(st.characters(codec="latin-1", exclude_characters='\0\n"'), min_size=1, max_size=200),
        )
    )
)
def test_what_is_written_is_read_again(pairs):
    text = '[drive "d"]\n' + "".join(f'  {key} = "{value}"\n' for key, value in pairs)
    (setting,) = parse_configuration_file(text.encode(), "f")
    assert parse_option_string(setting.argument) == {"id": "d", **dict(pairs)}


@given(st.binary(max_size=500))
def test_any_bytes_can_be_read(content):
    with contextlib.suppress(ValueError):
        parse_configuration_file(content, "f")


def test_reading_takes_time_in_proportion():
    started = time.process_time()
    for content in (b"[a]\n" * 100_000, b"[a]\n" + b"x" * 500_000, b"\n" * 1_000_000, b"[a]\nb = " + b'"' * 1_000_000):
        with contextlib.suppress(ValueError):
            parse_configuration_file(content, "f")
    assert time.process_time() - started < 5


# --- a whole configuration ---


def test_a_file_is_as_the_command_line(write, tmp_path):
    path = write(WHOLE)
    for name in ("vm.cfg", path, "./../" + tmp_path.name + "/vm.cfg"):
        argv = [QEMU, "-readconfig", name, "-S", "-device", "e1000,id=n0", "disk.img"]
        found = read_configuration(argv, str(tmp_path))
        assert found.unknown == ()
        words = found.words
        assert guest_name(words) == "web1"
        assert machine_type(words) == "q35"
        assert memory_size(words) == 2**31
        assert vcpu_count(words) == 4
        assert qmp_addresses(words, "/vm") == ["/vm/run/web1.qmp"]
        assert [kind for kind, _reason in replay_obstacles(words)] == ["temporary_disks"]
        assert [(item.keys["driver"], item.keys["id"], item.origin) for item in found.of("device")] == [
            ("virtio-rng-pci", "d0", name),
            ("e1000", "n0", ""),
        ]
        assert found.of("drive")[0].keys["file"] == "a,b.img"
        assert found.of("hda") == [Setting("hda", "disk.img")]
        assert found.settings[-3:-1] == (Setting("S", ""), Setting("device", "e1000,id=n0"))


def test_descriptors_in_a_file_are_inherited_ones(write):
    path = write('[netdev "n"]\ntype = "tap"\nfd = "25"\n')
    assert "descriptor" in why_not_replayable(read_configuration([QEMU, "-readconfig", path]).words)
    assert "descriptor" in why_not_replayable(read_configuration([QEMU, "-readconfig", "/dev/fd/9"]).words)


def test_the_later_one_counts(write):
    path = write('[name]\nguest = "inside"\n')
    assert guest_name(read_configuration([QEMU, "-name", "before", "-readconfig", path]).words) == "inside"
    assert guest_name(read_configuration([QEMU, "-readconfig", path, "-name", "after"]).words) == "after"


def test_the_configuration_of_all_vms(write, monkeypatch):
    path = write('[name]\nguest = "all"\n')
    monkeypatch.setattr(module, "_own_file", lambda program: path)
    assert guest_name(read_configuration([QEMU]).words) == "all"
    assert guest_name(read_configuration([QEMU, "-name", "web1"]).words) == "web1"
    assert guest_name(read_configuration([QEMU, "-no-user-config"]).words) == ""
    os.unlink(path)
    assert read_configuration([QEMU]).unknown == ()


def test_odd_command_lines():
    assert read_configuration([]).words == ()
    assert read_configuration([QEMU, "-readconfig"]).settings == (Setting("readconfig", ""),)
    assert read_configuration([QEMU, "-name", "-readconfig"]).settings == (Setting("name", "-readconfig"),)


@pytest.mark.parametrize(
    ("option", "argument", "keys"),
    [
        ("device", "e1000,id=n0", {"driver": "e1000", "id": "n0"}),
        ("device", "id=n0,driver=e1000", {"driver": "e1000", "id": "n0"}),
        ("device", '{"driver":"e1000","id":"n0","romfile":""}', {"driver": "e1000", "id": "n0", "romfile": ""}),
        ("object", "iothread,id=io", {"qom-type": "iothread", "id": "io"}),
        ("mon", "c0,mode=control", {"chardev": "c0", "mode": "control"}),
        ("drive", "if=virtio,file=a,,b", {"if": "virtio", "file": "a,b"}),
        ("vnc", ":1,password=on", {"vnc": ":1", "password": "on"}),
        (
            "blockdev",
            '{"driver":"qcow2","file":{"filename":"a"},"x":[1,true,null]}',
            {"driver": "qcow2", "file.filename": "a", "x.0": "1", "x.1": "on", "x.2": ""},
        ),
        ("device", '{"driver":', {'{"driver":': "on"}),
        ("append", "a=b,c=d", {}),
        ("kernel", "/boot/x", {}),
    ],
)
def test_the_keys_of_a_setting(option, argument, keys):
    if argument == '{"driver":':
        assert Setting(option, argument).keys == {"driver": argument}
    else:
        assert Setting(option, argument).keys == keys


def test_deep_json_is_none():
    assert isinstance(Setting("device", "{" + '"a":{' * 100_000).keys, dict)
    assert isinstance(Setting("device", '{"a":' * 100_000 + "1" + "}" * 100_000).keys, dict)


# --- what cannot be known ---


def unknown_of(name, **options):
    found = read_configuration([QEMU, "-readconfig", name], **options)
    assert found.of("device") == []
    return found.unknown


def test_files_that_are_not_read(tmp_path, write):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    large = tmp_path / "large"
    large.write_bytes(b"# \n" * 400_000)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "fd").symlink_to("/proc/self/fd/0")
    wrong = write("[name]\n \n", "wrong.cfg")
    for path in (fifo, large, tmp_path / "loop", tmp_path / "fd", tmp_path / "none", tmp_path, wrong):
        (clause,) = unknown_of(str(path))
        assert clause.startswith(f"its configuration file {path} could not be read: ")
    for name in ("/dev/zero", "/sys/kernel/notes", "/sys/../proc/version", "/etc/../dev/zero", "/etc/passwd/x", "a\0b"):
        assert unknown_of(name)[0].startswith("its configuration file ")
    for name in ("/dev/fd/9", "/dev/stdin", "/proc/self/fd/9", "//dev/fdset/3"):
        assert unknown_of(name) == (f"its configuration file {name} is a descriptor that it inherited",)


def test_no_message_repeats_a_file(write):
    (clause,) = unknown_of(write("secret\n"))
    assert "secret" not in clause


def test_so_many_files_at_most(write):
    path = write("[device]\n")
    found = read_configuration([QEMU, *["-readconfig", path] * 1000])
    assert len(found.of("device")) == 64
    assert found.unknown == ("it names more than 64 files of its configuration",)


def test_a_file_that_takes_too_long(write, monkeypatch):
    monkeypatch.setattr(module, "_READ_TIMEOUT", 0.1)
    monkeypatch.setattr(module, "_SLOW_USERS", set())
    monkeypatch.setattr(module, "_read_regular_file", lambda *_arguments: time.sleep(1))
    started = time.monotonic()
    for _time in range(5):
        assert "too long" in unknown_of(write("[device]\n"), uid=12345)[0]
    assert time.monotonic() - started < 0.9


# --- the files of a running process ---


@pytest.fixture
def process(tmp_path):
    """A process with a second thread, as QEMU has, whose program has just begun."""
    code = "import threading,time; threading.Thread(target=time.sleep,args=(60,)).start(); print('up', flush=True)"
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path)
    assert started.stdout
    assert started.stdout.readline()
    yield started
    started.kill()
    started.communicate()


def test_files_of_a_process(process, write, tmp_path):
    time.sleep(0.2)
    write('[name]\nguest = "x"\n')
    os.utime(tmp_path / "vm.cfg", (1, 1))
    found = read_configuration([QEMU, "-readconfig", "vm.cfg"], "/nowhere", process.pid)
    assert guest_name(found.words) == "x"
    assert found.unknown == ("its configuration file vm.cfg was changed after it had started",)  # by its ctime
    (clause,) = read_configuration([QEMU, "-readconfig", "vm.cfg", "-daemonize"], "/", process.pid).unknown
    assert "directory" in clause


def test_a_file_from_before_the_process(write, request):
    write('[name]\nguest = "x"\n')
    time.sleep(0.2)
    running = request.getfixturevalue("process")
    assert read_configuration([QEMU, "-readconfig", "vm.cfg"], "/nowhere", running.pid).unknown == ()


def test_a_script_that_writes_the_file_and_becomes_qemu(tmp_path):
    code = "import threading,time,sys; threading.Thread(target=time.sleep,args=(60,)).start(); print('up', flush=True)"
    script = f"sleep 0.5; echo '[device]' > vm.cfg; sleep 0.2; exec {sys.executable} -c \"{code}\""
    started = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, cwd=tmp_path)
    try:
        assert started.stdout
        assert started.stdout.readline()
        assert read_configuration([QEMU, "-readconfig", "vm.cfg"], "/", started.pid).unknown == ()
    finally:
        started.kill()
        started.communicate()


def test_the_root_of_a_process_is_never_left(tmp_path):
    (tmp_path / "outside.cfg").write_text("outside")
    root = tmp_path / "root"
    (root / "etc" / "inner").mkdir(parents=True)
    (root / "etc" / "vm.cfg").write_text("inside")
    (root / "etc" / "absolute").symlink_to("/etc/vm.cfg")
    (root / "etc" / "relative").symlink_to("inner/../../etc/absolute")
    (root / "etc" / "outside").symlink_to(str(tmp_path / "outside.cfg"))
    inside = ("/etc/vm.cfg", "/etc/absolute", "/etc/relative", "vm.cfg", "../../../../etc/vm.cfg", "inner/../relative")
    for name in inside:
        assert module._read_regular_file(str(root), str(root / "etc"), name)[0] == b"inside"
    for name in ("/etc/outside", "outside", "/../outside.cfg", "../../outside.cfg"):
        with pytest.raises(FileNotFoundError):
            module._read_regular_file(str(root), str(root / "etc"), name)


def test_a_process_that_has_ended():
    (clause,) = read_configuration([QEMU, "-readconfig", "/etc/passwd"], "/", 2**22 + 1).unknown
    assert "could not be read" in clause
