"""A tree of values that behaves as sysfs: nodes, attribute tables, and what an open attribute file does."""
