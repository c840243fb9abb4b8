"""The data path: streams, their two flows, the threads that move them, and how they end."""
