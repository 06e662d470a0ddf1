"""The escape hatch: a plugin's own decoder class, and the parameters it changes."""

import pytest
import torch
from toy_specs import toy_spec

from infer_core import CustomDecoder, Decoder, Engine, Piece, PluginContractError, PluginError
from infer_core.decoder import decoder_class
from infer_core.kv_cache import KVCache
from infer_core.ops import REFERENCE
from infer_core.parameters import model_parameters
from infer_core.weights import dummy_weights

HERE = __name__


class Louder(Decoder):
    """Doubles every logit."""

    def forward(self, *args, **kwargs):
        return 2 * super().forward(*args, **kwargs)


class NoDecoder:
    pass


def custom_spec(target, **changes):
    return toy_spec(decoder=CustomDecoder(target=target, **changes))


@pytest.fixture
def module(monkeypatch):
    """This test module under a name that can be imported."""
    import sys

    monkeypatch.setitem(sys.modules, "custom_decoders", sys.modules[HERE])
    return "custom_decoders"


def test_the_named_class_runs_the_model_and_the_engine_says_so(module):
    spec = custom_spec(f"{module}:Louder")
    parameters = dummy_weights(spec, device="cpu", dtype=torch.float32)
    plain = Engine(toy_spec(), parameters)
    louder = Engine(spec, parameters)

    assert torch.equal(
        louder.score([1, 2, 3], prompt_len=2), 2 * plain.score([1, 2, 3], prompt_len=2)
    )
    assert louder.unfused
    assert not plain.unfused
    assert spec.uncommon == ("decoder=custom_decoders:Louder",)


def test_a_custom_decoder_adds_and_omits_parameters(module):
    spec = custom_spec(
        f"{module}:Louder",
        adds={"layers.{layer}.gate": (40,), "temperature": (1,)},
        omits={"layers.{layer}.mlp_norm"},
    )

    parameters = model_parameters(spec)

    before = model_parameters(toy_spec()).keys()
    mlp_norms = {f"layers.{layer}.mlp_norm" for layer in range(3)}
    gates = {f"layers.{layer}.gate" for layer in range(3)}
    assert parameters.keys() == (before - mlp_norms) | gates | {"temperature"}
    assert parameters["layers.2.gate"].shape == (40,)


@pytest.mark.parametrize(
    "wrong", [{"omits": {"layers.{layer}.nothing"}}, {"adds": {"final_norm": (4,)}}]
)
def test_parameters_that_cannot_be_changed_so_are_named(module, wrong):
    with pytest.raises(PluginContractError, match=r"layers\.0\.nothing|final_norm"):
        model_parameters(custom_spec(f"{module}:Louder", **wrong))


def test_a_class_that_is_no_decoder_is_refused(module):
    for name in ("NoDecoder", "Missing"):
        with pytest.raises(PluginContractError, match="expected a subclass"):
            decoder_class(custom_spec(f"{module}:{name}"))


def test_a_module_that_cannot_be_imported_is_the_plugins_fault():
    with pytest.raises(PluginError, match=r"plugin 'toy'.*no_such_module.*infer_block_layout"):
        decoder_class(custom_spec("no_such_module:Class"))


@pytest.mark.parametrize("target", ["Class", "module:", "os.system('x'):y", "a b:C"])
def test_a_target_that_names_no_class_is_refused(target):
    with pytest.raises(ValueError, match="target"):
        CustomDecoder(target=target)


@torch.inference_mode()
def test_the_attention_that_a_custom_decoder_calls_gives_every_row():
    spec = toy_spec()
    parameters = dummy_weights(spec, device="cpu", dtype=torch.float32)
    decoder = Decoder(spec, parameters, context=16, ops=REFERENCE)
    cache = KVCache(spec, context=16, device="cpu", dtype=torch.float32)
    start, row = torch.zeros(1, dtype=torch.int32), torch.tensor([4], dtype=torch.int32)
    normed = torch.randn(5, spec.shape.hidden_size)

    attended = decoder.attention(2, normed, Piece(cache, start, None, True, True, row))

    assert attended.shape == normed.shape
