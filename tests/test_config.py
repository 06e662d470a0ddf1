"""Reading config.json, its dialects, RoPE and the field audit; no model family needed."""

import json

import pytest
from pydantic import ValidationError

from infer_core import (
    ConfigError,
    ConfigFields,
    LinearRopeScaling,
    Llama3RopeScaling,
    Rope,
    YarnRopeScaling,
    activation,
    layer_windows,
    rope_from_parameters,
)
from infer_core.config import audit, normalise, read_config, with_defaults

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


# read_config


def test_a_config_is_read_as_it_stands(tmp_path):
    raw = {"rope_theta": 1e6, "head_dim": None}
    (tmp_path / "config.json").write_text(json.dumps(raw))

    assert read_config(tmp_path) == raw


def test_a_missing_config_names_the_path(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        read_config(tmp_path)


def test_an_unreadable_config_says_why(tmp_path):
    (tmp_path / "config.json").mkdir()

    with pytest.raises(ConfigError, match=r"config\.json cannot be read \(Is a directory\)"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"], ids=["empty", "cut", "bytes"])
def test_a_config_that_is_not_json_is_an_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "kind"), [("[1]", "array"), ("null", "null"), ("3", "number"), ('"a"', "string")]
)
def test_a_config_that_is_not_an_object_is_an_error(tmp_path, content, kind):
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(ConfigError, match=f"holds a JSON {kind}, expected an object"):
        read_config(tmp_path)


# normalise


def test_normalising_leaves_its_input_alone():
    raw = {"rope_theta": 1e4, "text_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}}
    before = json.dumps(raw)

    normalise(raw)

    assert json.dumps(raw) == before


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param({"rope_theta": 1e4, "rope_local_base_freq": 1e3}, id="nested-rope"),
        pytest.param({"rope_theta": 1e4, "rope_scaling": LLAMA3}, id="flat-rope"),
        pytest.param({"text_config": {"hidden_size": 8}, "eos_token_id": [1, 2]}, id="lifted"),
        pytest.param({"num_hidden_layers": 3, "sliding_window_pattern": 2}, id="pattern"),
    ],
)
def test_normalising_twice_is_normalising_once(raw):
    assert normalise(normalise(raw)) == normalise(raw)


def test_null_fields_are_left_out():
    assert "head_dim" not in normalise({"head_dim": None})


def test_a_missing_field_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match="states no 'rms_norm_eps'"):
        normalise({})["rms_norm_eps"]


@pytest.mark.parametrize(
    ("raw", "eos", "bos"),
    [
        pytest.param({"eos_token_id": [5, 7], "bos_token_id": 0}, (5, 7), 0, id="list"),
        pytest.param({"eos_token_id": 5}, (5,), None, id="one"),
        pytest.param({"eos_token_id": None, "bos_token_id": None}, (), None, id="null"),
    ],
)
def test_end_tokens_become_a_tuple(raw, eos, bos):
    config = normalise(raw)

    assert (config["eos_token_ids"], config["bos_token_id"]) == (eos, bos)
    assert "eos_token_id" not in config


@pytest.mark.parametrize("value", ["</s>", -1, 2.0, True, [1, "2"], [1, None], {"a": 1}], ids=repr)
def test_an_end_token_that_is_no_token_id_is_an_error(value):
    with pytest.raises(ConfigError, match=r"eos_token_id is .* expected a token id or a list"):
        normalise({"eos_token_id": value})


def test_a_start_token_that_is_no_token_id_is_an_error():
    with pytest.raises(ConfigError, match=r"bos_token_id is \[1\], expected a token id"):
        normalise({"bos_token_id": [1]})


