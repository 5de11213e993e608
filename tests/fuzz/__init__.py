"""Fuzzing: targets, mutators and oracles. A sample runs here; benchmarks/reliability/fuzz.py is the long run."""
