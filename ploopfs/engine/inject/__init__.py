"""Faults at the storage of a device, made at run time: a filter around its files, rules, and their grammar."""
