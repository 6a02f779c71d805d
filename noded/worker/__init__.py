"""The worker process: runs the tasks of one job, or one actor."""
