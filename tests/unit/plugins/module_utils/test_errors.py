# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _errors
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    CommandError,
    ConflictError,
    ImageError,
    ImageFormatError,
    ImageSpaceError,
    MonitorError,
    RequestError,
    VmopsError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[4]
SENTENCE = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1).map(lambda text: f"{text} it is")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"what": "It broke"}, "It broke."),
        ({"what": "It broke."}, "It broke."),
        ({"what": "It broke", "cure": "Mend it"}, "It broke. Mend it."),
        ({"what": "It broke", "situation": Situation("web1 runs")}, "It broke. web1 runs."),
        (
            {"what": "It broke", "cure": " Mend it. ", "situation": Situation("web1 runs.")},
            "It broke. web1 runs. Mend it.",
        ),
    ],
)
def test_a_message_is_what_happened_then_the_guest_then_the_cure(parts, message):
    assert str(VmopsError(**parts)) == message


@given(SENTENCE, SENTENCE, SENTENCE)
def test_each_part_is_a_sentence_of_the_message(what, guest_state, cure):
    message = str(VmopsError(what, situation=Situation(guest_state), cure=cure))
    assert message == f"{what}. {guest_state}. {cure}."


def test_the_situation_may_be_filled_in_later():
    error = RequestError("No", cure="Ask again")
    error.situation = Situation("web1 runs")
    assert str(error) == "No. web1 runs. Ask again."


def test_the_result_of_a_failed_module():
    situation = Situation("web1 runs", "running", "kept")
    assert ConflictError("No", cure="Ask again", situation=situation).as_result() == {
        "msg": "No. web1 runs. Ask again.",
        "error": "ConflictError",
        "guest_state": "web1 runs",
        "cure": "Ask again",
        "guest": "running",
        "image": {"state": "kept"},
    }
    assert VmopsError("No").as_result() == {
        "msg": "No.",
        "error": "VmopsError",
        "guest_state": "",
        "cure": "",
        "guest": "unknown",
        "image": {"state": "unknown"},
    }


def test_an_image_error_names_the_file():
    error = ImageSpaceError("/srv/a.save", "the disk is full", cure="Make room")
    assert (error.path, error.problem, error.what) == (
        "/srv/a.save",
        "the disk is full",
        "/srv/a.save: the disk is full",
    )
    assert str(error) == "/srv/a.save: the disk is full. Make room."
    assert isinstance(error, ImageError)


def test_a_command_error_keeps_what_qemu_said():
    error = CommandError("migrate", "GenericError", "There's a migration process in progress")
    assert error.what == "QEMU refused migrate: There's a migration process in progress"
    assert error.cure
    assert (error.command, error.error_class) == ("migrate", "GenericError")
    assert error.description == "There's a migration process in progress"
    assert isinstance(error, MonitorError)


def test_all_errors_are_of_one_tree_and_explained():
    kinds = [(name, kind) for name, kind in inspect.getmembers(_errors, inspect.isclass) if kind is not Situation]
    for name, kind in kinds:
        assert issubclass(kind, VmopsError), name
        assert kind.__doc__, name
        assert name.endswith("Error"), name


def test_the_tree_is_drawn_as_it_is():
    """Each class below its base, in the order of the file."""
    drawn: dict[str, str] = {}
    above: list[str] = []
    for indent, name in re.findall(r"^    ( *)(\w+Error)\b", _errors.__doc__ or "", re.MULTILINE):
        above = [*above[: len(indent) // 4], name]
        drawn[name] = above[-2] if len(above) > 1 else "Exception"
    kinds = [kind for kind in vars(_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in kinds}


def raised_without_a_cure() -> Iterator[tuple[str, str]]:
    """Where an error is made that does not say what to do, and its kind."""
    kinds = {name for name, kind in vars(_errors).items() if inspect.isclass(kind) and issubclass(kind, VmopsError)}
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds):
                continue
            if not any(keyword.arg == "cure" for keyword in node.keywords):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.func.id


def test_every_error_says_what_to_do():
    """By itself, or by its kind."""
    found = list(raised_without_a_cure())
    assert len(found) > 50
    own = {"CommandError"}  # it says so for whoever makes it
    assert [(place, kind) for place, kind in found if kind not in own and not getattr(_errors, kind).usual_cure] == []


def test_the_cure_of_its_kind_is_told_where_there_is_no_better_one():
    error = ImageFormatError("/srv/a.save", "it is cut off")
    assert str(error) == "/srv/a.save: it is cut off."
    told = error.as_result()
    assert told["cure"] == ImageFormatError.usual_cure
    assert told["msg"] == f"/srv/a.save: it is cut off. {told['cure']}."
    assert ImageFormatError("/srv/a.save", "it is cut off", cure="Fetch it").as_result()["cure"] == "Fetch it"
