"""Boards that are somewhere else: carried to, run on and measured over SSH or TVM's RPC."""
