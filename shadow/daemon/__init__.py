"""What both daemons share: settings, life, and what one does that cannot start."""
