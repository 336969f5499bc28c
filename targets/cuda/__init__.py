"""Networks for NVIDIA GPUs, compiled and checked on computers that have none."""
