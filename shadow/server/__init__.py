"""The server's role: robots, their sessions, visitors and streams."""
