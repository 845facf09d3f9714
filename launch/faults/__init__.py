"""Faults injected into real runs, and what became of the runs: for the fault tests and for `launch/soak.sh`."""
