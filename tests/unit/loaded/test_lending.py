"""Parameters that are on disk, and whatever may be done with one."""

from __future__ import annotations

import copy
import json
import threading

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from skillpack_format.errors import SkillPackError
from skillpack_format.loaded.lending import Lender, Lent, lend, read_tensor, shapes_only
from skillpack_format.stores.safetensors_files import open_checkpoint

CPU = torch.device("cpu")


class Parent(torch.nn.Module):
    """Uses its child's weight beside the child, a weight twice, and a table as a head."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(7, 6)
        self.first = torch.nn.Linear(6, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.scale = torch.nn.Parameter(torch.rand(2, 6))
        self.head = torch.nn.Linear(6, 7, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("angles", torch.arange(6).float(), persistent=False)

    def forward(self, tokens):
        value = self.first(self.table(tokens)) + self.angles
        value = self.norm(functional.linear(value, self.first.weight.t()).tanh())
        upper, lower = self.scale.unbind(0)
        return self.head(value * upper + value.relu() * lower.expand(len(tokens), 6))


@pytest.fixture
def parent():
    torch.manual_seed(1)
    return Parent()


@pytest.fixture
def checkpoint(tmp_path, parent):
    state = {name: value.detach().clone() for name, value in parent.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as opened:
        yield opened


@pytest.fixture(params=[0, 200, 1 << 20], ids=lambda held: f"held{held}")
def held(request):
    return request.param


@pytest.fixture
def lent(parent, checkpoint, held):
    """The same model, its parameters lent."""
    made = copy.deepcopy(parent).to("meta")
    made.angles = parent.angles
    names = {name: name for name, _ in parent.named_parameters()} | {"head.weight": "table.weight"}
    lend(made, names, Lender(checkpoint, CPU, held))
    return made


def gradients(model):
    output = model(torch.tensor([1, 5, 1]))
    output.square().sum().backward()
    return output.detach(), {name: value.grad for name, value in model.named_parameters()}


def test_outputs_and_gradients_are_those_of_a_model_in_memory(parent, lent):
    (wanted, due), (output, found) = gradients(parent), gradients(lent)
    assert torch.equal(output, wanted)
    assert found.keys() == due.keys()
    for name, gradient in due.items():
        assert torch.equal(found[name], gradient), name


def test_what_is_tied_stays_one_parameter(lent):
    assert lent.head.weight is lent.table.weight
    assert "head.weight" not in dict(lent.named_parameters())


def test_only_what_is_used_is_in_memory(lent, held, alive):
    gradients(lent)
    sizes = [each.numel() * 4 for each in lent.parameters()]
    assert max(alive) <= held + max(sizes) + lent.first.bias.nbytes  # which an operation has beside its weight
    assert (max(alive) == sum(sizes)) == (held >= sum(sizes))


@pytest.mark.parametrize("held", [0])
def test_autograd_keeps_no_values(lent, held, alive):
    output = lent(torch.tensor([1, 5, 1]))
    del alive[:]
    lent.scale.read()
    assert alive == [lent.scale.numel() * 4]  # of the whole graph nothing else
    output.sum().backward()


@pytest.mark.parametrize(
    "view",
    [
        lambda value: value.t(),
        lambda value: value[1:3, ::2],
        lambda value: value.t()[2],
        lambda value: value.reshape(3, 12).permute(1, 0),
        lambda value: value.split(4)[1],
        lambda value: value.chunk(3, dim=1)[2],
        lambda value: value.unbind(1)[3],
        lambda value: value[None].expand(2, 6, 6),
        lambda value: value.diagonal(),
        lambda value: value.detach().unfold(0, 2, 2),
    ],
    ids=range(10),
)
def test_a_view_needs_no_values_and_has_the_right_ones(parent, lent, view, alive):
    found = view(lent.first.weight)
    wanted = view(parent.first.weight)
    assert isinstance(found, Lent)
    assert found.shape == wanted.shape
    assert found.stride() == wanted.stride()
    assert alive == []
    assert torch.equal(found + 0, wanted)


@pytest.mark.parametrize(
    "write",
    [
        lambda value: value.zero_(),
        lambda value: value.t().mul_(2),
        lambda value: torch.add(torch.ones(6, 6), 1, out=value),
        lambda value: value.copy_(torch.ones(6, 6)),
    ],
    ids=range(4),
)
def test_refuses_to_write_to_what_is_on_disk(lent, write):
    with torch.no_grad(), pytest.raises(NotImplementedError, match=r"writes to the parameter 'first\.weight'"):
        write(lent.first.weight)


def test_refuses_what_is_no_view_of_its_numbers(lent):
    with pytest.raises(NotImplementedError, match=r"no view of the numbers of the parameter 'first\.weight'"):
        lent.first.weight.view(torch.int32)


def test_there_is_no_memory_to_reach_around_it(lent):
    with pytest.raises(RuntimeError, match="numpy"):
        lent.first.weight.detach().numpy()


def test_a_value_may_be_added_to(parent, lent):
    assert torch.equal(torch.ones(6).add_(lent.first.bias), torch.ones(6).add_(parent.first.bias))


def test_values_are_widened(tmp_path):
    stored = torch.tensor([[1.5, -2.25]], dtype=torch.bfloat16)
    save_file({"x": stored}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        found = Lender(checkpoint, CPU, 0).read("x")
    assert found.dtype == torch.float32
    assert torch.equal(found, stored.float())


def test_an_empty_parameter_is_there(tmp_path):
    save_file({"weight": torch.zeros(0, 3)}, tmp_path / "model.safetensors")
    model = torch.nn.ParameterDict({"weight": torch.zeros(0, 3)})
    with open_checkpoint(tmp_path) as checkpoint:
        lend(model, {"weight": "weight"}, Lender(checkpoint, CPU, 0))
        assert functional.linear(torch.ones(2, 3), model["weight"]).shape == (2, 0)


def test_a_recurrent_layer_finds_its_weights(tmp_path):
    """It keeps a list of them of its own."""
    torch.manual_seed(1)
    made = torch.nn.LSTM(3, 4)
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    given = torch.rand(2, 3)
    wanted, _ = made(given)
    with open_checkpoint(tmp_path) as checkpoint:
        with shapes_only():
            found = torch.nn.LSTM(3, 4)
        lend(found, {name: name for name in made.state_dict()}, Lender(checkpoint, CPU, 0))
        assert torch.equal(found(given)[0], wanted)


def test_a_dtype_that_torch_has_not_is_refused(tmp_path):
    header = json.dumps({"x": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(SkillPackError) as found:
        read_tensor(checkpoint, "x")
    assert found.value.code == "convert.model"
    assert "'x'" in str(found.value)


def test_shapes_only_is_for_parameters_of_this_thread():
    others = []
    with shapes_only():
        own = Parent()
        thread = threading.Thread(target=lambda: others.append(Parent()))
        thread.start()
        thread.join()
    assert all(each.is_meta for each in own.parameters())
    assert own.head.weight is own.table.weight
    assert torch.equal(own.angles, torch.arange(6).float())
    assert not any(each.is_meta for each in [*others[0].parameters(), *Parent().parameters()])
