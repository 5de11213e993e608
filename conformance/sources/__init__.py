"""The readable sources of all cases, one module an area."""