@pytest.mark.parametrize(
    "raw",
    [{"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}, {"torch_dtype": "torch.bfloat16"}],
    ids=repr,
)
def test_dtype_has_one_spelling(raw):
    config = normalise(raw)

    assert config["dtype"] == "bfloat16"
    assert "torch_dtype" not in config


def test_contradictory_dtypes_are_an_error():
    with pytest.raises(ConfigError, match="contradicts itself: dtype is 'bfloat16', but torch_dty"):
        normalise({"dtype": "bfloat16", "torch_dtype": "float32"})


@pytest.mark.parametrize("value", ["32", 32.0, 0, -1, True, [32]], ids=repr)
def test_a_size_that_is_no_positive_integer_is_an_error(value):
    with pytest.raises(ConfigError, match=r"num_attention_heads is .*expected a positive integer"):
        normalise({"num_attention_heads": value})


# text_config


def test_the_text_models_fields_are_lifted():
    config = normalise({"model_type": "outer", "text_config": {"hidden_size": 8}})

    assert config["hidden_size"] == 8
    assert "text_config" not in config


def test_what_concerns_the_whole_model_stays_in_force():
    raw = {
        "architectures": ["Both"],
        "model_type": "both",
        "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "both_text",
            "eos_token_id": 1,
            "bos_token_id": 2,
            "dtype": "bfloat16",
        },
    }

    config = normalise(raw)

    assert config["architectures"] == ["Both"]
    assert config["model_type"] == "both"
    assert config["eos_token_ids"] == (1, 106)
    assert config["bos_token_id"] == 2  # stated inside only
    assert config["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("outer", "inner", "field"),
    [
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"torch_dtype": "bfloat16"}, {"torch_dtype": "float32"}, "torch_dtype"),
        ({"torch_dtype": "bfloat16"}, {"dtype": "float32"}, "dtype"),
        ({"hidden_size": 8}, {"hidden_size": 16}, "hidden_size"),
    ],
    ids=repr,
)
def test_a_contradiction_between_the_two_levels_is_an_error(outer, inner, field):
    with pytest.raises(ConfigError, match=f"contradicts itself: {field} is "):
        normalise({**outer, "text_config": inner})


@pytest.mark.parametrize(("value", "kind"), [([], "array"), ("x", "string"), (True, "boolean")])
def test_a_text_config_that_is_no_object_is_an_error(value, kind):
    with pytest.raises(ConfigError, match=f"text_config is a JSON {kind}, expected an object"):
        normalise({"text_config": value})


# layer types


def test_every_nth_layer_of_a_pattern_is_full():
    config = normalise({"num_hidden_layers": 5, "sliding_window_pattern": 2})

    assert [kind[0] for kind in config["layer_types"]] == ["s", "f", "s", "f", "s"]
    assert "sliding_window_pattern" not in config


def test_stated_layer_types_win_over_a_writers_bookkeeping():
    raw = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "_sliding_window_pattern": 6}

    assert normalise(raw)["layer_types"] == ["full_attention"]


def test_bookkeeping_alone_is_a_pattern():
    raw = {"num_hidden_layers": 2, "_sliding_window_pattern": 2}

    assert normalise(raw)["layer_types"] == ["sliding_attention", "full_attention"]


def test_layer_types_against_the_pattern_are_an_error():
    raw = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "sliding_window_pattern": 6}

    with pytest.raises(ConfigError, match="contradicts itself: layer_types"):
        normalise(raw)


@pytest.mark.parametrize("pattern", [0, -2, "LLG", 2.0, True], ids=repr)
def test_a_pattern_that_is_no_positive_integer_is_an_error(pattern):
    with pytest.raises(ConfigError, match=r"sliding_window_pattern is .*positive integer"):
        normalise({"num_hidden_layers": 2, "sliding_window_pattern": pattern})


def test_a_pattern_without_a_number_of_layers_is_an_error():
    with pytest.raises(ConfigError, match="sliding_window_pattern without num_hidden_layers"):
        normalise({"sliding_window_pattern": 2})


def test_layer_types_that_are_no_array_are_an_error():
    with pytest.raises(ConfigError, match="layer_types is a JSON string, expected an array"):
        normalise({"layer_types": "full_attention"})


def test_sliding_layers_have_the_window_and_full_ones_none():
    config = normalise(
        {
            "num_hidden_layers": 2,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 16,
        }
    )

    assert layer_windows(config) == (None, 16)


