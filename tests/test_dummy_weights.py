import subprocess
import sys

import pytest
import torch

from infer_core import (
    AttentionLayout,
    BlockLayout,
    KVCachePolicy,
    ModelShape,
    ModelSpec,
    NormFlavour,
    Rope,
)
from infer_core.dummy_weights import BRANCH_GAIN
from infer_core.parameters import model_parameters
from infer_core.weights import dummy_weights

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def toy_spec(
    *,
    num_layers=2,
    hidden_size=64,
    tied=False,
    weight_offset=0.0,
    placement="pre",
    embedding_scale=1.0,
):
    attention = AttentionLayout(
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        softmax_scale=0.5,
        rope=Rope(theta=1e4),
        qk_norm="head",
        qkv_bias=True,
        out_bias=True,
    )
    return ModelSpec(
        architecture="ToyForCausalLM",
        plugin="toy",
        distribution=None,
        plugin_version=None,
        shape=ModelShape(
            num_layers=num_layers,
            hidden_size=hidden_size,
            intermediate_size=200,
            vocab_size=100,
            max_context=64,
            dtype="float32",
            tied_embeddings=tied,
        ),
        attention=(attention,) * num_layers,
        norm=NormFlavour(eps=1e-6, placement=placement, weight_offset=weight_offset),
        kv_cache=(KVCachePolicy(),) * num_layers,
        block=BlockLayout(activation="silu", mlp_bias=True, embedding_scale=embedding_scale),
        weights=(),
    )


def dummies(spec, *, dtype=torch.float32, seed=0, device="cpu"):
    return dummy_weights(spec, device=device, dtype=dtype, seed=seed)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_parameter_is_there_in_its_shape(tied, dtype):
    spec = toy_spec(tied=tied)

    weights = dummies(spec, dtype=dtype)

    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        name: parameter.shape for name, parameter in model_parameters(spec).items()
    }
    assert all(weight.dtype == dtype and weight.is_contiguous() for weight in weights.values())


def test_the_same_seed_gives_the_same_weights_and_another_gives_others():
    spec = toy_spec()

    first, again, other = dummies(spec), dummies(spec), dummies(spec, seed=1)

    for name, weight in first.items():
        assert torch.equal(weight, again[name]), name
        assert not torch.equal(weight, other[name]), name


def test_weights_are_the_same_in_another_process():
    script = (
        "import sys, torch; from infer_core import ModelSpec;"
        "from infer_core.weights import dummy_weights;"
        "w = dummy_weights(ModelSpec.model_validate_json(sys.argv[1]), device='cpu',"
        " dtype=torch.float32);"
        "print(sum(x.double().sum().item() for x in w.values()))"
    )
    spec = toy_spec()

    run = subprocess.run(
        [sys.executable, "-c", script, spec.model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
    )

    assert float(run.stdout) == sum(w.double().sum().item() for w in dummies(spec).values())


def test_a_parameter_does_not_depend_on_which_others_are_drawn():
    tied, untied = dummies(toy_spec(tied=True)), dummies(toy_spec(tied=False))

    assert untied.keys() - tied.keys() == {"lm_head"}
    del tied["final_norm"]  # it is scaled for the head
    assert all(torch.equal(weight, untied[name]) for name, weight in tied.items())


def test_no_two_parameters_of_one_shape_are_equal():
    weights = dummies(toy_spec())

    assert not torch.equal(weights["layers.0.qkv"], weights["layers.1.qkv"])
    assert not torch.equal(weights["layers.0.q_norm"], weights["layers.0.k_norm"])


def test_lower_precision_holds_the_rounded_weights_of_float32():
    spec = toy_spec()

    exact, rounded = dummies(spec), dummies(spec, dtype=torch.bfloat16)

    assert all(torch.equal(weight.bfloat16(), rounded[name]) for name, weight in exact.items())


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)

    dummies(toy_spec())

    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("hidden_size", [64, 1152])
def test_a_matrix_keeps_the_variance_of_a_normalised_input(hidden_size):
    weights = dummies(toy_spec(hidden_size=hidden_size))
    x = torch.randn(256, hidden_size, generator=torch.Generator().manual_seed(1))

    for name in ("layers.0.qkv", "layers.1.gate_up", "lm_head"):
        # 100 or more rows of 256 inputs: the standard deviation is known to well under 10 %
        assert (x @ weights[name].T).std().item() == pytest.approx(1.0, rel=0.1), name


@pytest.mark.parametrize("weight_offset", [0.0, 1.0])
def test_norms_multiply_by_about_one_whatever_the_offset(weight_offset):
    weights = dummies(toy_spec(weight_offset=weight_offset))

    norms = {n: w for n, w in weights.items() if n.startswith("layers") and n.endswith("norm")}

    assert len(norms) == 2 * 4
    for name, weight in norms.items():
        factor = weight + weight_offset
        assert factor.mean().item() == pytest.approx(1.0, abs=0.1), name  # 5 sigma of 32 draws
        assert 0.02 < factor.std().item() < 0.2, name


@pytest.mark.parametrize("placement", ["pre", "sandwich"])
def test_all_layers_together_add_the_same_whatever_the_depth(placement):
    def branch_rms(num_layers):
        weights = dummies(toy_spec(num_layers=num_layers, placement=placement, weight_offset=1.0))
        x = torch.randn(256, 200, generator=torch.Generator().manual_seed(1))
        y = x @ weights["layers.0.mlp_out"].T
        if placement == "sandwich":
            y = y / y.square().mean(-1, keepdim=True).sqrt()
            y = y * (weights["layers.0.mlp_post_norm"] + 1.0)
        return y.square().mean().sqrt().item()

    for num_layers in (1, 8):
        expected = BRANCH_GAIN / (2 * num_layers) ** 0.5
        assert branch_rms(num_layers) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("weight_offset", [0.0, 1.0])
@pytest.mark.parametrize("embedding_scale", [1.0, 8.0])
def test_the_residual_stream_and_the_logits_start_and_end_at_unit_variance(
    tied, weight_offset, embedding_scale
):
    spec = toy_spec(tied=tied, weight_offset=weight_offset, embedding_scale=embedding_scale)

    weights = dummies(spec)

    hidden = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
    hidden = hidden * (weights["final_norm"] + weight_offset)
    logits = hidden @ weights["embed" if tied else "lm_head"].T
    assert (weights["embed"] * embedding_scale).std().item() == pytest.approx(1.0, rel=0.1)
    assert logits.std().item() == pytest.approx(1.0, rel=0.1)


def test_a_tied_head_does_not_find_the_embedding_of_its_own_input():
    weights = dummies(toy_spec(tied=True, hidden_size=1024))

    logits = (weights["embed"] * weights["final_norm"]) @ weights["embed"].T

    # unit variance: without the random signs the diagonal would be sqrt(1024) = 32
    assert logits.diag().abs().mean() < 3


def test_biases_are_small_and_not_zero():
    weights = dummies(toy_spec())

    biases = {name: weight for name, weight in weights.items() if name.endswith("_bias")}

    assert len(biases) == 2 * 4
    for name, bias in biases.items():
        assert 0.05 < bias.std().item() < 0.2, name


@needs_gpu
def test_dummy_weights_are_deterministic_on_a_gpu_too():
    first, again = (dummies(toy_spec(), device="cuda", dtype=torch.bfloat16) for _ in range(2))

    assert all(weight.is_cuda and torch.equal(weight, again[n]) for n, weight in first.items())
