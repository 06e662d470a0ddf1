"""The published configs resolve to the right specs in both dialects, and so do the weights.

The oracle is transformers: its config objects, its attention modules and its tensor names
(models stand on the meta device, so even the largest costs no memory).
"""

import functools
import json
import re
from pathlib import Path

import infer_gemma3
import infer_llama
import infer_qwen3
import pytest
import torch
import transformers

from infer_core import (
    ConfigError,
    KVCachePolicy,
    LinearRopeScaling,
    Llama3RopeScaling,
    NormFlavour,
    PluginContractError,
    Rope,
)
from infer_core.config import normalise, read_config
from infer_core.parameters import model_parameters
from infer_core.plugins import load_registry

PLUGINS = (infer_llama, infer_qwen3, infer_gemma3)
CONFIGS = Path(__file__).parent / "fixtures" / "configs"
GUIDE = Path(__file__).parents[1] / "docs" / "writing-a-plugin.md"
MODELS = sorted(path.stem for path in CONFIGS.glob("*.json"))


@functools.cache
def registry():
    return load_registry(environ={})


def resolve(raw):
    return registry().resolve(raw)


def published(name):
    return json.loads((CONFIGS / f"{name}.json").read_text())


def oracle_config(raw):
    return transformers.CONFIG_MAPPING[raw["model_type"]].from_dict(raw)


def oracle_model(raw):
    with torch.device("meta"):
        return getattr(transformers, raw["architectures"][0])(oracle_config(raw))


