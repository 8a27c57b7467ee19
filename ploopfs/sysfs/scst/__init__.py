"""`sys/kernel/scst_tgt/` and `sys/module/`: the target subsystem as its own tools expect it. Knows no rule of it."""
