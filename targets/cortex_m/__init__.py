"""Networks on a Cortex-M without an operating system: one static library, one C header, nothing else."""
