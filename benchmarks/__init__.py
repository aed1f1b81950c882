"""Recorded measurements: each program writes one small JSON file into results/."""