def llama3(factor):
    return Rope(
        theta=500_000.0,
        scaling=Llama3RopeScaling(
            factor=factor,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    )


QWEN3_ROPE = Rope(theta=1_000_000.0)
LOCAL = Rope(theta=10_000.0)
GLOBAL = Rope(theta=1_000_000.0)
GLOBAL_BY_8 = Rope(theta=1_000_000.0, scaling=LinearRopeScaling(factor=8.0))
LLAMA_EOS, GEMMA_EOS = (128001, 128008, 128009), (1, 106)

# layers, hidden, intermediate, vocabulary, context, tied | heads, kv heads, head_dim, softmax
# scale | RoPE of full layers | window, full layers (None: all) | begin, end
# fmt: off
EXPECTED = {
    "Llama-3.2-1B-Instruct": (
        (16, 2048, 8192, 128256, 131072, True), (32, 8, 64, 64**-0.5),
        llama3(32.0), (None, None), (128000, LLAMA_EOS)),
    "Llama-3.2-3B": (
        (28, 3072, 8192, 128256, 131072, True), (24, 8, 128, 128**-0.5),
        llama3(32.0), (None, None), (128000, (128001,))),
    "Llama-3.1-8B": (
        (32, 4096, 14336, 128256, 131072, False), (32, 8, 128, 128**-0.5),
        llama3(8.0), (None, None), (128000, (128001,))),
    "Qwen3-0.6B": (
        (28, 1024, 3072, 151936, 40960, True), (16, 8, 128, 128**-0.5),
        QWEN3_ROPE, (None, None), (151643, (151645,))),
    "Qwen3-1.7B": (
        (28, 2048, 6144, 151936, 40960, True), (16, 8, 128, 128**-0.5),
        QWEN3_ROPE, (None, None), (151643, (151645,))),
    "Qwen3-4B": (
        (36, 2560, 9728, 151936, 40960, True), (32, 8, 128, 128**-0.5),
        QWEN3_ROPE, (None, None), (151643, (151645,))),
    "Qwen3-8B": (
        (36, 4096, 12288, 151936, 40960, False), (32, 8, 128, 128**-0.5),
        QWEN3_ROPE, (None, None), (151643, (151645,))),
    "gemma-3-270m": (
        (18, 640, 2048, 262144, 32768, True), (4, 1, 256, 256**-0.5),
        GLOBAL, (512, (5, 11, 17)), (2, (1,))),
    "gemma-3-1b-it": (
        (26, 1152, 6912, 262144, 32768, True), (4, 1, 256, 256**-0.5),
        GLOBAL, (512, (5, 11, 17, 23)), (2, GEMMA_EOS)),
    "gemma-3-4b-it": (
        (34, 2560, 10240, 262208, 131072, True), (8, 4, 256, 256**-0.5),
        GLOBAL_BY_8, (1024, (5, 11, 17, 23, 29)), (2, GEMMA_EOS)),
    "gemma-3-27b-it": (
        (62, 5376, 21504, 262208, 131072, True), (32, 16, 128, 168**-0.5),
        GLOBAL_BY_8, (1024, (5, 11, 17, 23, 29, 35, 41, 47, 53, 59)), (2, GEMMA_EOS)),
}
# fmt: on


def test_every_published_config_has_its_numbers():
    assert sorted(EXPECTED) == MODELS


@pytest.fixture(params=["as-published", "as-transformers-5-writes-it"])
def dialect(request, tmp_path):
    """Give a function from a published config to the same config in one of the dialects."""

    def rewrite(raw):
        if request.param == "as-published":
            return raw
        oracle_config(raw).save_pretrained(tmp_path)
        rewritten = read_config(tmp_path)
        assert "rope_parameters" in {**rewritten, **rewritten.get("text_config", {})}
        return rewritten

    return rewrite


@pytest.mark.parametrize("name", MODELS)
def test_a_published_config_gives_the_numbers_of_its_model(name, dialect):
    spec = resolve(dialect(published(name)))

    sizes, heads, full_rope, (window, full_layers), (bos, eos) = EXPECTED[name]
    shape = spec.shape
    assert sizes == (
        shape.num_layers,
        shape.hidden_size,
        shape.intermediate_size,
        shape.vocab_size,
        shape.max_context,
        shape.tied_embeddings,
    )
    assert shape.dtype == "bfloat16"
    for layer, (attention, policy) in enumerate(zip(spec.attention, spec.kv_cache, strict=True)):
        is_full = full_layers is None or layer in full_layers
        assert heads == (
            attention.num_heads,
            attention.num_kv_heads,
            attention.head_dim,
            attention.softmax_scale,
        )
        assert attention.rope == (full_rope if is_full else LOCAL)
        assert attention.window == (None if is_full else window)
        assert policy == (KVCachePolicy() if is_full else KVCachePolicy(kind="ring", window=window))
        assert (attention.qkv_bias, attention.out_bias) == (False, False)
        assert attention.logit_softcap is None
    assert (spec.bos_token_id, spec.eos_token_ids) == (bos, eos)


@pytest.mark.parametrize("name", MODELS)
def test_both_dialects_give_one_spec(name, tmp_path):
    raw = published(name)
    oracle_config(raw).save_pretrained(tmp_path)

    assert resolve(read_config(tmp_path)) == resolve(raw)


def test_what_holds_for_all_sizes_of_a_family():
    llama, qwen3, gemma3 = (
        resolve(published(name)) for name in ("Llama-3.2-3B", "Qwen3-4B", "gemma-3-270m")
    )

    assert llama.norm == NormFlavour(eps=1e-5)
    assert qwen3.norm == NormFlavour(eps=1e-6)
    assert gemma3.norm == NormFlavour(
        eps=1e-6, weight_offset=1.0, weight_in_fp32=True, placement="sandwich"
    )
    assert [spec.attention[0].qk_norm for spec in (llama, qwen3, gemma3)] == [None, "head", "head"]
    assert [spec.block.activation for spec in (llama, qwen3, gemma3)] == [
        "silu",
        "silu",
        "gelu_tanh",
    ]
    assert [spec.block.embedding_scale for spec in (llama, qwen3, gemma3)] == [1.0, 1.0, 640**0.5]
    for spec in (llama, qwen3, gemma3):
        assert spec.block.gated
        assert not spec.block.mlp_bias
        assert spec.block.final_logit_softcap is None


# against transformers

BIASED = {"attention_bias": True}
# name -> config; the small ones show what no published model uses
ORACLE_CASES = {
    **{name: published(name) for name in MODELS},
    **{
        model.name: model.tiny_config
        for plugin in PLUGINS
        for model in plugin.infer_architectures().reference_models
    },
    "llama-biases": {**infer_llama.TINY, **BIASED, "mlp_bias": True, "tie_word_embeddings": False},
    "qwen3-biases": {**infer_qwen3.TINY, **BIASED, "tie_word_embeddings": True},
    "gemma3-biases": {**infer_gemma3.TINY, **BIASED},
    "llama-without-optional-fields": {
        name: value
        for name, value in infer_llama.TINY.items()
        if name not in ("head_dim", "num_key_value_heads", "rope_theta", "rope_scaling")
        and name not in ("hidden_act", "tie_word_embeddings")
    },
    "qwen3-windows": {
        **infer_qwen3.TINY,
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 1,
    },
    "qwen3-yarn": {
        **infer_qwen3.TINY,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    },
    "gemma3-layer-types": {
        **{k: v for k, v in infer_gemma3.TINY.items() if k != "sliding_window_pattern"},
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "final_logit_softcapping": 30.0,
    },
}


@pytest.mark.parametrize("raw", ORACLE_CASES.values(), ids=ORACLE_CASES)
def test_specs_agree_with_transformers(raw):
    check_spec(resolve(raw), raw)


def check_spec(spec, raw):
    outer = oracle_config(raw)
    oracle = outer.get_text_config()
    decoder = oracle_model(raw).get_decoder()

    assert spec.shape.num_layers == len(decoder.layers)
    assert spec.shape.max_context == oracle.max_position_embeddings
    assert spec.shape.tied_embeddings == outer.tie_word_embeddings
    assert spec.norm.eps == oracle.rms_norm_eps
    assert spec.block.final_logit_softcap == getattr(oracle, "final_logit_softcapping", None)
    for layer, attention in zip(decoder.layers, spec.attention, strict=True):
        module = layer.self_attn
        kind = getattr(module, "layer_type", None)
        rope = oracle.rope_parameters
        assert attention.head_dim == module.head_dim
        assert attention.group_size == module.num_key_value_groups
        assert attention.softmax_scale == module.scaling
        window = getattr(oracle, "sliding_window", None)  # of every layer, unless a layer says
        assert attention.window == getattr(module, "sliding_window", window)
        assert as_parameters(attention.rope) == rope.get(kind, rope)


def as_parameters(rope):
    """Spell a Rope the way transformers does."""
    if rope.scaling is None:
        return {"rope_type": "default", "rope_theta": rope.theta}
    scaling = rope.scaling.model_dump(exclude_defaults=True)
    return {"rope_type": rope.scaling.kind, "rope_theta": rope.theta, **scaling}


@pytest.mark.parametrize("raw", ORACLE_CASES.values(), ids=ORACLE_CASES)
def test_weight_rules_use_every_tensor_once_and_fill_every_parameter(raw):
    check_weight_rules(resolve(raw), tensors_of(raw))


@pytest.mark.parametrize("name", ["gemma-3-4b-it", "gemma-3-27b-it"])
def test_weight_rules_know_the_names_of_the_published_multimodal_checkpoints(name):
    raw = published(name)

    check_weight_rules(
        resolve(raw), {older_name(name): shape for name, shape in tensors_of(raw).items()}
    )


def tensors_of(raw):
    return {name: tuple(tensor.shape) for name, tensor in oracle_model(raw).state_dict().items()}


def check_weight_rules(spec, tensors):
    filled = {}
    for name, shape in tensors.items():
        target, part = place(name, spec)
        if target is not None:
            filled.setdefault(target, {})[part] = shape

    expected = {
        name: {part: (stop - start, *p.shape[1:]) for part, (start, stop) in p.parts.items()}
        or {None: p.shape}
        for name, p in model_parameters(spec).items()
    }
    if spec.shape.tied_embeddings:  # in memory the tied head is there too
        expected["lm_head"] = expected["embed"]
    assert filled == expected


def place(name, spec):
    """Find the one rule for a tensor; give its target, layer filled in, and part."""
    found = []
    for rule in spec.weights:
        for source in rule.source:
            pattern = re.escape(source).replace(r"\{layer\}", r"(\d+)").replace(r"\{any\}", ".+")
            if match := re.fullmatch(pattern, name):
                found.append((rule, match))
    assert len(found) == 1, f"{name} matches {[rule.source for rule, _ in found]}"
    ((rule, match),) = found
    target = rule.target and rule.target.replace("{layer}", *match.groups() or [""])
    return target, rule.part


def older_name(name):
    """Name a tensor as published multimodal checkpoints do (transformers renames on loading)."""
    for new, old in (
        (r"^model\.language_model", "language_model.model"),
        (r"^lm_head", "language_model.lm_head"),
        (r"^model\.(?=vision_tower|multi_modal)", ""),
    ):
        name = re.sub(new, old, name)
    return name


def test_a_stored_rope_table_is_dropped():
    assert place("model.layers.3.self_attn.rotary_emb.inv_freq", resolve(infer_llama.TINY)) == (
        None,
        None,
    )


DEFAULT_OF = {
    infer_llama: transformers.LlamaConfig,
    infer_qwen3: transformers.Qwen3Config,
    infer_gemma3: transformers.Gemma3TextConfig,
}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.__name__)
def test_family_defaults_are_those_of_transformers(plugin):
    oracle = DEFAULT_OF[plugin]()
    stated = (
        dict(plugin.infer_config_fields(normalise({})).defaults)
        if plugin is infer_gemma3
        else dict(plugin.DEFAULTS)
    )

    assert stated.pop("dtype") == "float32"  # what transformers builds when none is stated
    if "eos_token_ids" in stated:
        assert stated.pop("eos_token_ids") == (oracle.eos_token_id,)
    assert stated == {name: getattr(oracle, name) for name in stated}


