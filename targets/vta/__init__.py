"""The VTA accelerator: its configuration, instruction set, simulators, checks, timing and driver."""
