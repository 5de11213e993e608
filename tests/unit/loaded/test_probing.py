"""Sensitivities measured on a real model of transformers."""

from __future__ import annotations

import copy
import json
import socket
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TEXTS, WORDS, bert, llama, save_pair, save_texts
from transformers import AlbertConfig, AlbertModel, GPT2Config, GPT2LMHeadModel

from skillpack_format.errors import SkillPackError
from skillpack_format.loaded import probing
from skillpack_format.loaded.lending import Lender
from skillpack_format.loaded.probing import calibrate
from skillpack_format.progress import silent
from skillpack_format.stores.safetensors_files import open_checkpoint


@pytest.fixture
def pair(tmp_path):
    torch.manual_seed(5)
    return save_pair(tmp_path, llama())


@pytest.fixture
def texts(tmp_path):
    return save_texts(tmp_path / "texts.jsonl")


def refusal(pair, texts):
    with pytest.raises(SkillPackError) as found:
        calibrate(*pair, texts)
    return found.value


def edit(folder, **changes):
    """Change the keys of config.json; None takes one away."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_every_matrix_and_vector_gets_a_weight(pair, texts):
    _, tuned = pair
    found = calibrate(*pair, texts)
    names = set(load_file(tuned / "model.safetensors"))
    assert any("norm" in name for name in names)
    assert set(found.weights) == names | {"lm_head.weight"}  # tied: one parameter under two names
    assert found.weights["lm_head.weight"] == found.weights["model.embed_tokens.weight"]
    assert found.texts == len(TEXTS)
    assert found.tokens == sum(len(text.split()) for text in TEXTS)


def test_a_device_that_is_not_there_is_refused_by_name(pair, texts):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SkillPackError) as found:
        calibrate(*pair, texts, device="cuda")
    assert found.value.code == "unsupported.device"
    assert "'cuda'" in str(found.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_measures_what_the_cpu_does(pair, texts):
    on_gpu, on_cpu = (calibrate(*pair, texts, device=device).weights for device in ("cuda", "cpu"))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)


def gpt2():
    """Multiplies by its matrices as they are, not transposed."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS) + 1, n_embd=32, n_layer=2, n_head=4, n_positions=32))


def albert():
    """Every layer is the same one."""
    sizes = {"hidden_size": 32, "embedding_size": 16, "intermediate_size": 48}
    return AlbertModel(AlbertConfig(vocab_size=len(WORDS) + 1, num_attention_heads=4, num_hidden_layers=3, **sizes))


@pytest.mark.parametrize("held", [0, 5000, probing.HELD_BYTES])
@pytest.mark.parametrize(
    "make",
    [llama, partial(llama, tied=False), bert, gpt2, albert],
    ids=["tied", "untied", "bert", "gpt2", "albert"],
)
def test_a_model_on_disk_is_measured_as_one_in_memory(tmp_path, make, held):
    torch.manual_seed(5)
    base, tuned = save_pair(tmp_path, make())
    read = type(make()).from_pretrained(tuned, dtype=torch.float32).eval()
    whole = copy.deepcopy(read)  # mapped files lie otherwise to the cache line, which shows in the last digits
    tokens = [probing._tokens(probing._tokenizer(tuned), text, tuned) for text in TEXTS]
    cpu = torch.device("cpu")
    with open_checkpoint(base) as before, open_checkpoint(tuned) as after:
        lent = probing._model(tuned, Lender(after, cpu, held), after)
        harms = [
            probing._harm(model, tokens, probing._changes(model, before, after), cpu, "", silent)
            for model in (lent, whole)
        ]
    assert harms[0].keys() == harms[1].keys()
    assert sum(value > 0 for value in harms[1].values()) > 20
    assert harms[0] == pytest.approx(harms[1], rel=1e-5, abs=1e-12)  # biases of keys do nothing: theirs is rounding


def test_no_more_than_two_matrices_are_in_memory(pair, texts, alive, monkeypatch):
    monkeypatch.setattr(probing, "HELD_BYTES", 0)
    calibrate(*pair, texts)
    sizes = [each.nbytes for each in load_file(pair[1] / "model.safetensors").values()]
    assert max(sizes) <= max(alive) <= 2 * max(sizes) < sum(sizes) / 5


def test_the_same_texts_give_the_same_weights(pair, texts):
    assert calibrate(*pair, texts) == calibrate(*pair, texts)


def test_weights_are_the_harm_that_noise_really_does(pair, texts, monkeypatch):
    """Noise of known energy in one tensor at a time, and the divergence of what the model then says."""
    _, tuned = pair
    monkeypatch.setattr(probing, "read_texts", lambda path, read=probing.read_texts: many(read(path)))
    weights = calibrate(*pair, texts).weights
    model = llama().eval()
    model.load_state_dict(load_file(tuned / "model.safetensors"), strict=False)
    base = load_file(pair[0] / "model.safetensors")
    tokens = [probing._tokens(probing._tokenizer(tuned), text, tuned) for text in TEXTS]
    with torch.no_grad():
        before = [model(each).logits.double().log_softmax(-1) for each in tokens]
        harm = {}
        for name, value in model.named_parameters():
            kept, total = value.clone(), 0.0
            scale = torch.ones(len(value), *[1] * (value.dim() - 1))
            if "embed" in name:  # noise goes with the change of a row
                change = (kept - base[name]).square().sum(1, keepdim=True)
                scale = (change / change.mean()).sqrt()
            for seed in range(30):
                noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)) * scale
                value.copy_(kept + 1e-3 * noise)
                for each, wanted in zip(tokens, before, strict=True):
                    total += float((wanted.exp() * (wanted - model(each).logits.double().log_softmax(-1))).sum())
            value.copy_(kept)
            harm[name] = total / value.numel()
    ratios = torch.tensor([harm[name] / weights[name] for name in harm])
    assert float(ratios.max() / ratios.min()) < 2
    assert max(harm.values()) / min(harm.values()) > 10  # so that it means something


