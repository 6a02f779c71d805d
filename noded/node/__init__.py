"""What every node does: one component per file."""
