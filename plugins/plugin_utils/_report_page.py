# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of a maintenance as one self-contained HTML page, by a Jinja2 template."""

from __future__ import annotations

import functools
import traceback
import typing as t
from pathlib import Path

from ansible_collections.vmops.qemu.plugins.module_utils._errors import one_line
from ansible_collections.vmops.qemu.plugins.plugin_utils._report import FORMATS, checked_report
from jinja2 import ChoiceLoader, FileSystemLoader, PrefixLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment

#: The collection's own template.
OWN = Path(__file__).resolve().parents[2] / "roles" / "host_maintenance" / "templates" / "report.html.j2"


class ReportTemplateError(Exception):
    """A template is broken, or is not there."""


def report_page(data: t.Mapping[str, t.Any], template: str = "") -> str:
    """The page.

    :param data: what is known, which hosts have told; it is checked here.
    :param template: the path of a template of the user's own; empty for the collection's.
    :raises ReportTemplateError: that cannot be used; with its file and line.
    """
    path = Path(template).expanduser() if template else OWN
    report = checked_report(data)
    try:
        return _environment(path.parent).get_template(path.name).render(report=report)
    # A template is a program of others, and fails as it likes.
    except Exception as error:
        where = _place(error, (path.parent, OWN.parent)) or str(path)
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        raise ReportTemplateError(
            one_line(f"The template of the report cannot be used: {where}: {kind}{str(error)[:1000]}")
        ) from error


@functools.lru_cache(maxsize=4)
def _environment(directory: Path) -> SandboxedEnvironment:
    """What renders the templates of a directory; it keeps them until their files change."""
    environment = SandboxedEnvironment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=ChoiceLoader([FileSystemLoader(directory), PrefixLoader({"vmops.qemu": FileSystemLoader(OWN.parent)})]),
    )
    environment.filters.update(FORMATS)
    return environment


def _place(error: Exception, directories: tuple[Path, ...]) -> str:
    """File and line of a template where an error was found, or nothing where it is in none."""
    if isinstance(error, TemplateSyntaxError):
        return f"{error.filename}, line {error.lineno}"
    # Jinja2 makes a traceback tell of the templates, not of the Python that it has made of them.
    frames = traceback.extract_tb(error.__traceback__)
    found = [frame for frame in frames if any(Path(frame.filename).is_relative_to(place) for place in directories)]
    return f"{found[-1].filename}, line {found[-1].lineno}" if found else ""
