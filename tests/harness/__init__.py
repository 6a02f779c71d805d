"""What tests share: waiting for a condition, checks for leaks, and real nodes."""
