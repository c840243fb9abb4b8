"""The robot's role: one session with the server, its services and streams."""
