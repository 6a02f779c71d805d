"""`noded history`: answers the questions of the other commands from a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from noded.cli.logs import Files, show
from noded.cli.state import Ask
from noded.history import History
from noded.logs.answers import LogDirectory
from noded.logs.query import Wanted


def of_directory(directory: Path) -> Ask:
    """Raises ClickException where nothing of a node is in it."""
    history = _history(directory)

    def ask(what: str, arguments: dict[str, Any]) -> Any:
        try:
            return history.answer(what, arguments)
        except ValueError as refusal:
            raise click.ClickException(str(refusal)) from None

    return ask


def show_logs(directory: Path, wanted: Wanted) -> None:
    """What workers have written; without anything that is wanted: which files there are."""
    found = []
    for number, logs in enumerate(_history(directory).logs):
        about = {"number": number, "name": logs.parent.name, "id": "", "ip": ""}
        found.append(LogDirectory(str(logs), str(logs), about, alive=lambda worker: False))
    show(Files(found), wanted, as_json=False)


def _history(directory: Path) -> History:
    try:
        return History(directory)
    except LookupError as error:
        raise click.ClickException(str(error)) from None
