"""A checkpoint of generated weights with the shapes of TinyLlama 1.1B, and packs for it of about a given size.

Nothing is trained: what a pack costs to apply depends on shapes and codes, not on what the weights mean. Every linear
layer is changed by integer slices such as the standard recipe makes, a few tensors are changed exactly, and the
embedding and the head stay. Everything is written tensor by tensor, so any number of layers fits in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skillpack_format.arithmetic import NUMPY_BENCH
from skillpack_format.catalog import encoding_named
from skillpack_format.classes import class_of, module_of
from skillpack_format.coding import CHUNK_BYTES
from skillpack_format.contents import StoredContent, store_encoded, target_of
from skillpack_format.digest import TensorIdentity, checkpoint_digest, sha256, sha256_of
from skillpack_format.dtypes import Array, dtype_named, float32_to_bits
from skillpack_format.encodings import lowrank, sparse, ulp
from skillpack_format.encodings._base import Encoded
from skillpack_format.listing import Listing, base_ref, kind_of
from skillpack_format.making import Change, Start, make
from skillpack_format.manifest import Component, Entry, Manifest, ResultRef
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.safetensors_files import open_checkpoint
from skillpack_format.stores.shards import ShardWriter, encode_index
from skillpack_format.writer import CODEC, PackWriter

HIDDEN: Final = 2048
INNER: Final = 5632
KEYS: Final = 256
VOCABULARY: Final = 32000
LAYERS: Final = 22  # 1.1 billion parameters
SHARD_BYTES: Final = 800_000_000
SPREAD: Final = 0.02  # standard deviation of a weight
MOVED: Final = 0.02  # of that, how far a fine-tune moves it
BF16: Final = dtype_named("BF16")
# What the standard recipe makes of a fine-tune: one slice an octave of singular values, each twice as many components
# as the one before with codes half as large. Share of the components, standard deviation of the codes.
OCTAVES: Final = ((0.03, 6.0), (0.07, 3.0), (0.2, 1.5), (0.7, 0.8))


@dataclass(frozen=True, slots=True)
class Slice:
    scales: NDArray[np.float32]
    u: NDArray[np.int8]
    v: NDArray[np.int8]


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, by the names that transformers gives them."""
    found: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}"
        found |= {f"{at}.self_attn.{each}_proj.weight": (HIDDEN, HIDDEN) for each in "qo"}
        found |= {f"{at}.self_attn.{each}_proj.weight": (KEYS, HIDDEN) for each in "kv"}
        found |= {f"{at}.mlp.{each}_proj.weight": (INNER, HIDDEN) for each in ("gate", "up")}
        found |= {f"{at}.mlp.down_proj.weight": (HIDDEN, INNER)}
        found |= {f"{at}.{each}_layernorm.weight": (HIDDEN,) for each in ("input", "post_attention")}
    return found


def write_checkpoint(folder: Path, layers: int) -> None:
    """The base, in shards of about SHARD_BYTES, with an index and the configuration that transformers asks for."""
    folder.mkdir(parents=True)
    specs = [TensorSpec(name, BF16, shape) for name, shape in shapes(layers).items()]
    shards: list[list[TensorSpec]] = [[]]
    for spec in specs:
        if sum(each.nbytes for each in shards[-1]) + spec.nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(spec)
    random = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    for index, members in enumerate(shards):
        name = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        with ShardWriter(folder / name, members, {}) as writer:
            for spec in writer.tensors:
                writer.write(spec.name, _weights(random, spec.shape).data)
                weight_map[spec.name] = name
    index = encode_index(weight_map, sum(spec.nbytes for spec in specs), {})
    (folder / "model.safetensors.index.json").write_bytes(index)
    (folder / "config.json").write_text(json.dumps(_configuration(layers), indent=2))