def test_a_sliding_layer_whose_window_is_null_is_an_error():
    config = normalise(
        {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "sliding_window": None}
    )

    with pytest.raises(ConfigError, match="but sliding_window is null"):
        layer_windows(config)


def test_too_few_layer_types_are_an_error():
    config = normalise({"num_hidden_layers": 3, "layer_types": ["full_attention"]})

    with pytest.raises(ConfigError, match="lists 1 layer_types, but num_hidden_layers is 3"):
        layer_windows(config)


def test_an_unknown_layer_type_is_an_error():
    config = normalise({"num_hidden_layers": 1, "layer_types": ["chunked_attention"]})

    with pytest.raises(ConfigError, match="layer_types holds 'chunked_attention'; known are"):
        layer_windows(config)


def test_a_sliding_layer_without_a_window_is_an_error():
    config = normalise({"num_hidden_layers": 1, "layer_types": ["sliding_attention"]})

    with pytest.raises(ConfigError, match="states no 'sliding_window'"):
        layer_windows(config)


# RoPE dialects


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(
            {"rope_theta": 5e5, "rope_scaling": None},
            {"rope_type": "default", "rope_theta": 5e5},
            id="theta-alone",
        ),
        pytest.param(
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
            {**LLAMA3, "rope_theta": 5e5},
            id="older-scaling",
        ),
        pytest.param(
            {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
            {**LLAMA3, "rope_theta": 5e5},
            id="newer",
        ),
        pytest.param(
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            id="older-type",
        ),
        pytest.param(
            {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 5e5},
            {"rope_type": "default", "rope_theta": 5e5},
            id="both-agree",
        ),
        pytest.param(
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None},
            {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            id="older-two-thetas",
        ),
        pytest.param(
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            id="scaling-is-global-only",
        ),
        pytest.param(
            {
                "rope_parameters": {
                    "full_attention": {"type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_theta": 1e4, "factor": None},
                }
            },
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            id="newer-nested",
        ),
        pytest.param(
            {"rope_parameters": {"full_attention": {}}, "partial_rotary_factor": 0.5},
            {"full_attention": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            id="fraction-of-every-layer",
        ),
    ],
)
def test_every_rope_dialect_becomes_one(raw, expected):
    config = normalise(raw)

    assert config["rope_parameters"] == expected
    assert not config.keys() & {"rope_theta", "rope_scaling", "rope_local_base_freq"}


def test_a_config_without_rope_has_none():
    assert "rope_parameters" not in normalise({"rope_scaling": None})


@pytest.mark.parametrize(
    "raw",
    [
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}},
        {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear"}, "rope_parameters": {"rope_type": "default"}},
        {"rope_local_base_freq": 1e4, "rope_parameters": {"sliding_attention": {"rope_theta": 1}}},
        {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0}},
    ],
    ids=["theta", "type", "scaling", "local-theta", "fraction"],
)
def test_contradictory_rope_fields_are_an_error(raw):
    with pytest.raises(ConfigError, match="contradicts itself"):
        normalise(raw)


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_rope_fields_that_are_no_object_are_an_error(name):
    with pytest.raises(ConfigError, match=f"{name} is 'linear', expected an object"):
        normalise({name: "linear"})


# rope_from_parameters


@pytest.mark.parametrize(
    ("parameters", "scaling"),
    [
        ({}, None),
        ({"rope_type": "default"}, None),
        ({"rope_type": "linear", "factor": 8}, LinearRopeScaling(factor=8.0)),
        (
            LLAMA3,
            Llama3RopeScaling(
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
        ),
        (
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
                "beta_fast": 16,
                "truncate": False,
            },
            YarnRopeScaling(
                factor=4.0,
                original_max_position_embeddings=32768,
                beta_fast=16.0,
                truncate=False,
            ),
        ),
    ],
    ids=["nothing-said", "default", "linear", "llama3", "yarn"],
)
def test_each_supported_rope_type_becomes_a_rope(parameters, scaling):
    rope = rope_from_parameters({"rope_theta": 1e6, **parameters})

    assert rope == Rope(theta=1e6, scaling=scaling)


