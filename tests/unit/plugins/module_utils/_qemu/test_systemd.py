# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager, systemd
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)

# --- control groups ---

# A Debian 13 host, a unified hierarchy.
UNIFIED = "0::{}\n"
# Debian 10 and its kin: the hierarchies of version 1, systemd's own among them.
LEGACY = "12:memory:/system.slice\n5:cpu,cpuacct:/system.slice\n1:name=systemd:{}\n0::/\n"
# A container of systemd-nspawn with a unified hierarchy, on a host that has both.
NESTED = "9:name=systemd:/\n8:pids:/\n4:memory:/\n0::{}\n"


@pytest.mark.parametrize("layout", [UNIFIED, LEGACY, NESTED], ids=["unified", "legacy", "nested"])
@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/system-qemu.slice/qemu@web1.service", "qemu@web1.service"),
        ("/system.slice/qemu.service/payload/vcpu0", "qemu.service"),
        (r"/system.slice/system-qemu.slice/qemu@db\x2d1.service", r"qemu@db\x2d1.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/vm.service", "user@1000.service/vm.service"),
        (
            r"/user.slice/user-7.slice/user@7.service/app.slice/app-qemu.slice/qemu@db\x2d1.service/vcpu0",
            r"user@7.service/qemu@db\x2d1.service",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-1.scope",
            "user@1000.service/vte-spawn-1.scope",
        ),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service/init.scope"),
        ("/user.slice/user-1000.slice/user@1000.service/no unit/vm.service", "user@1000.service"),
        ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service"),
        # Made by whoever may name a unit, but no user's own systemd.
        ("/system.slice/user@alice.service/vm.service", "user@alice.service"),
        ("/system.slice/user@01.service/vm.service", "user@01.service"),
        (r"/machine.slice/machine-qemu\x2d1\x2dtiny.scope/libvirt/emulator", r"machine-qemu\x2d1\x2dtiny.scope"),
        ("/init.scope", "init.scope"),
        ("/system.slice/_cpu.service", "cpu.service"),
        ("/", ""),
        ("/..", ""),
        ("/system.slice", ""),
        ("/lxc/c1", ""),
        ("/system.slice/no unit.service", ""),
    ],
)
def test_unit_of_a_control_group(layout, path, unit):
    assert systemd.unit_of_cgroup(layout.format(path), layout.format("/init.scope")) == unit


@pytest.mark.parametrize(
    "text", ["", "0::\n", "nonsense", "1:name=systemd\n", "::\n", "0:memory:/system.slice/a.service"]
)
def test_no_unit(text):
    assert systemd.unit_of_cgroup(text) == ""


@pytest.mark.parametrize("suffix", ["", "/init.scope", "/system"])
def test_systemd_that_is_not_at_the_root(suffix):
    """A container without a namespace of its own for control groups."""
    root = "/machine.slice/machine-c1.scope"
    path = f"{root}/system.slice/qemu@web1.service"
    assert systemd.unit_of_cgroup(UNIFIED.format(path), UNIFIED.format(root + suffix)) == "qemu@web1.service"
    assert systemd.unit_of_cgroup(UNIFIED.format(path)) == "machine-c1.scope"
    elsewhere = "/machine.slice/machine-c12.scope/system.slice/a.service"
    assert systemd.unit_of_cgroup(UNIFIED.format(elsewhere), UNIFIED.format(root + suffix)) == "machine-c12.scope"


def test_unit_of_a_process_that_is_gone():
    assert systemd.unit_of_process(2**22 + 1) == ""


# --- names ---


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("web1", "web1"),
        ("db-1", r"db\x2d1"),
        ("a b%é", r"a\x20b\x25\xc3\xa9"),
        ("srv/save", "srv-save"),
        (".hidden.x", r"\x2ehidden.x"),
        ("a\\b@c", r"a\x5cb\x40c"),
        ("", ""),
    ],
)
def test_escaped_names(text, escaped):
    """As systemd-escape(1) prints them."""
    assert systemd.escape_unit_name(text) == escaped


@given(TEXT, TEXT)
def test_escaped_names_are_part_of_names_and_differ(one, other):
    escaped = systemd.escape_unit_name(one)
    assert not escaped or manager.is_unit_name(f"vm-{escaped}.service") or len(escaped) > 240
    if "/" not in one + other:
        assert (escaped == systemd.escape_unit_name(other)) == (one == other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".service",
        "a",
        "../a.service",
        "a/b.service",
        "-a.service",
        "a b.service",
        "a.service\n",
        "a%i.service",
        "a" * 250 + ".service",
        "..service",
        "é.service",
    ],
)
def test_no_names(name):
    assert not manager.is_unit_name(name)
    with pytest.raises(UnitError):
        systemd.lasting_drop_in(name, "50-x.conf")


