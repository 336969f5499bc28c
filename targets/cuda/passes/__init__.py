"""Graph passes for GPUs alone."""
