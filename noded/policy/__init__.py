"""Decisions as pure functions: no loop, no clock, no I/O."""
