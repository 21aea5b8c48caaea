"""Hostile bodies for every decoder: `python -m fuzz`; a short run of it is part of the tests."""
