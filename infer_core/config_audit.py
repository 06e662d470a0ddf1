"""The field audit: every field of config.json is accounted for, or loading stops.

A field nobody reads is how a model gives fluent, wrong text; so a plugin says which fields it
honours, and what it does not mention must be absent or null.
"""

from collections.abc import Mapping
from typing import Any

from infer_core.config_rope import check_rope_type, rope_entries, rope_keys
from infer_core.errors import ConfigError
from infer_core.specs import ConfigFields

_WRITER = "a note of the program that wrote the file"
_REQUEST = "the default of a request; here the request itself says how to sample"
_OUTPUT = "asks for outputs beside the tokens"
_TRAINING = "used in training only"

# Fields of any family that change no token -> why. In a multimodal config.json the outer
# value of these stands for the whole model.
METADATA: dict[str, str] = {
    "architectures": "names the owner, which is asked",
    "model_type": "names the owner, which is asked",
    "bos_token_id": "carried into the model's spec",
    "eos_token_id": "carried into the model's spec",
    "eos_token_ids": "carried into the model's spec",
    "pad_token_id": "nothing is padded: one sequence at a time",
    "sep_token_id": "a tokenizer's business",
    "tokenizer_class": "a tokenizer's business",
    "transformers_version": _WRITER,
    "_name_or_path": _WRITER,
    "name_or_path": _WRITER,
    "_commit_hash": _WRITER,
    "unsloth_fixed": _WRITER,
    "unsloth_version": _WRITER,
    "initializer_range": _TRAINING,
    "attention_dropout": _TRAINING,
    "hidden_dropout": _TRAINING,
    "problem_type": _TRAINING,
    "id2label": "labels of a classifier, not of a language model",
    "label2id": "labels of a classifier, not of a language model",
    "use_cache": "whether K and V are kept is the engine's choice, and changes no token",
    "cache_implementation": "how K and V are kept is the plugin's policy, and changes no token",
    "attn_implementation": "which kernel computes attention changes no token",
    "_attn_implementation": "which kernel computes attention changes no token",
    "_attn_implementation_autoset": "which kernel computes attention changes no token",
    "is_decoder": "every model here is one",
    "torchscript": _OUTPUT,
    "return_dict": _OUTPUT,
    "output_attentions": _OUTPUT,
    "output_hidden_states": _OUTPUT,
    "output_scores": _OUTPUT,
    "return_dict_in_generate": _OUTPUT,
    "tf_legacy_loss": _TRAINING,
    "use_bfloat16": "for TPUs; dtype says what the weights are",
    "chunk_size_feed_forward": "computes the MLP in pieces, with the same result",
    "do_sample": _REQUEST,
    "temperature": _REQUEST,
    "top_k": _REQUEST,
    "top_p": _REQUEST,
    "min_p": _REQUEST,
    "typical_p": _REQUEST,
    "repetition_penalty": _REQUEST,
    "max_length": _REQUEST,
    "max_new_tokens": _REQUEST,
    "num_return_sequences": _REQUEST,
}

# Fields of any family that would change tokens in a way no request can ask for -> harmless values.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "length_penalty": (1.0,),
    "early_stopping": (False,),
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "remove_invalid_values": (False,),
}


def audit(config: Mapping[str, Any], fields: ConfigFields, *, plugin: str) -> None:
    """Check that the plugin, or the core, accounts for every field of a normalised config.

    Raises:
        ConfigError: names each field that is not accounted for, its value, and the plugin.
    """
    required = {**NEUTRAL, **fields.required}
    silent = fields.honoured | fields.defaults.keys() | fields.ignored.keys()
    complaints = []
    for name, value in config.items():
        if value is None:
            continue
        if name == "rope_parameters" and name in silent:
            complaints += _audit_rope(value, fields)
        elif name in silent:
            continue
        elif name in required:
            if value not in required[name]:
                complaints.append(f"{name} = {_shown(value)}{_must_be(required[name])}")
        elif name not in METADATA:
            complaints.append(f"{name} = {_shown(value)}")
    if complaints:
        raise ConfigError(
            f"plugin {plugin!r} does not handle {len(complaints)} field(s) of this config.json: "
            + "; ".join(complaints)
            + ". Running anyway could give wrong text. Use a plugin that handles them (see "
            "infer_config_fields in docs/writing-a-plugin.md), or remove a field you know to "
            "be without effect."
        )


def _audit_rope(parameters: Mapping[str, Any], fields: ConfigFields) -> list[str]:
    complaints = []
    for path, entry in rope_entries(parameters).items():
        try:
            check_rope_type(entry["rope_type"])
        except ConfigError as error:
            complaints.append(f"rope_parameters.{path}rope_type ({error})")
            continue
        known = rope_keys(entry["rope_type"]) | {"rope_type", "rope_theta"}
        for key, value in entry.items():
            name = f"rope_parameters.{key}"
            shown = f"rope_parameters.{path}{key} = {_shown(value)}"
            if name in fields.required:
                if value not in fields.required[name]:
                    complaints.append(shown + _must_be(fields.required[name]))
            elif key not in known and name not in fields.honoured | fields.ignored.keys():
                complaints.append(shown)
    return complaints


def _must_be(values: tuple[Any, ...]) -> str:
    return f" (must be {' or '.join(map(repr, values))})"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
