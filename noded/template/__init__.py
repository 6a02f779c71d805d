"""The template: a warmed process that workers are forked from. Everything is in `__main__`."""
