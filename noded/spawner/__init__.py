"""The spawner: the small parent of all workers, which outlives the daemon. Read `protocol`, then `core`."""
