"""Every family against transformers, the oracle: checkpoints it wrote itself, in odd shapes.

The plugins' own tests run the whole contract on one config each; here are many.
"""

import json

import pytest
import torch
import transformers

from infer_core import Engine, SamplingParams
from infer_core.config import read_config
from infer_core.plugins import load_registry
from infer_core.testing.case import every_logit
from infer_core.testing.oracle import oracle_greedy, oracle_logits
from infer_core.weights import load_checkpoint

NEW_TOKENS = 64
SIZES = {
    "hidden_size": 72,
    "intermediate_size": 88,
    "vocab_size": 151,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
LLAMA = {**SIZES, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}
QWEN3 = {**LLAMA, "head_dim": 20}
GEMMA3 = {
    **SIZES,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "sliding_window": 16,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def llama(**changes):
    return transformers.LlamaForCausalLM, transformers.LlamaConfig(**{**LLAMA, **changes})


def qwen3(**changes):
    return transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**{**QWEN3, **changes})


def gemma3(**changes):
    config = transformers.Gemma3TextConfig(**{**GEMMA3, **changes})
    return transformers.Gemma3ForCausalLM, config


def gemma3_multimodal(**changes):
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = transformers.Gemma3Config(
        text_config={**GEMMA3, **changes}, vision_config=vision, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration, config


def case(name, built, *, sharded=False, old_dialect=False):
    return pytest.param((*built, sharded, old_dialect), id=name)


LINEAR_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
MODELS = [
    case("llama-untied", llama(head_dim=12)),
    case(
        "llama-tied-llama3-rope-own-head-dim-sharded",
        llama(head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE),
        sharded=True,
    ),
    case("llama-with-biases", llama(head_dim=12, attention_bias=True, mlp_bias=True)),
    case(
        "llama-llama3-rope-old-dialect",
        llama(head_dim=12, rope_parameters=LLAMA3_ROPE),
        old_dialect=True,
    ),
    case("qwen3-untied", qwen3()),
    case("qwen3-tied-old-dialect", qwen3(tie_word_embeddings=True), old_dialect=True),
    case(
        "qwen3-with-windows-sharded",
        qwen3(use_sliding_window=True, sliding_window=16, max_window_layers=1),
        sharded=True,
    ),
    case("gemma3-window-shorter-than-prompt", gemma3()),
    case(
        "gemma3-untied-final-softcap-sharded",
        gemma3(tie_word_embeddings=False, final_logit_softcapping=5.0),
        sharded=True,
    ),
    case("gemma3-linear-rope-old-dialect", gemma3(rope_parameters=LINEAR_ROPE), old_dialect=True),
    case("gemma3-nested-text-config", gemma3_multimodal()),
]


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    """A transformers model in fp32 with random weights, and the folder it was saved to."""
    model_class, config, sharded, old_dialect = request.param
    torch.manual_seed(0)
    oracle = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    oracle.save_pretrained(tmp_path, max_shard_size="40KB" if sharded else "5GB")
    assert sharded == (tmp_path / "model.safetensors.index.json").exists()
    if old_dialect:
        _rewrite_in_the_old_dialect(tmp_path / "config.json")
    return oracle, tmp_path


def _rewrite_in_the_old_dialect(path):
    """Write config.json as transformers 4 did: rope_scaling, rope_theta, torch_dtype."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = 6
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    path.write_text(json.dumps(config))


def prompt_ids(length=40):
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, SIZES["vocab_size"], (length,), generator=generator).tolist()


def greedy(engine, prompt):
    return engine.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True).tokens


def test_logits_and_greedy_tokens_equal_those_of_transformers_in_fp32(model):
    oracle, folder = model
    prompt = prompt_ids()
    spec = load_registry().resolve(read_config(folder))
    parameters = load_checkpoint(folder, spec, device="cpu", dtype=torch.float32)
    truth = oracle_logits(oracle, prompt)
    logits = every_logit(spec, parameters, prompt)

    error = (logits - truth).abs().max() / truth.abs().max()
    assert error <= 1e-4
    expected = oracle_greedy(oracle, prompt, new_tokens=NEW_TOKENS)
    assert greedy(Engine.load(str(folder), device="cpu"), prompt) == expected


def test_every_way_of_running_gives_the_same_tokens(model):
    _, folder = model
    prompt = prompt_ids()
    engine = Engine.load(str(folder), device="cpu")
    expected = greedy(engine, prompt)

    assert greedy(Engine.load(str(folder), device="cpu", kv_cache=False), prompt) == expected
    pieces = Engine(engine.spec, engine.parameters, prefill_chunk=7)
    assert greedy(pieces, prompt) == expected
    full = engine.spec.model_copy(
        update={"kv_cache": tuple(type(p)() for p in engine.spec.kv_cache)}
    )
    assert greedy(Engine(full, engine.parameters), prompt) == expected
    sampled = SamplingParams(temperature=0.9, top_k=20, seed=3)
    runs = [engine.generate(prompt, max_new_tokens=20, sampling=sampled) for _ in range(2)]
    assert runs[0].tokens == runs[1].tokens
