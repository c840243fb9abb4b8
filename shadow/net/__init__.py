"""Sockets: addresses, names, TCP, unix sockets, accepting."""
