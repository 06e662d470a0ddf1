import json

import pytest

from infer_core import ConfigError, SamplingParams
from infer_core.generation_defaults import read_generation_defaults, with_generation_defaults


def defaults(tmp_path, **config):
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    return read_generation_defaults(tmp_path)


def test_without_the_file_everything_is_greedy(tmp_path):
    assert read_generation_defaults(tmp_path) == {}
    assert with_generation_defaults(None, {}) == SamplingParams()


def test_sampling_counts_only_beside_do_sample(tmp_path):
    assert defaults(tmp_path, temperature=0.6, top_p=0.9, repetition_penalty=1.05) == {
        "repetition_penalty": 1.05
    }


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(
            {"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}, id="llama-3.2"
        ),
        pytest.param(
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
            id="qwen3",
        ),
        pytest.param(
            {"top_k": 64, "top_p": 0.95},
            {"temperature": 1.0, "top_k": 64, "top_p": 0.95},
            id="gemma3-without-a-temperature",
        ),
        pytest.param({"top_k": 0, "top_p": None}, {"temperature": 1.0}, id="switched-off"),
        pytest.param({"temperature": 0.0, "top_k": 5}, {}, id="temperature-0-is-greedy"),
        pytest.param({"max_new_tokens": 7}, {"temperature": 1.0, "max_tokens": 7}, id="length"),
    ],
)
def test_the_published_forms_are_read(tmp_path, config, expected):
    assert defaults(tmp_path, do_sample=True, **config) == expected


def test_the_request_comes_first_then_the_model_then_greedy(tmp_path):
    model = defaults(tmp_path, do_sample=True, temperature=0.6, top_k=20)

    assert with_generation_defaults(None, model) == SamplingParams(temperature=0.6, top_k=20)
    given = SamplingParams(temperature=0.9, max_tokens=3)
    assert with_generation_defaults(given, model) == SamplingParams(
        temperature=0.9, top_k=20, max_tokens=3
    )
    assert with_generation_defaults(SamplingParams(seed=3), model).temperature == 0.6
    off = SamplingParams(temperature=1.0, top_k=None)
    assert with_generation_defaults(off, model).top_k is None


def test_greedy_on_request_drops_the_filters_of_the_model(tmp_path):
    model = defaults(tmp_path, do_sample=True, temperature=0.6, top_k=20, repetition_penalty=1.1)

    assert with_generation_defaults(SamplingParams(temperature=0), model) == SamplingParams(
        temperature=0, repetition_penalty=1.1
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_sample": True, "top_p": 3}, r"top_p is 3: .*less than or equal to 1"),
        ({"repetition_penalty": "high"}, r"repetition_penalty is 'high'"),
    ],
)
def test_values_nobody_can_sample_with_are_an_error(tmp_path, config, message):
    with pytest.raises(ConfigError, match=message):
        defaults(tmp_path, **config)
