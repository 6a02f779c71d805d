"""`ray.runtime_context`."""

from noded.client.api import get_runtime_context
from noded.client.context import RuntimeContext

__all__ = ["RuntimeContext", "get_runtime_context"]
