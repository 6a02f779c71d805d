"""What only the head does: the durable tables of the cluster. Never imports ``node``."""
