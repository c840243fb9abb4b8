"""What shadowctl does: querying a server, connecting to robots, printing."""
