"""Measures Shadow beside what people would use instead. ``python -m bench --help`` tells how."""
