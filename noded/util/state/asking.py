"""How the functions of this package ask, and which errors become which exceptions."""

from __future__ import annotations

from typing import Any

from noded.client.asking import Refused, Unanswered
from noded.client.asking import ask as ask_cluster
from noded.util.state.exception import RayStateApiException, ServerUnavailable, WrongQuestion


def ask(what: str, arguments: dict[str, Any], address: str | None, timeout: float) -> Any:
    """``timeout``: seconds. Raises RayStateApiException."""
    try:
        return ask_cluster(what, arguments, address=address, timeout=timeout)
    except Refused as refusal:
        raise WrongQuestion(str(refusal)) from None
    except Unanswered as error:
        raise ServerUnavailable(str(error)) from None


def refuse_gaps(problems: list[str]) -> None:
    """Raises RayStateApiException where not all have answered."""
    if problems:
        raise RayStateApiException(
            f"not all of the cluster has answered: {'; '.join(problems)}. With raise_on_missing_output=False there is "
            "what the others have"
        )
