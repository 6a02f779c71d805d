"""The one error of this package."""

from __future__ import annotations


class ConfigError(Exception):
    """A setting, or a file beside the settings, cannot be used; the text says which and what to do."""
