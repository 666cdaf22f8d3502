"""Every call of `epplan` that the pages show is one that `epplan` understands."""

from __future__ import annotations

import click
import pytest

from app.main import cli
from tests.docs.blocks import PAGES, ROOT, commands, epplan_arguments

CALLS = [
    pytest.param(arguments, id=f"{page.relative_to(ROOT)}: epplan {' '.join(arguments)}"[:110])
    for page in PAGES
    for command in commands(page)
    for arguments in epplan_arguments(command)
]


def test_the_readme_shows_the_main_path():
    shown = {words[0] for command in commands(ROOT / "README.md") for words in epplan_arguments(command) if words}
    assert {"topology", "plan", "evaluate", "run", "validate", "export"} <= shown


@pytest.mark.parametrize("arguments", CALLS)
def test_a_call_is_understood(arguments):
    """Commands and options exist, and values are of their kind; files need not be there."""
    command, context = cli, click.Context(cli)
    while isinstance(command, click.Group):
        name, arguments = arguments[0], arguments[1:]
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name!r}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    parser = command.make_parser(context)
    given, rest, _ = parser.parse_args(args=list(arguments))
    assert not rest
    for option in command.params:
        if option.name in given and isinstance(option, click.Option) and not isinstance(option.type, click.Path):
            option.type_cast_value(context, given[option.name])
