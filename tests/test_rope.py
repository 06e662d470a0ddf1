import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from infer_core import LinearRopeScaling, Llama3RopeScaling, Rope, YarnRopeScaling
from infer_core.rope import inverse_frequencies, rope_tables

LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("scaling", "parameters"),
    [
        pytest.param(
            LinearRopeScaling(factor=8.0), {"rope_type": "linear", "factor": 8.0}, id="linear"
        ),
        pytest.param(Llama3RopeScaling(**LLAMA3), {"rope_type": "llama3", **LLAMA3}, id="llama3"),
        pytest.param(YarnRopeScaling(**YARN), {"rope_type": "yarn", **YARN}, id="yarn"),
        pytest.param(
            YarnRopeScaling(**YARN, attention_factor=1.25, beta_fast=16.0, beta_slow=2.0),
            {
                "rope_type": "yarn",
                **YARN,
                "attention_factor": 1.25,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
            },
            id="yarn-explicit",
        ),
    ],
)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_frequencies_equal_those_of_transformers(scaling, parameters, head_dim):
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": 500000.0, **parameters},
    )
    expected, expected_factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)

    frequencies, factor = inverse_frequencies(Rope(theta=500000.0, scaling=scaling), head_dim)

    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


def test_tables_hold_one_row_a_position_and_one_column_a_rotated_pair():
    cos, sin = rope_tables(Rope(theta=10000.0), 16, 7, "cpu")

    assert cos.shape == sin.shape == (7, 8)
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos[0], torch.ones(8))
    torch.testing.assert_close(sin[0], torch.zeros(8))
    assert sin[3, 0].item() == pytest.approx(0.1411200080598672, rel=1e-6)  # sin(3)


def test_attention_factor_scales_both_tables():
    yarn = YarnRopeScaling(factor=4.0, original_max_position_embeddings=64, attention_factor=2.0)

    cos, sin = rope_tables(Rope(theta=10000.0, scaling=yarn), 8, 5, "cpu")

    torch.testing.assert_close(cos**2 + sin**2, torch.full((5, 4), 4.0))
