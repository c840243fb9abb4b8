"""What a server answers besides robots: its API and metrics."""