def test_a_rotary_fraction_is_kept():
    rope = rope_from_parameters({"rope_theta": 1e4, "partial_rotary_factor": 0.25})

    assert rope.rotary_fraction == 0.25


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "proportional", 3, ["linear"]])
def test_an_unsupported_rope_type_is_refused_by_name(rope_type):
    with pytest.raises(ConfigError) as error:
        rope_from_parameters({"rope_type": rope_type, "rope_theta": 1e4})

    assert f"rope_type {rope_type!r} is not supported; supported: default" in str(error.value)


def test_a_missing_theta_is_an_error_and_not_a_silent_10000():
    with pytest.raises(ConfigError, match="states no rope_theta"):
        rope_from_parameters({"rope_type": "default"})


def test_a_missing_scaling_parameter_is_named():
    parameters = {k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}

    with pytest.raises(ConfigError, match=r"low_freq_factor\n  Field required"):
        rope_from_parameters({"rope_theta": 1e4, **parameters})


def test_a_scaling_parameter_of_the_wrong_type_is_named():
    with pytest.raises(ConfigError, match=r"factor\n  Input should be a valid number"):
        rope_from_parameters({"rope_theta": 1e4, "rope_type": "linear", "factor": "twice"})


def test_nested_parameters_are_refused_where_one_rope_is_expected():
    with pytest.raises(ConfigError, match=r"per layer type \(full_attention\)"):
        rope_from_parameters({"rope_theta": 1e4, "full_attention": {"rope_theta": 1e6}})


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(ConfigError, match="activation 'relu2' is not supported; known: silu"):
        activation("relu2")


# defaults


def test_a_default_stands_in_for_a_field_left_out_or_null_and_for_no_other():
    fields = ConfigFields(
        honoured=frozenset(),
        defaults={"head_dim": 256, "attention_bias": True, "eos_token_ids": (1,)},
    )

    config = with_defaults(normalise({"head_dim": None, "attention_bias": False}), fields)

    assert config == {
        "head_dim": 256,
        "attention_bias": False,
        "eos_token_ids": (1,),
        "bos_token_id": None,
    }


def test_no_window_is_not_the_default_window():
    fields = ConfigFields(honoured=frozenset(), defaults={"sliding_window": 4096})

    assert with_defaults(normalise({"sliding_window": None}), fields)["sliding_window"] is None
    assert with_defaults(normalise({}), fields)["sliding_window"] == 4096


def test_without_a_default_a_missing_field_stays_an_error():
    config = with_defaults(normalise({}), ConfigFields(honoured=frozenset({"hidden_size"})))

    with pytest.raises(ConfigError, match="states no 'hidden_size'"):
        config["hidden_size"]


# audit

FIELDS = ConfigFields(
    honoured=frozenset({"hidden_size", "rope_parameters"}),
    defaults={"attention_bias": False},
    required={"use_bidirectional_attention": (False,)},
    ignored={"pretraining_tp": "training only"},
)


def audited(raw, fields=FIELDS):
    audit(normalise(raw), fields, plugin="toy")


def test_a_config_that_is_accounted_for_passes():
    audited(
        {
            "hidden_size": 8,
            "attention_bias": True,
            "use_bidirectional_attention": False,
            "pretraining_tp": 2,
            "an_unknown_field": None,
            "rope_theta": 1e4,
            "rope_scaling": LLAMA3,
            "transformers_version": "5.0",
            "eos_token_id": 3,
            "num_beams": 1,
            "temperature": 0.6,
        }
    )


def test_what_older_writers_dump_for_every_model_passes():
    audited(
        {
            "return_dict": True,
            "output_hidden_states": False,
            "output_scores": False,
            "return_dict_in_generate": False,
            "torchscript": False,
            "tf_legacy_loss": False,
            "use_bfloat16": False,
            "pruned_heads": {},
            "tie_encoder_decoder": False,
            "add_cross_attention": False,
            "is_encoder_decoder": False,
            "is_decoder": False,
            "cross_attention_hidden_size": None,
            "chunk_size_feed_forward": 0,
            "finetuning_task": None,
            "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
            "label2id": {"LABEL_0": 0, "LABEL_1": 1},
            "max_length": 20,
            "min_length": 0,
            "do_sample": False,
            "early_stopping": False,
            "num_beams": 1,
            "num_beam_groups": 1,
            "diversity_penalty": 0.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
            "typical_p": 1.0,
            "repetition_penalty": 1.0,
            "length_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "encoder_no_repeat_ngram_size": 0,
            "num_return_sequences": 1,
            "remove_invalid_values": False,
            "bad_words_ids": None,
            "suppress_tokens": None,
        }
    )


