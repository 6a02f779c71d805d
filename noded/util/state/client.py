"""The same questions as methods of a client, for programs that are written for Ray's."""

from __future__ import annotations

from typing import Any

from noded.util.state.common import (
    GetApiOptions,
    ListApiOptions,
    StateResource,
    SummaryApiOptions,
    SummaryResource,
)
from noded.util.state.listing import StateList, get_kind, list_kind
from noded.util.state.summaries import summarize_kind


class StateApiClient:
    """``address``: of a cluster, as ``noded.init`` takes it. Cookies and headers are for Ray's HTTP."""

    def __init__(
        self,
        address: str | None = None,
        cookies: dict[str, Any] | str | None = None,
        headers: dict[str, Any] | None = None,
    ):
        self._address = address

    def list(
        self,
        resource: StateResource,
        options: ListApiOptions,
        raise_on_missing_output: bool,
        _explain: bool = False,
    ) -> StateList[Any]:
        """Raises RayStateApiException."""
        return list_kind(
            StateResource(resource).value,
            self._address,
            options.filters,
            options.limit,
            options.timeout,
            options.detail,
            raise_on_missing_output,
            "",
        )

    def get(self, resource: StateResource, id: str, options: GetApiOptions | None, _explain: bool = False) -> Any:
        """A record or None; of objects a list. Raises RayStateApiException."""
        resource = StateResource(resource)
        found = get_kind(resource.value, id, self._address, (options or GetApiOptions()).timeout)
        if resource is StateResource.OBJECTS:
            return found
        return found[0] if found else None

    def summary(
        self,
        resource: SummaryResource,
        *,
        options: SummaryApiOptions,
        raise_on_missing_output: bool,
        _explain: bool = False,
    ) -> dict[str, dict[str, Any]]:
        """Raises RayStateApiException."""
        return summarize_kind(SummaryResource(resource).value, self._address, options.timeout, raise_on_missing_output)