@pytest.mark.parametrize("name", ["a.service", "qemu@web1.service", r"qemu@db\x2d1.service", "a:b_c.d.scope"])
def test_names(name):
    assert manager.is_unit_name(name)
    assert systemd.lasting_drop_in(name, "x.conf") == f"/etc/systemd/system/{name}.d/x.conf"


# --- what systemctl prints ---

GUARD = "/etc/systemd/system/qemu@web1.service.d/50-vmops-saved.conf"

SHOWN = f"""\
Type=exec
MainPID=80
Result=success
ExecMainStatus=0
Id=qemu@web1.service
DropInPaths={GUARD} /run/systemd/system.control/qemu@web1.service.d/zzz.conf
LoadState=loaded
ActiveState=active
FragmentPath=/etc/systemd/system/qemu@.service
ConditionResult=yes
Transient=no
InvocationID=d4e580ba511545e98287bb6be4d2e44b
"""

NOT_FOUND = "Id=no.service\nLoadState=not-found\nActiveState=inactive\nFragmentPath=\nConditionResult=no\n"


def test_units():
    one, other = systemd.parse_units(f"{SHOWN}\n{NOT_FOUND}")
    assert (one.name, one.main_pid, one.service_type, one.load_state) == ("qemu@web1.service", 80, "exec", "loaded")
    assert (one.active_state, one.result, one.exit_status) == ("active", "success", 0)
    assert one.fragment == "/etc/systemd/system/qemu@.service"
    assert [os.path.basename(path) for path in one.drop_ins] == ["50-vmops-saved.conf", "zzz.conf"]
    assert (one.transient, one.conditions_met, one.has_job) == (False, True, False)
    assert one.invocation == "d4e580ba511545e98287bb6be4d2e44b"
    assert (other.load_state, other.main_pid, other.drop_ins, other.conditions_met) == ("not-found", 0, (), False)


@pytest.mark.parametrize(("job", "has_job"), [("", False), ("0", False), ("1234", True)])
def test_jobs(job, has_job):
    assert systemd.parse_units(f"Id=a.service\nJob={job}\n")[0].has_job == has_job


def test_paths_with_a_backslash():
    """Newer versions quote what has one, older ones print it as it is."""
    path = r"/etc/systemd/system/qemu@db\x2d1.service.d/50-vmops-saved.conf"
    for shown in (path, '"' + path.replace("\\", "\\\\") + '"'):
        (unit,) = systemd.parse_units(f"Id=x.service\nDropInPaths={shown} /run/b.conf\n")
        assert unit.drop_ins == (path, "/run/b.conf")


@pytest.mark.parametrize("text", ["", "Failed to connect to bus", "MainPID=3\n"])
def test_what_is_not_understood(text):
    with pytest.raises(UnitError):
        systemd.parse_units(text)


def test_commands_beside_the_main_process():
    """Their words may have newlines, also such that look like something else, and the next unit is another one."""
    end = "ignore_errors=no ; start_time=[Thu 2026-11-26 04:28:56 UTC] ; stop_time=[n/a] ; pid=107 ; code=exited }"
    text = (
        "Restart=on-failure\n"
        f"ExecStartPre={{ path=/bin/sh ; argv[]=/bin/sh -c a\n\nId=x ; {end}\n"
        f"ExecStartPre={{ path=/bin/true ; argv[]=true ; {end}\n"
        f"ExecStopPost={{ path=/bin/rm ; argv[]=/bin/rm -f ${{FOO}} ; {end}\n"
        "WorkingDirectory=!/tmp\nPrivateTmp=yes\nRuntimeDirectoryPreserve=no\nRuntimeDirectory=h1 h2/web1\n"
        'Environment=FOO=/a "BAR=b c"\nEnvironmentFiles=/etc/default/x (ignore_errors=yes)\n'
        "NetworkNamespacePath=/run/netns/blue\nPrivateNetwork=no\nOnSuccess=o.service\nId=a.service\n\n"
        f"ExecStartPre={{ path=/bin/false ; argv[]=/bin/false ; {end}\nRuntimeDirectory=kept\n"
        "RuntimeDirectoryPreserve=yes\nWorkingDirectory=\nPrivateTmp=no\nId=b.service\n"
    )
    one, other = systemd.parse_units(text)
    assert one.name == "a.service"
    assert [(helper.setting, helper.program, helper.text) for helper in one.helpers] == [
        ("ExecStartPre", "/bin/sh", "/bin/sh -c a\n\nId=x"),
        ("ExecStartPre", "/bin/true", "true"),
        ("ExecStopPost", "/bin/rm", "/bin/rm -f ${FOO}"),
    ]
    assert (one.restart, one.working_directory, one.private_tmp, one.private_network) == (
        *("on-failure", "/tmp"),
        *(True, True),
    )
    assert one.volatile_directories == ("/run/h1", "/run/h2/web1")
    assert one.environment == (("FOO", "/a"), ("BAR", "b c"))
    assert one.environment_files == ("/etc/default/x",)
    assert one.on_success == ("o.service",)
    assert [helper.program for helper in other.helpers] == ["/bin/false"]
    assert (other.name, other.volatile_directories, other.private_tmp, other.private_network) == (
        *("b.service", ()),
        *(False, False),
    )