# the guide


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="default-window"),
        pytest.param({"sliding_window": None}, id="no-window"),
        pytest.param({"sliding_window": 16, "head_dim": None}, id="window"),
    ],
)
def test_the_plugin_the_guide_shows_agrees_with_transformers(make_plugin, change):
    (source,) = re.findall(r'```python\n(""".*?)```', GUIDE.read_text("utf-8"), re.DOTALL)
    raw = {
        **{name: value for name, value in infer_llama.TINY.items() if name != "rope_scaling"},
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **change,
    }

    make_plugin("mistral", source=source)
    spec = load_registry(environ={}, path=make_plugin.path).resolve(raw)

    check_spec(spec, raw)
    check_weight_rules(spec, tensors_of(raw))


# bad configs


@pytest.mark.parametrize(
    ("base", "change", "complaint"),
    [
        (infer_llama.TINY, {"sliding_window": 16}, "'llama' .*sliding_window = 16"),
        (infer_llama.TINY, {"partial_rotary_factor": 0.5}, "rope_parameters.partial_rotary_factor"),
        (infer_llama.TINY, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        (infer_llama.TINY, {"hidden_act": "relu2"}, "activation 'relu2'"),
        (infer_llama.TINY, {"rms_norm_eps": None}, "states no 'rms_norm_eps'"),
        (
            infer_llama.TINY,
            {
                "rope_theta": None,
                "rope_scaling": None,
                "rope_parameters": {"full_attention": {"rope_theta": 1e4}},
            },
            "expects one RoPE",
        ),
        (infer_qwen3.TINY, {"num_experts": 8}, "'qwen3' .*num_experts = 8"),
        (infer_qwen3.TINY, {"rope_theta": None}, "states no rope_theta"),
        (
            infer_qwen3.TINY,
            {"use_sliding_window": True, "max_window_layers": 1},
            "states no 'sliding_window'",
        ),
        (
            infer_qwen3.TINY,
            {"layer_types": ["sliding_attention"] * 3, "sliding_window": 16},
            "use_sliding_window is false",
        ),
        (infer_qwen3.TINY, {"layer_types": ["full_attention"]}, "1 layer_types"),
        (infer_gemma3.TINY, {"use_bidirectional_attention": True}, "must be False"),
        (infer_gemma3.TINY, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        (infer_gemma3.TINY, {"hidden_act": "silu"}, "must be 'gelu_pytorch_tanh'"),
        (
            infer_gemma3.TINY,
            {"layer_types": ["chunked_attention"] * 4, "sliding_window_pattern": None},
            "'chunked_attention'",
        ),
        (infer_gemma3.TINY, {"text_config": []}, "text_config is a JSON array"),
        (infer_gemma3.TINY, {"quantization_config": {"bits": 4}}, "quantization_config = "),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_config_the_family_does_not_cover_is_an_error(base, change, complaint):
    with pytest.raises(ConfigError, match=complaint):
        resolve({**base, **change})


@pytest.mark.parametrize(
    ("change", "model", "field"),
    [
        ({"rms_norm_eps": "small"}, "NormFlavour", "eps"),
        ({"tie_word_embeddings": [1]}, "ModelShape", "tied_embeddings"),
        ({"dtype": "int8", "torch_dtype": None}, "ModelShape", "dtype"),
        ({"attention_bias": {}}, "AttentionLayout", "qkv_bias"),
        ({"num_key_value_heads": 5}, "AttentionLayout", "num_kv_heads"),
        ({"head_dim": 15}, "AttentionLayout", "head_dim"),
    ],
    ids=str,
)
@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.__name__)
def test_a_value_of_the_wrong_type_is_named_by_the_answer_it_spoils(plugin, change, model, field):
    hook = {
        "NormFlavour": "infer_norm_flavour",
        "ModelShape": "infer_model_shape",
        "AttentionLayout": "infer_attention_layout",
    }[model]

    with pytest.raises(
        PluginContractError,
        match=f"{plugin.__name__[6:]}.*{hook} built an invalid {model}: .*{field}",
    ):
        resolve({**plugin.TINY, **change})
