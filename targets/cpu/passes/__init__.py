"""Graph passes for CPUs alone."""