ENTRY = (
    "ExecStartEx={{ path={path} ; argv[]={argv} ; flags={flags} ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ;"
    " code=(null) ; status=0/0 }}\n"
)


@pytest.mark.parametrize(
    ("flags", "prefix"),
    [
        ("", ""),
        ("privileged", "+"),
        ("no-setuid", "!"),
        ("ambient", "!!"),
        ("ignore-failure privileged", "+"),
        ("no-env-expand", ""),
    ],
)
def test_start_command(flags, prefix):
    text = ENTRY.format(path="/usr/bin/qemu", argv="/usr/bin/qemu -name a", flags=flags)
    assert systemd.parse_start_command(text) == systemd.StartCommand("/usr/bin/qemu", prefix)


def test_start_command_whose_arguments_look_like_it():
    argv = "qemu ; flags=privileged ; start_time= \n{ path=/bin/evil ; argv[]="
    text = ENTRY.format(path="/usr/bin/qemu", argv=argv, flags="")
    assert systemd.parse_start_command(text) == systemd.StartCommand("/usr/bin/qemu", "")


def test_start_command_of_systemd_before_243():
    text = "ExecStart={ path=/usr/bin/qemu ; argv[]=/usr/bin/qemu -S ; ignore_errors=no ; start_time=[n/a] ; pid=0 }"
    assert systemd.parse_start_command(text) == systemd.StartCommand("/usr/bin/qemu", "")
    assert systemd.parse_start_command("") == systemd.StartCommand("", "")


def on_the_bus(commands: list[Any], bounding: int = 2**64 - 1) -> str:
    """What busctl prints of the properties."""
    return "".join(json.dumps({"type": "x", "data": value}) + "\n" for value in (commands, bounding, 3))


def test_start_command_with_its_words():
    words = ["/usr/bin/qemu", "-name", "a b\n; flags=", "$X", "é"]
    text = on_the_bus([["/usr/bin/qemu", words, ["ignore-failure"], 0, 0, 0, 0, 0, 0, 0], ["/bin/b", [], []]], 5)
    found = systemd.parse_bus_start_command(text)
    assert found == systemd.StartCommand("/usr/bin/qemu", "", tuple(words), bounding=5, ambient=3)
    flags = ["privileged", "no-env-expand", "via-shell"]
    found = systemd.parse_bus_start_command(on_the_bus([["/usr/bin/qemu", ["q"], flags]]))
    assert (found.prefix, found.expands, found.by_shell) == ("+", False, True)
    assert systemd.parse_bus_start_command(on_the_bus([])) == systemd.StartCommand("", "")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]\n[]\n[]", '{"data":1}\n' * 3, "x\ny\nz", '{"data":[[]]}\n{"data":1}\n{"data":1}']
)
def test_start_command_that_is_none(text):
    with pytest.raises(UnitError, match="busctl printed something that is not understood"):
        systemd.parse_bus_start_command(text)


def test_unit_on_the_bus():
    assert systemd._bus_label("a-b@q\\x2dz.service") == "a_2db_40q_5cx2dz_2eservice"
    assert systemd._bus_label("1a1.service") == "_31a1_2eservice"


# --- quoting ---


def unquote(quoted: str) -> str:
    """What systemd makes of a word in double quotes (systemd.syntax(7), systemd.service(5)), for what we write."""
    assert quoted[0] == quoted[-1] == '"'
    inner = quoted[1:-1]
    assert not re.search(r'[^ -~]|"', inner)
    data = re.sub(rb"\\x([0-9a-f]{2})", lambda code: bytes([int(code.group(1), 16)]), inner.encode())
    return data.replace(b"%%", b"%").replace(b"$$", b"$").decode("utf-8", "surrogateescape")


