"""A service under every fault that strangers can cause: `python -m faults chaos`, or `soak`."""
