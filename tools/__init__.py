"""The terminal: argv in, text and exit codes out. It uses the library's public modules and no tensors."""
