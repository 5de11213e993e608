"""Importers: one file a kind of foreign delta, from its own layout to changes of named tensors.

A module may import everything below; it may not know a base checkpoint, write a file, or import another importer.
"""
