"""The service manager and its journal: notify, the descriptor store, what is handed over, the log."""
