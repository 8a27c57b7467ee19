"""A ploop block layer in user space: real image stacks served as files, with the kernel's standby mode."""

__version__ = "0.1.0"
