"""The conformance corpus of the format: cases, the assembler that makes their inputs, and the runner that asks a reader."""
