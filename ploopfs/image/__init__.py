"""The ploop image format, pure: bytes and integers in, values and plans out."""
