"""What shadowctl does: asking a server, connecting to robots, printing."""
