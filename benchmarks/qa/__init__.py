"""Annotation QA against known annotation errors, and against cleanlab on the same data."""
