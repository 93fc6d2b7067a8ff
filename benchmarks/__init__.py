"""Benchmarks: ratios between things run side by side. `python -m benchmarks [NAME ...]`."""
