"""Fuzzing: targets, mutators and oracles. A sample runs with the tests; benchmarks/reliability/fuzz.py runs the rest."""
