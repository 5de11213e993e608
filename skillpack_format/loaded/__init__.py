"""Packs on a torch model that is loaded already: merged in place and taken out again, or beside the weights.

Beside ``torch_bridge`` the only modules that import torch. ``slots`` finds memory, ``changes`` decides, ``making``
computes, ``undo`` remembers; ``attaching`` and ``unmerged`` are what users call.
"""
