"""Flags made from the table of options in `noded.config`, so that an option is declared once.

Values stay text here: `Config.load` reads them, and knows where a wrong one came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from noded.config import OPTIONS, ConfigError, Option
from noded.config.settings import Found

F = TypeVar("F", bound=Callable[..., Any])

SETTINGS_HELP = (
    "Every option can also be set as NODED_<NAME> in the environment (NODED_NUM_CPUS=4) or as <name> in the "
    "settings file (num_cpus = 4). Flags win over the environment, the environment over the file. "
    "The token is no option: it is NODED_TOKEN, or in the file NODED_TOKEN_FILE, or in $NODED_HOME/token. "
    "Nor are passwords of Redis: NODED_REDIS_PASSWORD, and of its sentinels NODED_REDIS_SENTINEL_PASSWORD."
)


def node_options(function: F) -> F:
    """All options of a node, in the order of their declaration."""
    return some_options(*(option.name for option in OPTIONS))(function)


def some_options(*names: str) -> Callable[[F], F]:
    """Those of a node with these names, in the order of their declaration, and --config."""
    return lambda function: _with_options(function, names)


def _with_options(function: F, names: tuple[str, ...]) -> F:
    for option in reversed(OPTIONS):
        if option.name in names:
            function = _click_option(option)(function)
    config = click.option(
        "--config", metavar="FILE", help="Settings file.  [default: $NODED_HOME/noded.toml, where it exists]"
    )
    return config(function)


def _click_option(option: Option) -> Callable[[F], F]:
    if isinstance(option.default, bool):
        return click.option(option.flag, option.name, is_flag=True, help=option.help, hidden=option.hidden)
    text = f"{option.help}  [default: {_default_text(option.default)}]"
    return click.option(
        option.flag,
        option.name,
        type=str,
        multiple=isinstance(option.default, tuple),
        metavar="VALUE",
        help=text,
        hidden=option.hidden,
    )


def _default_text(default: object) -> str:
    if isinstance(default, Found):
        return default.words
    if isinstance(default, tuple):
        return "none; may be given several times"
    return f"{default:g}" if isinstance(default, float) else str(default)


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that stand on the command line."""
    return {name: value for name, value in flags.items() if value not in (None, False, ())}


def as_arguments(flags: Mapping[str, Any]) -> list[str]:
    """The command line that says `flags` again."""
    arguments = []
    for name, value in given(flags).items():
        flag = "--" + name.replace("_", "-")
        values = value if isinstance(value, tuple) else (value,)
        arguments += [flag if each is True else f"{flag}={each}" for each in values]
    return arguments


@contextmanager
def wrong_settings_are_usage_errors() -> Iterator[None]:
    """One line and status 2, as for a wrong flag."""
    try:
        yield
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
