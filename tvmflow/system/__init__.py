"""This computer: its processes, files, compilers and signals, and what is read from and written to them."""
