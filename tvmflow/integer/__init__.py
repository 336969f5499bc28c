"""Quantised networks: exact integer arithmetic, how a float network becomes one, and how one becomes a Program."""
