"""What single spec values mean to the decoder, each against the same model said another way."""

import pytest
import torch
from toy_specs import toy_spec

from infer_core import Engine
from infer_core.decode_chain import supports
from infer_core.kernels.rms_norm import rms_norm_ref
from infer_core.parameters import model_parameters
from infer_core.weights import dummy_weights

IDS = list(range(5, 25))


def engine(parameters=None, **spec):
    spec = toy_spec(**spec)
    return Engine(
        spec, parameters or dummy_weights(spec, device="cpu", dtype=torch.float32, seed=1)
    )


def scores(engine):
    return engine.score(IDS, prompt_len=12)


def test_the_residual_scale_multiplies_what_blocks_add():
    scaled = engine(residual_scale=0.25)
    folded = {
        name: weight * 0.25 if name.endswith(("attn_out", "mlp_out")) else weight
        for name, weight in scaled.parameters.items()
    }

    torch.testing.assert_close(scores(scaled), scores(engine(folded)))


def test_the_logits_scale_multiplies_before_the_soft_cap():
    plain = scores(engine(dict(engine().parameters)))
    scaled = scores(engine(dict(engine().parameters), logits_scale=0.5, final_logit_softcap=3.0))

    torch.testing.assert_close(scaled, 3 * torch.tanh(plain * 0.5 / 3))


def test_post_norm_reads_the_residual_as_it_is_and_normalises_what_is_added():
    post = engine(placement="post", num_layers=1)
    layer = {name.removeprefix("layers.0."): p for name, p in post.parameters.items()}
    token = torch.tensor([5])

    def norm(x, name):
        return rms_norm_ref(x, layer[name], 1e-6)

    # over one token attention gives back its value
    x = layer["embed"][token]
    value = (x @ layer["qkv"].T)[:, -24:].view(1, 2, 1, 12).expand(1, 2, 3, 12).reshape(1, 72)
    x = x + norm(value @ layer["attn_out"].T, "attn_post_norm")
    gate, up = (x @ layer["gate_up"].T).chunk(2, dim=-1)
    x = x + norm((torch.nn.functional.silu(gate) * up) @ layer["mlp_out"].T, "mlp_post_norm")
    expected = norm(x, "final_norm") @ layer["embed"].T

    torch.testing.assert_close(post.score([5], prompt_len=1), expected)


def test_post_norm_has_no_parameters_for_norms_before_a_block():
    names = model_parameters(toy_spec(placement="post")).keys()

    assert {name for name in names if name.endswith("norm") and name.startswith("layers.0")} == {
        "layers.0.attn_post_norm",
        "layers.0.mlp_post_norm",
    }


def test_a_projection_norm_takes_all_heads_together():
    spec = toy_spec(qk_norm="projection")
    parameters = model_parameters(spec)
    # weights only scale: with all heads of q alike, a norm per head and one over all are the same
    projection = engine(qk_norm="projection", num_layers=1)
    weights = dict(projection.parameters)
    weights["layers.0.qkv"] = weights["layers.0.qkv"].clone()
    q, k = weights["layers.0.qkv"][:72].view(6, 12, 40), weights["layers.0.qkv"][72:96]
    q[1:] = q[0]
    k[12:] = k[:12]
    per_head = {
        **weights,
        "layers.0.q_norm": torch.full((12,), 1.3),
        "layers.0.k_norm": torch.full((12,), 0.7),
    }
    weights["layers.0.q_norm"] = torch.full((72,), 1.3)
    weights["layers.0.k_norm"] = torch.full((24,), 0.7)

    assert parameters["layers.0.q_norm"].shape == (72,)
    assert parameters["layers.0.k_norm"].shape == (24,)
    alike = scores(engine(weights, qk_norm="projection", num_layers=1))
    torch.testing.assert_close(alike, scores(engine(per_head, qk_norm="head", num_layers=1)))
    with pytest.raises(AssertionError):  # unlike heads tell the two apart
        torch.testing.assert_close(
            scores(projection),
            scores(
                engine(
                    {
                        **projection.parameters,
                        "layers.0.q_norm": torch.ones(12),
                        "layers.0.k_norm": torch.ones(12),
                    },
                    qk_norm="head",
                    num_layers=1,
                )
            ),
        )


def test_the_fused_decode_kernels_refuse_what_they_do_not_know():
    assert supports(toy_spec(sandwich=True, qk_norm="head"))
    assert not supports(toy_spec(residual_scale=0.5))
    assert not engine().unfused
    assert engine(logits_scale=0.5).unfused


def test_what_a_fused_path_must_know_of_is_named():
    assert toy_spec(sandwich=True, qk_norm="head", biases=True).uncommon == ()
    assert toy_spec(
        placement="post", qk_norm="projection", residual_scale=0.5, logits_scale=2.0
    ).uncommon == ("qk_norm=projection", "placement=post", "residual_scale=0.5", "logits_scale=2.0")
