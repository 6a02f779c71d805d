"""The client library: in drivers and, beneath the executor, in workers. Never imports the daemon's side."""
