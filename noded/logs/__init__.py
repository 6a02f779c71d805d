"""The output files of workers and daemons: what they are made of, and how they are read, by their node or without."""
