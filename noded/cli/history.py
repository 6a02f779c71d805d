"""`noded history`: answers the questions of the other commands from a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from noded.cli.state import Ask


def of_directory(directory: Path) -> Ask:
    """Raises ClickException where nothing of a node is in it."""
    from noded.history import History

    try:
        history = History(directory)
    except LookupError as error:
        raise click.ClickException(str(error)) from None

    def ask(what: str, arguments: dict[str, Any]) -> Any:
        try:
            return history.answer(what, arguments)
        except ValueError as refusal:
            raise click.ClickException(str(refusal)) from None

    return ask