def test_every_unhandled_field_is_named_with_its_value_and_the_plugin():
    with pytest.raises(ConfigError) as error:
        audited({"hidden_size": 8, "alibi": True, "quantization_config": {"bits": 4}})

    message = str(error.value)
    assert "plugin 'toy' does not handle 2 field(s)" in message
    assert "alibi = True" in message
    assert "quantization_config = {'bits': 4}" in message
    assert "hidden_size" not in message


@pytest.mark.parametrize("value", [False, 0, "", [], 0.0], ids=repr)
def test_only_absent_and_null_are_default(value):
    with pytest.raises(ConfigError, match="logit_scale = "):
        audited({"logit_scale": value})


def test_a_required_field_of_another_value_says_what_it_must_be():
    with pytest.raises(ConfigError, match=r"use_bidirectional_attention = True \(must be False\)"):
        audited({"use_bidirectional_attention": True})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("no_repeat_ngram_size", 3),
        ("is_encoder_decoder", True),
        ("suppress_tokens", [1]),
        ("forced_eos_token_id", 2),
        ("auto_map", {"AutoModel": "modeling.Custom"}),
    ],
)
def test_generation_settings_no_request_can_ask_for_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        audited({name: value})


def test_a_long_value_is_cut_short():
    with pytest.raises(ConfigError) as error:
        audited({"vision_config": {f"key_{i}": i for i in range(200)}})

    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        pytest.param(
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "default", "factor": 2.0}},
            "rope_parameters.factor = 2.0",
            id="factor-without-scaling",
        ),
        pytest.param(
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 2.0, "mscale": 1.0}
                }
            },
            "rope_parameters.full_attention.mscale = 1.0",
            id="nested",
        ),
        pytest.param(
            {"partial_rotary_factor": 0.5},
            "rope_parameters.partial_rotary_factor = 0.5",
            id="fraction",
        ),
        pytest.param(
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_parameters.rope_type (config.json: rope_type 'dynamic' is not supported",
            id="type",
        ),
        pytest.param(
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "rope_theta": 1e4}},
            "rope_parameters.full_attention = ",
            id="half-nested",
        ),
    ],
)
def test_a_rope_field_nobody_reads_is_named(raw, complaint):
    with pytest.raises(ConfigError) as error:
        audited({**raw, "alibi": True})

    assert complaint in str(error.value)
    assert "alibi = True" in str(error.value)  # beside the others, in one message


def test_a_plugin_can_honour_or_restrict_a_rope_field_by_its_path():
    name = "rope_parameters.partial_rotary_factor"
    honours = ConfigFields(honoured=frozenset({"rope_parameters", name}))
    restricts = ConfigFields(honoured=frozenset({"rope_parameters"}), required={name: (1.0,)})

    audited({"partial_rotary_factor": 0.5}, honours)
    audited({"partial_rotary_factor": 1.0}, restricts)
    with pytest.raises(ConfigError, match=r"partial_rotary_factor = 0.5 \(must be 1.0\)"):
        audited({"partial_rotary_factor": 0.5}, restricts)


def test_a_plugin_that_does_not_mention_rope_cannot_be_given_one():
    with pytest.raises(ConfigError, match="rope_parameters = "):
        audited({"rope_theta": 1e4}, ConfigFields(honoured=frozenset()))


def test_a_field_has_one_verdict():
    with pytest.raises(ValidationError, match=r"\['head_dim'\] stand in more than one"):
        ConfigFields(honoured=frozenset({"head_dim"}), defaults={"head_dim": 64})
