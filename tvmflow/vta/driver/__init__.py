"""The board's side of VTA: drivers in Python and C, and a fake device on which they run without a board."""
