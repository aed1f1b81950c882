"""The tests; they share fixtures (`conftest.py`) and helpers."""
