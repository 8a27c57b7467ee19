"""The tests, as a package, so that they may import what they share (`tests.realparts`) by one name from anywhere."""