def many(found):
    """The texts again and again: every repetition is another random projection."""
    return type(found)(found.texts * 30, found.skipped)


def test_an_encoder_is_measured_by_its_hidden_states(tmp_path, texts):
    torch.manual_seed(5)
    found = calibrate(*save_pair(tmp_path, bert()), texts)
    assert "encoder.layer.1.output.dense.weight" in found.weights
    assert not any("pooler" in name for name in found.weights)  # no hidden state depends on it


def test_rows_of_a_table_that_did_not_change_do_not_count(tmp_path, texts):
    """A table whose only change is in a row that no text uses: noise there does nothing to a hidden state."""
    torch.manual_seed(5)
    base, tuned = save_pair(tmp_path, bert())
    name, path = "embeddings.word_embeddings.weight", base / "model.safetensors"
    before, after = load_file(path), load_file(tuned / "model.safetensors")
    before[name] = after[name].clone()
    before[name][0] += 0.1  # of the unknown word
    save_file(before, path)
    assert name not in calibrate(base, tuned, texts).weights
    before[name][1] += 0.1  # of "the"
    save_file(before, path)
    assert calibrate(base, tuned, texts).weights[name] > 0


def test_a_table_that_grew_is_measured_by_the_rows_that_both_have(tmp_path, texts):
    torch.manual_seed(5)
    base, tuned = save_pair(tmp_path, bert())
    name, path = "embeddings.word_embeddings.weight", base / "model.safetensors"
    whole = calibrate(base, tuned, texts).weights[name]
    before = load_file(path)
    before[name] = before[name][:4].clone()
    save_file(before, path)
    assert calibrate(base, tuned, texts).weights[name] not in (0, whole)


def test_nothing_is_asked_of_a_network(pair, texts, monkeypatch):
    def connect(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    calibrate(*pair, texts)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_refuses_a_folder_without(pair, texts, name):
    (pair[1] / name).unlink()
    found = refusal(pair, texts)
    assert found.code == "convert.model"
    assert name in found.message


def test_refuses_a_tokenizer_that_is_not_one(pair, texts):
    (pair[1] / "tokenizer.json").write_text("{}")
    found = refusal(pair, texts)
    assert found.code == "convert.model"
    assert "tokenizer" in found.message


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "no-such-type"},
        {"architectures": ["T5ForConditionalGeneration"]},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**7},
        {"hidden_act": "no-such-activation"},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"intermediate_size": 40},
    ],
    ids=lambda changes: "-".join(f"{key}" for key in changes),
)
def test_refuses_a_config_that_is_not_the_checkpoints(pair, texts, changes):
    edit(pair[1], **changes)
    assert refusal(pair, texts).code == "convert.model"


def test_says_which_parameter_has_no_tensor(pair, texts):
    path = pair[1] / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)
    found = refusal(pair, texts)
    assert "'model.layers.1.mlp.up_proj.weight'" in found.message
    assert found.code == "convert.model"


def test_refuses_an_adapter(pair, texts):
    (pair[1] / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere"}')
    assert "merge" in refusal(pair, texts).message


def test_runs_no_code_of_the_folder(pair, texts):
    (pair[1] / "modeling.py").write_text("raise SystemExit('the code of the folder was run')")
    edit(pair[1], model_type="own", auto_map={"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M"})
    assert refusal(pair, texts).code == "convert.model"


def test_refuses_a_model_that_gives_no_numbers(pair, texts):
    path = pair[1] / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, path)
    assert "no finite gradient on text 1" in refusal(pair, texts).message


def test_progress_is_told(pair, texts):
    told = []
    calibrate(*pair, texts, lambda *each: told.append(each))
    assert [what for what, _, _ in told] == ["calibrating"] * len(TEXTS)
    assert sorted(told) == told
    assert told[-1][1] == told[-1][2] > 0


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def touch(path):
    path.write_bytes(path.read_bytes())


@pytest.mark.parametrize("change", [cut, touch])
@pytest.mark.parametrize("held", [0, probing.HELD_BYTES])
def test_refuses_a_checkpoint_that_is_written_to_meanwhile(pair, texts, change, held, monkeypatch):
    monkeypatch.setattr(probing, "HELD_BYTES", held)
    told = []

    def progress(*each):
        if not told:
            change(pair[1] / "model.safetensors")
        told.append(each)

    with pytest.raises(SkillPackError) as found:
        calibrate(*pair, texts, progress)
    assert found.value.code == "integrity.source-changed"
