"""What both daemons share: settings, life cycle, debugging, and what a daemon does if it cannot start."""
