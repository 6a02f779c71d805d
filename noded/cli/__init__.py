"""The command line. `app` declares the commands; what one of them needs is imported when it runs."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from noded.cli.app import command

    command(prog_name="noded")
