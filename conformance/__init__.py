"""The conformance corpus: cases, the assembler that makes their inputs, the runner that asks a reader."""
