"""Fakes that ship with the project and pass the same conformance suite as the real thing."""
