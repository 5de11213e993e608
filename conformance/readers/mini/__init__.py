"""mini: a second reader of the SkillPack format (.skp), written from the pages of spec/ alone, to be read beside them.

| module         | page                                                        |
|----------------|-------------------------------------------------------------|
| errors.py      | errors.md, limits.md                                        |
| container.py   | container.md                                                |
| wire.py        | wire.md                                                     |
| fields.py      | manifest.md (Requirements: fields; JSON rendering)          |
| manifest.py    | manifest.md                                                 |
| storage.py     | storage.md                                                  |
| codec.py       | codecs.md                                                   |
| numerics.py    | numerics.md                                                 |
| packing.py     | packing.md                                                  |
| encodings.py   | encodings/*.md                                              |
| apply.py       | apply.md, container.md (stages 13 to 15)                    |
| safetensors.py | no page: the checkpoint files a base and a result come as   |
| layout.py      | manifest.md (Layout)                                        |
| __main__.py    | the adapter of the conformance protocol                     |
| selftest.py    | examples.md and every worked example                        |

Requirement ids stand in comments at the lines that check them.
"""
