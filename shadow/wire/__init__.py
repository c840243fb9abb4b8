"""What is said between server and robot, by whom and when; no I/O."""
