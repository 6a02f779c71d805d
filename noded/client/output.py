"""Worker output at the driver: ``(name pid=…) line``."""

from __future__ import annotations

import sys
from typing import Any

from noded.wire import messages as m


def print_lines(message: Any, payload: Any) -> None:
    """Handles LogLines, ignores other messages."""
    if type(message) is not m.LogLines:
        return
    for name, pid, is_error, lines in message.batches:
        stream = sys.stderr if is_error else sys.stdout
        prefix = f"({name} pid={pid}) " if name else f"(pid={pid}) "
        try:
            stream.write("".join(f"{prefix}{line}\n" for line in lines))
            stream.flush()
        except (OSError, ValueError):  # the user's stream is closed
            return
