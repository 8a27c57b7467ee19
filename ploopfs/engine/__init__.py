"""Async file I/O on stacks of deltas: files, locks, opening and closing, reading and writing by plan."""