@given(st.binary().filter(lambda data: b"\0" not in data))
def test_quoted_words(data):
    word = data.decode("utf-8", "surrogateescape")
    quoted = systemd.quote_word(word)
    # Every one of them is doubled, so that none is left that means something.
    assert re.fullmatch(r'"(?:[^%$"\\]|%%|\$\$|\\x[0-9a-f]{2})*"', quoted)
    assert unquote(quoted) == word


def test_quoted_word_with_variables():
    assert systemd.quote_word("${A}%i $$", variables=True) == '"${A}%%i $$"'


def test_escapes():
    assert systemd.escape_specifiers("%i%%") == "%%i%%%%"
    assert systemd.escape_environment("$HOME ${A}") == "$$HOME $${A}"


# --- files ---


def test_files_of_changes(tmp_path):
    path = str(tmp_path / "a.service.d" / "50-x.conf")
    assert systemd.read_drop_in(path) is None
    assert systemd.remove_drop_in(path) is False
    systemd.write_drop_in(path, "[Unit]\n")
    systemd.write_drop_in(path, "[Service]\n", mode=0o600)
    assert systemd.read_drop_in(path) == "[Service]\n"
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.listdir(os.path.dirname(path)) == ["50-x.conf"]
    assert systemd.remove_drop_in(path) is True
    assert os.listdir(tmp_path) == [], "the directory goes with its last file"


def test_the_operators_files_stay(tmp_path):
    directory = tmp_path / "a.service.d"
    directory.mkdir()
    (directory / "override.conf").touch()
    systemd.write_drop_in(str(directory / "50-x.conf"), "")
    systemd.remove_drop_in(str(directory / "50-x.conf"))
    assert os.listdir(directory) == ["override.conf"]


def test_hidden_file(tmp_path):
    path = str(tmp_path / "a.service.d" / "50-x.conf")
    for _time in range(2):
        systemd.hide_drop_in(path)
        assert os.readlink(path) == "/dev/null"
    assert systemd.remove_drop_in(path) is True


def test_leftover_and_planted_link(tmp_path):
    """What an interrupted write left is replaced, and a link in its place is not followed."""
    directory = tmp_path / "a.service.d"
    directory.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    (directory / ".50-x.conf.new").symlink_to(victim)
    systemd.write_drop_in(str(directory / "50-x.conf"), "[Unit]\n")
    assert victim.read_text() == "as it was"
    assert not (directory / "50-x.conf").is_symlink()


def test_file_that_cannot_be_written(tmp_path):
    (tmp_path / "a.service.d").touch()
    path = str(tmp_path / "a.service.d" / "50-x.conf")
    with pytest.raises(UnitError, match=re.escape(path)):
        systemd.write_drop_in(path, "")
    with pytest.raises(UnitError, match=re.escape(path)):
        systemd.hide_drop_in(path)
    assert systemd.remove_drop_in(path) is False


# --- tools ---


def test_tool():
    assert asyncio.run(systemd.run_tool("printf", "%s", "a b")) == "a b"
    assert "VMOPS" not in asyncio.run(systemd.run_tool("env"))


@pytest.mark.parametrize(
    ("command", "said"),
    [(["false"], "exit code 1"), (["ls", "/no/such/file"], "No such file"), (["no-such-tool-at-all"], "cannot be run")],
)
def test_tool_that_fails(command, said):
    with pytest.raises(UnitError, match=said):
        asyncio.run(systemd.run_tool(*command))


def test_tool_that_hangs_is_killed():
    started = time.monotonic()
    with pytest.raises(UnitError, match=r"was not done within 0\.2 seconds"):
        asyncio.run(systemd.run_tool("sleep", "123.4567", timeout=0.2))
    assert time.monotonic() - started < 20
    with pytest.raises(UnitError):
        asyncio.run(systemd.run_tool("pgrep", "-f", "sleep 123[.]4567"))


def test_cancelled_tool_is_killed():
    async def work():
        task = asyncio.ensure_future(systemd.run_tool("sleep", "123.9876"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(UnitError):
            await systemd.run_tool("pgrep", "-f", "sleep 123[.]9876")

    asyncio.run(work())


def test_tool_that_prints_without_end():
    with pytest.raises(UnitError, match="printed more than 16 MiB"):
        asyncio.run(systemd.run_tool("sh", "-c", "yes; exit 0", timeout=30))


def test_tool_that_complains_without_end():
    with pytest.raises(UnitError) as caught:
        asyncio.run(systemd.run_tool("sh", "-c", "yes | head -c 50000000 >&2; exit 1", timeout=30))
    assert len(caught.value.what) < 5000


def test_tool_that_takes_too_long():
    with pytest.raises(UnitError, match="not done within"):
        asyncio.run(systemd.run_tool("sh", "-c", "yes >&2", timeout=0.2))
