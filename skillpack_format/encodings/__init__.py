"""How a change is written: one file an encoding, the same name as its page in spec/encodings/.

A module here may import the rooms below (errors, dtypes, bits, fields, arithmetic) and ``_base``; never a sibling,
a codec, a container, the manifest or torch. ``catalog`` looks in; this door stays empty.
"""
