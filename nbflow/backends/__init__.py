"""Implementations of the ops, a folder a backend; `base` says what a backend is."""
