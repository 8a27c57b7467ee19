"""`ploopfs rehearse`: plays a scenario of faults and recovery on real devices, and says whether it went as expected."""
