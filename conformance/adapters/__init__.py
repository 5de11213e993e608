"""Adapters: programs that answer the protocol of PROTOCOL.md for one reader each."""
