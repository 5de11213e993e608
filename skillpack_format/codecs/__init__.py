"""How bytes are stored: one file a codec, the same name as its section in spec/codecs.md.

A codec turns one chunk of bytes into stored bytes and back. It knows no arrays and no files.
"""