def _weights(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Normal numbers in BF16; the weights of a norm lie around 1."""
    values = random.standard_normal(shape, np.float32) * np.float32(SPREAD)
    if len(shape) == 1:
        values += np.float32(1)
    return float32_to_bits(values, BF16).reshape(-1).view(np.uint8)


def _configuration(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def write_pack(base: Path, pack: Path, components: int) -> None:
    """A pack for ``base`` whose slices have ``components`` components in all for every linear layer.

    Of every layer the second norm is changed by ``ulp`` and one row in a hundred of the keys by ``sparse``.
    """
    random = np.random.default_rng(1)
    listing: Listing = {}
    entries: list[Entry] = []
    with open_checkpoint(base) as checkpoint, PackWriter(pack, chunk_bytes=CHUNK_BYTES) as writer:
        for name, spec in checkpoint.specs.items():
            data = checkpoint.read(name)
            listing[name] = TensorIdentity(kind_of(spec), sha256(data))
            bits = np.frombuffer(data, BF16.bit_pattern)
            encoded = list(_change(random, name, spec, bits, components))
            if encoded:
                stored = [store_encoded(each, target_of(kind_of(spec)), CODEC, CHUNK_BYTES) for each in encoded]
                for each in stored:
                    writer.add(each)
                entries.append(_entry(name, listing[name], encoded, stored, bits))
        result = dict(listing) | {entry.name: entry.result for entry in entries if entry.result}
        manifest = Manifest(
            base=base_ref(listing),
            result=ResultRef(len(result), checkpoint_digest(result.items())),
            tensors=tuple(entries),
            files=(),
            metadata={},
        )
        writer.seal(manifest)


def _change(
    random: np.random.Generator, name: str, spec: TensorSpec, bits: Array, components: int
) -> Iterator[Encoded]:
    """What the pack does to one tensor; nothing for those it leaves alone."""
    if name.endswith("_proj.weight"):
        m, n = spec.shape
        yield lowrank.packed(list(_slices(random, m, n, components)), "lanes")
        if name.endswith("k_proj.weight"):
            positions = np.sort(random.choice(m * n, m * n // 100, replace=False)).astype(np.int64)
            yield sparse.placed(positions, bits[positions] ^ BF16.bit_pattern.type(1), BF16, m * n, "replace")
    elif name.endswith("post_attention_layernorm.weight"):
        yield ulp.difference(bits, bits ^ BF16.bit_pattern.type(1), BF16, "magnitude")


def _slices(random: np.random.Generator, m: int, n: int, components: int) -> Iterator[Slice]:
    """Slices of random codes whose sum moves every weight by about MOVED of its spread."""
    components = min(components, min(m, n) // 2)
    ranks = [max(1, round(share * components)) for share, _ in OCTAVES]
    energy = sum(rank * spread**4 for rank, (_, spread) in zip(ranks, OCTAVES, strict=True))
    scale = np.float32(MOVED * SPREAD / np.sqrt(energy))
    for rank, (_, spread) in zip(ranks, OCTAVES, strict=True):
        u, v = (np.rint(random.standard_normal((1, rank, dim)) * spread).astype(np.int8) for dim in (m, n))
        yield Slice(np.array([scale * np.float32(random.uniform(0.9, 1.1))]), u, v)


def _entry(name: str, base: TensorIdentity, encoded: list[Encoded], stored: list[StoredContent], bits: Array) -> Entry:
    """The entry of a changed tensor, its digest that of what the library makes of it."""
    additive: list[Any] = []
    rewriting: Any = None
    target = target_of(base.kind)
    for each in encoded:
        encoding = encoding_named(each.encoding, name)
        params = encoding.parse(each.params, target, name)
        parts = {spec.name: each.parts[spec.name].reshape(-1) for spec in encoding.parts(params, target)}
        opened = encoding.open(params, target, parts, name)
        if encoding.adds(params):
            additive.append(opened)
        else:
            rewriting = opened
    made = make(Start(bits, BF16), base.kind, Change(additive, rewriting), NUMPY_BENCH, name)
    return Entry(
        name=name,
        tensor_class=class_of(name),
        module=module_of(name),
        base=base,
        result=TensorIdentity(base.kind, sha256_of(made)),
        components=tuple(Component(e.encoding, e.params, s.sha256) for e, s in zip(encoded, stored, strict=True)),
    )
