"""Benchmarks of lossd: `python -m benchmarks` runs them, `README.md` says how to read them."""
