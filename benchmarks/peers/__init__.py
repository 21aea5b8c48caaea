"""The same job behind other serving systems: `python -m benchmarks.peers`."""
