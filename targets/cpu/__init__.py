"""Boards with a CPU under an operating system."""
