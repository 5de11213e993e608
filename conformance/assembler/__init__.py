"""The assembler: from a model of a valid pack and named changes to the bytes of a file. Standard library only."""
