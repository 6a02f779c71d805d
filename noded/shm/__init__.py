"""The shared memory of a node: the arena's layout, seen by clients and daemon alike."""
