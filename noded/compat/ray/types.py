"""`ray.types`."""

from noded.client.refs import ObjectRef

__all__ = ["ObjectRef"]
