"""The four verbs. Modules are nouns, functions are verbs; they take paths and return reports, and never print."""
