"""The protocol between server and robot: who may say what, and when; no I/O."""
