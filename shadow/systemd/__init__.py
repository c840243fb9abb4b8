"""The service manager and its journal: notifications, the descriptor store, bundles, the log."""
