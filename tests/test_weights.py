import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from infer_core import (
    AttentionLayout,
    BlockLayout,
    KVCachePolicy,
    ModelShape,
    ModelSpec,
    NormFlavour,
    Rope,
    WeightError,
    WeightRule,
)
from infer_core.parameters import model_parameters
from infer_core.weights import dummy_weights, load_checkpoint

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

LAYER = "model.layers.{layer}."
RULES = (
    WeightRule("model.embed_tokens.weight", "embed"),
    WeightRule(LAYER + "input_layernorm.weight", "layers.{layer}.attn_norm"),
    WeightRule(LAYER + "self_attn.q_proj.weight", "layers.{layer}.qkv", part="q"),
    WeightRule(LAYER + "self_attn.k_proj.weight", "layers.{layer}.qkv", part="k"),
    WeightRule(LAYER + "self_attn.v_proj.weight", "layers.{layer}.qkv", part="v"),
    WeightRule(LAYER + "self_attn.q_proj.bias", "layers.{layer}.qkv_bias", part="q"),
    WeightRule(LAYER + "self_attn.k_proj.bias", "layers.{layer}.qkv_bias", part="k"),
    WeightRule(LAYER + "self_attn.v_proj.bias", "layers.{layer}.qkv_bias", part="v"),
    WeightRule(LAYER + "self_attn.q_norm.weight", "layers.{layer}.q_norm"),
    WeightRule(LAYER + "self_attn.k_norm.weight", "layers.{layer}.k_norm"),
    WeightRule(LAYER + "self_attn.o_proj.weight", "layers.{layer}.attn_out"),
    WeightRule(LAYER + "self_attn.o_proj.bias", "layers.{layer}.attn_out_bias"),
    WeightRule(LAYER + "attn_post_norm.weight", "layers.{layer}.attn_post_norm"),
    WeightRule(LAYER + "post_attention_layernorm.weight", "layers.{layer}.mlp_norm"),
    WeightRule(LAYER + "mlp.gate_proj.weight", "layers.{layer}.gate_up", part="gate"),
    WeightRule(LAYER + "mlp.up_proj.weight", "layers.{layer}.gate_up", part="up"),
    WeightRule(LAYER + "mlp.gate_proj.bias", "layers.{layer}.gate_up_bias", part="gate"),
    WeightRule(LAYER + "mlp.up_proj.bias", "layers.{layer}.gate_up_bias", part="up"),
    WeightRule(LAYER + "mlp.down_proj.weight", "layers.{layer}.mlp_out"),
    WeightRule(LAYER + "mlp.down_proj.bias", "layers.{layer}.mlp_out_bias"),
    WeightRule(LAYER + "mlp_post_norm.weight", "layers.{layer}.mlp_post_norm"),
    WeightRule("model.norm.weight", "final_norm"),
    WeightRule("lm_head.weight", "lm_head"),
)
Q = "model.layers.0.self_attn.q_proj.weight"


def toy_spec(
    *,
    rules=RULES,
    num_layers=2,
    hidden_size=8,
    vocab_size=11,
    tied=False,
    biases=False,
    qk_norm=None,
    placement="pre",
    weight_offset=0.0,
    gated=True,
):
    """GQA (4 heads on 2) with a head_dim that is not hidden_size / num_heads."""
    attention = AttentionLayout(
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        softmax_scale=0.5,
        rope=Rope(theta=1e4),
        qk_norm=qk_norm,
        qkv_bias=biases,
        out_bias=biases,
    )
    return ModelSpec(
        architecture="ToyForCausalLM",
        plugin="toy",
        distribution=None,
        plugin_version=None,
        shape=ModelShape(
            num_layers=num_layers,
            hidden_size=hidden_size,
            intermediate_size=12,
            vocab_size=vocab_size,
            max_context=64,
            dtype="float32",
            tied_embeddings=tied,
        ),
        attention=(attention,) * num_layers,
        norm=NormFlavour(eps=1e-6, placement=placement, weight_offset=weight_offset),
        kv_cache=(KVCachePolicy(),) * num_layers,
        block=BlockLayout(activation="silu", gated=gated, mlp_bias=biases),
        weights=rules,
    )


def checkpoint_tensors(spec, rules=RULES):
    """Random parameters, and the same numbers cut up under the checkpoint's names."""
    weights = dummy_weights(spec, device="cpu", dtype=torch.float32)
    parameters = model_parameters(spec)
    tensors = {}
    for rule in rules:
        per_layer = "{layer}" in rule.source[0]
        for layer in range(spec.shape.num_layers if per_layer else 1):
            target = rule.target.replace("{layer}", str(layer))
            if target in parameters:
                start, stop = (
                    parameters[target].parts[rule.part] if rule.part else (0, len(weights[target]))
                )
                name = rule.source[0].replace("{layer}", str(layer))
                tensors[name] = weights[target][start:stop].clone()
    return weights, tensors


def write_shards(folder, *shards):
    """Write tensors as shards with an index, as transformers does."""
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def load(folder, spec, *, dtype=torch.float32, progress=None):
    return load_checkpoint(folder, spec, device="cpu", dtype=dtype, progress=progress)


def assert_same(loaded, expected):
    assert list(loaded) == list(expected)
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert loaded[name].is_contiguous(), name
        assert torch.equal(loaded[name], tensor), name


@pytest.fixture(autouse=True)
def poison_uninitialised_memory(monkeypatch):
    """Fill fresh parameters with NaN, so that a row the loader never wrote fails the test."""
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: real(*a, **k).fill_(float("nan")))


@pytest.fixture
def toy(tmp_path):
    """Spec, its parameters, its checkpoint tensors (change them, then save), and a folder."""
    spec = toy_spec()
    weights, tensors = checkpoint_tensors(spec)
    return spec, weights, tensors, tmp_path


VARIANTS = [
    pytest.param({}, id="plain-untied"),
    pytest.param({"tied": True}, id="tied-without-head"),
    pytest.param({"biases": True}, id="every-bias"),
    pytest.param({"qk_norm": "head"}, id="qk-norms"),
    pytest.param({"placement": "sandwich", "tied": True, "weight_offset": 1.0}, id="sandwich"),
    pytest.param({"num_layers": 11}, id="two-digit-layers"),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_lands_in_its_rows(variant, tmp_path):
    spec = toy_spec(**variant)
    weights, tensors = checkpoint_tensors(spec)
    save_file(tensors, tmp_path / "model.safetensors")

    assert_same(load(tmp_path, spec), weights)


def test_an_ungated_mlp_has_one_matrix_that_no_part_splits(tmp_path):
    rules = tuple(rule for rule in RULES if rule.part not in ("gate", "up"))
    rules += (WeightRule(LAYER + "mlp.up_proj.weight", "layers.{layer}.gate_up"),)
    spec = toy_spec(rules=rules, gated=False)
    weights, tensors = checkpoint_tensors(spec, rules)
    save_file(tensors, tmp_path / "model.safetensors")

    assert_same(load(tmp_path, spec), weights)


def test_a_rule_without_part_takes_an_already_stacked_tensor(tmp_path):
    rules = tuple(rule for rule in RULES if rule.target != "layers.{layer}.qkv")
    rules += (WeightRule(LAYER + "self_attn.qkv_proj.weight", "layers.{layer}.qkv"),)
    spec = toy_spec(rules=rules)
    weights, tensors = checkpoint_tensors(spec, rules)
    save_file(tensors, tmp_path / "model.safetensors")

    assert_same(load(tmp_path, spec), weights)


def test_parts_of_one_parameter_may_lie_in_different_shards(toy):
    spec, weights, tensors, folder = toy
    names = sorted(tensors)  # neighbours, such as q and k, go to different shards
    write_shards(folder, *({name: tensors[name] for name in names[i::3]} for i in range(3)))

    assert_same(load(folder, spec), weights)


def test_a_single_file_of_another_name_is_the_model(toy):
    spec, weights, tensors, folder = toy
    save_file(tensors, folder / "weights.safetensors")

    assert_same(load(folder, spec), weights)


def test_the_single_file_wins_over_an_index_as_in_transformers(toy):
    spec, weights, tensors, folder = toy
    write_shards(folder, {name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    save_file(tensors, folder / "model.safetensors")

    assert_same(load(folder, spec), weights)


@pytest.mark.parametrize("sharded", [False, True], ids=["beside-single", "beside-index"])
def test_stray_safetensors_beside_the_model_are_ignored(toy, sharded):
    spec, weights, tensors, folder = toy
    if sharded:
        write_shards(folder, tensors)
    else:
        save_file(tensors, folder / "model.safetensors")
    save_file({"other": torch.zeros(3)}, folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")

    assert_same(load(folder, spec), weights)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_cast_while_loading(toy, stored, wanted):
    spec, weights, tensors, folder = toy
    save_file(
        {name: tensor.to(stored) for name, tensor in tensors.items()}, folder / "model.safetensors"
    )

    loaded = load(folder, spec, dtype=wanted)

    assert_same(loaded, {name: w.to(stored).to(wanted) for name, w in weights.items()})


def test_either_of_two_source_names_is_taken(toy):
    _, weights, tensors, folder = toy
    rules = (*RULES[1:], WeightRule(("embeddings.weight", "model.embed_tokens.weight"), "embed"))
    save_file(tensors, folder / "model.safetensors")

    assert_same(load(folder, toy_spec(rules=rules)), weights)


def test_dropped_tensors_may_have_any_dtype_and_any_layer(toy):
    _, weights, tensors, folder = toy
    rules = (
        *RULES,
        WeightRule(LAYER + "self_attn.rotary_emb.inv_freq", None, reason="computed"),
        WeightRule("vision_tower.{any}", None, reason="text only"),
    )
    tensors["model.layers.7.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    tensors["vision_tower.blocks.0.mlp.weight"] = torch.ones(2, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors")

    assert_same(load(folder, toy_spec(rules=rules)), weights)


def test_a_tied_model_drops_a_head_that_equals_the_embeddings_bit_for_bit(tmp_path):
    spec = toy_spec(tied=True)
    _, tensors = checkpoint_tensors(spec)
    tensors["model.embed_tokens.weight"][0, 0] = float("nan")  # != itself, yet the same bits
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    others = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    write_shards(tmp_path, others, {"lm_head.weight": tensors["lm_head.weight"]})

    loaded = load(tmp_path, spec)

    assert "lm_head" not in loaded
    bits = tensors["model.embed_tokens.weight"].view(torch.int32)
    assert torch.equal(loaded["embed"].view(torch.int32), bits)


@pytest.mark.parametrize("difference", ["one-bit", "dtype", "shape"])
def test_a_tied_model_refuses_a_head_of_its_own(tmp_path, difference):
    spec = toy_spec(tied=True)
    _, tensors = checkpoint_tensors(spec)
    head = tensors["model.embed_tokens.weight"].clone()
    if difference == "one-bit":
        head.view(torch.int32)[-1, -1] ^= 1
    elif difference == "dtype":
        head = head.double()
    else:
        head = head[:-1].clone()
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")

    with pytest.raises(WeightError, match=r"'lm_head.weight' .* differs .* tie_word_embeddings"):
        load(tmp_path, spec)


def test_an_untied_model_without_head_names_the_missing_parameter(toy):
    spec, _, tensors, folder = toy
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(WeightError, match=r"Parameters without a tensor: 1 \(first: lm_head\)"):
        load(folder, spec)


def test_both_sides_of_a_mismatch_are_listed_with_the_plugin(toy):
    spec, _, tensors, folder = toy
    tensors["model.layers.0.self_attn.query.weight"] = tensors.pop(Q)
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(WeightError) as error:
        load(folder, spec)

    message = str(error.value)
    assert "infer_weight_map of plugin 'toy'" in message
    assert "without a tensor: 1 (first: layers.0.qkv[q])" in message
    assert f"without a place: 1 of {len(tensors)}" in message
    assert "match no rule (first: model.layers.0.self_attn.query.weight)" in message


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        pytest.param("model.layers.2.mlp.up_proj.weight", "layers beyond the config's 2", id="l2"),
        pytest.param("model.layers.00.mlp.up_proj.weight", "match no rule", id="leading-zero"),
        pytest.param("model.layers.-1.mlp.up_proj.weight", "match no rule", id="minus-one"),
        pytest.param("model.layers.0.mlp.up_proj.weight_x", "match no rule", id="longer-name"),
        pytest.param("xmodel.norm.weight", "match no rule", id="prefixed-name"),
        pytest.param("modelxnorm.weight", "match no rule", id="dot-is-a-dot"),
        pytest.param(
            "model.layers.1.self_attn.o_proj.bias",
            "parameters this model does not have .*-> layers.1.attn_out_bias",
            id="bias-the-spec-does-not-ask-for",
        ),
    ],
)
def test_a_tensor_without_a_place_is_an_error(toy, extra, reason):
    spec, _, tensors, folder = toy
    save_file(tensors | {extra: torch.zeros(3)}, folder / "model.safetensors")

    with pytest.raises(WeightError, match=rf"without a tensor: 0\..*{reason}") as error:
        load(folder, spec)

    assert extra in str(error.value)


def test_a_tensor_that_two_rules_match_is_an_error(toy):
    _, _, tensors, folder = toy
    rules = (*RULES, WeightRule(LAYER + "mlp.{any}", None, reason="not needed"))
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(WeightError, match=r"plugin 'toy'.*two rules match .*mlp\.\{any\} -> dropp"):
        load(folder, toy_spec(rules=rules))


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(WeightRule("old.norm", "final_norm"), id="same-parameter"),
        pytest.param(WeightRule("old.norm", "layers.0.qkv", part="q"), id="same-part"),
        pytest.param(WeightRule("old.norm", "layers.0.qkv"), id="whole-over-parts"),
        pytest.param(WeightRule(("old.norm", "model.norm.weight"), "final_norm"), id="both-names"),
    ],
)
def test_two_tensors_for_the_same_rows_are_an_error(toy, rule):
    _, _, tensors, folder = toy
    rules = (*(r for r in RULES if not set(r.source) & set(rule.source)), rule)
    save_file(tensors | {"old.norm": torch.zeros(8)}, folder / "model.safetensors")

    with pytest.raises(WeightError, match=r"plugin 'toy'.* tensors fill the same rows .*old.norm"):
        load(folder, toy_spec(rules=rules))


def test_a_part_that_the_parameter_has_not_is_an_error(toy):
    _, _, tensors, folder = toy
    rules = (*RULES[:-2], WeightRule("model.norm.weight", "final_norm", part="q"), RULES[-1])
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(WeightError, match="part 'q' of 'final_norm', whose parts are: none"):
        load(folder, toy_spec(rules=rules))


def test_a_wrong_shape_names_tensor_got_and_expected(toy):
    spec, _, tensors, folder = toy
    tensors[Q] = tensors[Q][:-1].clone()
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(WeightError, match=rf"{Q} is \[15, 8\], layers.0.qkv expects \[16, 8\]"):
        load(folder, spec)


@pytest.mark.parametrize(
    ("dtype", "stored_name"),
    [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.bool, "BOOL")],
    ids=str,
)
def test_a_quantised_tensor_is_named_with_its_dtype(toy, dtype, stored_name):
    spec, _, tensors, folder = toy
    tensors[Q] = tensors[Q].to(dtype)
    tensors[Q + "_scale"] = torch.ones(1)  # left over too, but not what the user must hear
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(
        WeightError, match=rf"{Q} is {stored_name}\): quantised checkpoints are not"
    ):
        load(folder, spec)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param(None, "is not a folder; expected a checkpoint folder", id="no-folder"),
        pytest.param([], r"no weights: .*\(found: no files\)", id="empty-folder"),
        pytest.param(["config.json"], r"no weights: .*\(found: config.json\)", id="config-only"),
        pytest.param(["pytorch_model.bin"], "pickled weights only .*save_pretrained", id="bin"),
        pytest.param(["consolidated.00.pth"], r"only \(consolidated.00.pth\)", id="pth"),
        pytest.param(["model.pt"], r"only \(model.pt\)", id="pt"),
        pytest.param(["a.safetensors", "b.safetensors"], "holds 2 safetensors files", id="two"),
    ],
)
def test_a_folder_without_usable_weights_says_what_it_holds(tmp_path, files, message):
    folder = tmp_path / "checkpoint"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_bytes(b"")

    with pytest.raises(WeightError, match=message):
        load(folder, toy_spec())


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "shard"])
@pytest.mark.parametrize("kept", [-1, 100, 8, 5, 0], ids=lambda kept: f"first-{kept}-bytes")
def test_a_truncated_file_is_named(toy, sharded, kept):
    spec, _, tensors, folder = toy
    if sharded:
        write_shards(folder, tensors)
    else:
        save_file(tensors, folder / "model.safetensors")
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:kept])

    with pytest.raises(WeightError, match=rf"{file.name} \(\d+ bytes\) is no whole safetensors"):
        load(folder, spec)


def test_a_pickle_under_a_safetensors_name_is_not_opened_as_one(toy):
    spec, _, tensors, folder = toy
    torch.save(tensors, folder / "model.safetensors")

    with pytest.raises(WeightError, match="is no whole safetensors file"):
        load(folder, spec)


def test_a_missing_shard_is_named(toy):
    spec, _, tensors, folder = toy
    names = sorted(tensors)
    write_shards(folder, {n: tensors[n] for n in names[:5]}, {n: tensors[n] for n in names[5:]})
    (folder / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(WeightError, match=r"1 of 2 shards .*\(model-00002-of-00002.safetensors\)"):
        load(folder, spec)


def test_an_index_of_another_download_is_an_error(toy):
    spec, _, tensors, folder = toy
    write_shards(folder, tensors, {"extra": torch.zeros(1)})
    moved = {name: tensor for name, tensor in tensors.items() if name != Q}
    save_file(moved, folder / "model-00001-of-00002.safetensors")

    with pytest.raises(WeightError, match=rf"1 tensors are not in the shard .*{Q} in model-00001"):
        load(folder, spec)


def test_a_tensor_in_two_shards_is_an_error(toy):
    spec, _, tensors, folder = toy
    write_shards(folder, tensors, {Q: tensors[Q], "lm_head.weight": tensors["lm_head.weight"]})

    with pytest.raises(WeightError, match=r"'lm_head.weight' stands in both model-00001"):
        load(folder, spec)


def test_a_tensor_that_the_index_does_not_name_must_have_a_place_too(toy):
    spec, _, tensors, folder = toy
    write_shards(folder, tensors)
    save_file(tensors | {"extra": torch.zeros(1)}, folder / "model-00001-of-00001.safetensors")

    with pytest.raises(WeightError, match=r"match no rule \(first: extra\)"):
        load(folder, spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "cannot be read as JSON", id="not-json"),
        pytest.param("\udcff", "cannot be read as JSON", id="not-text"),
        pytest.param("[]", "expected an object 'weight_map'", id="a-list"),
        pytest.param("{}", "expected an object 'weight_map'", id="no-weight-map"),
        pytest.param('{"weight_map": {}}', "expected an object 'weight_map'", id="empty"),
        pytest.param('{"weight_map": {"a": 1}}', "said to be in 1", id="number-as-shard"),
        pytest.param('{"weight_map": {"a": "../b"}}', "said to be in '../b'", id="parent-folder"),
        pytest.param('{"weight_map": {"a": "/b"}}', "said to be in '/b'", id="absolute-path"),
    ],
)
def test_a_malformed_index_is_an_error(tmp_path, text, message):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(WeightError, match=f"index.json.*{message}"):
        load(tmp_path, toy_spec())


def test_nothing_is_allocated_for_a_checkpoint_that_does_not_fit(toy, monkeypatch):
    spec, _, tensors, folder = toy
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    monkeypatch.setattr(torch, "empty", lambda *a, **k: pytest.fail("allocated a parameter"))

    with pytest.raises(WeightError, match="final_norm"):
        load(folder, spec)


def test_progress_counts_stored_bytes_up_to_the_total(toy):
    spec, _, tensors, folder = toy
    names = sorted(tensors)
    write_shards(folder, {n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]})
    calls = []

    load(folder, spec, dtype=torch.bfloat16, progress=lambda *call: calls.append(call))

    total = sum(tensor.numel() * 4 for tensor in tensors.values())
    done = [call[0] for call in calls]
    assert len(calls) == len(tensors)
    assert {call[1] for call in calls} == {total}
    assert done == sorted(set(done))
    assert done[-1] == total


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's RssAnon")
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_the_weights_exist_once_while_loading(tmp_path, stored):
    # RssAnon counts memory the process allocated, not pages of the mapped file, which belong to
    # the page cache and can be dropped at any time. 12 layers of 5 MB, embeddings and head of 8.
    spec = toy_spec(num_layers=12, hidden_size=16384, vocab_size=128)
    weights, tensors = checkpoint_tensors(spec)
    dtype = getattr(torch, stored)
    save_file({n: t.to(dtype) for n, t in tensors.items()}, tmp_path / "model.safetensors")
    num_bytes = sum(tensor.nbytes for tensor in weights.values())
    largest = max(tensor.nbytes for tensor in tensors.values())
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    script = textwrap.dedent("""
        import sys, threading, time
        from pathlib import Path
        import torch
        from infer_core import ModelSpec
        from infer_core.weights import load_checkpoint

        def anonymous_bytes():
            line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
            return int(line.split()[1]) * 1024

        def watch():
            while not loaded:
                peaks.append(anonymous_bytes())
                time.sleep(0.0005)

        folder = Path(sys.argv[1])
        spec = ModelSpec.model_validate_json((folder / "spec.json").read_text())
        peaks, loaded, before = [], [], anonymous_bytes()
        threading.Thread(target=watch).start()
        loaded.append(load_checkpoint(
            folder, spec, device="cpu", dtype=torch.float32,
            progress=lambda done, total: peaks.append(anonymous_bytes()),
        ))
        print(max(peaks) - before, anonymous_bytes() - before)
    """)

    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True
    )

    peak, kept = map(int, run.stdout.split())
    assert kept > 0.9 * num_bytes, "the measurement does not see the weights"
    # one tensor, and 8 MB for interpreter, thread and allocator
    assert peak < num_bytes + largest + 8 * 2**20


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shard_size", ["5GB", "5KB"], ids=["single", "sharded"])
def test_a_checkpoint_written_by_transformers_gives_its_state_dict(tmp_path, tied, shard_size):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():  # biases start as zeros, norms as ones
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "5KB")

    loaded = load(tmp_path, toy_spec(tied=tied, biases=True))

    state = model.state_dict()
    expected = {"embed": state["model.embed_tokens.weight"]}
    for layer in range(2):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
        attn, mlp = theirs + "self_attn.", theirs + "mlp."
        expected |= {
            ours + "attn_norm": state[theirs + "input_layernorm.weight"],
            ours + "qkv": torch.cat([state[f"{attn}{x}_proj.weight"] for x in "qkv"]),
            ours + "qkv_bias": torch.cat([state[f"{attn}{x}_proj.bias"] for x in "qkv"]),
            ours + "attn_out": state[attn + "o_proj.weight"],
            ours + "attn_out_bias": state[attn + "o_proj.bias"],
            ours + "mlp_norm": state[theirs + "post_attention_layernorm.weight"],
            ours + "gate_up": torch.cat([state[f"{mlp}{x}_proj.weight"] for x in ("gate", "up")]),
            ours + "gate_up_bias": torch.cat(
                [state[f"{mlp}{x}_proj.bias"] for x in ("gate", "up")]
            ),
            ours + "mlp_out": state[mlp + "down_proj.weight"],
            ours + "mlp_out_bias": state[mlp + "down_proj.bias"],
        }
    expected["final_norm"] = state["model.norm.weight"]
    if not tied:
        expected["lm_head"] = state["lm_head.weight"]
    assert_same(loaded, expected)


@needs_gpu
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16], ids=str)
def test_a_checkpoint_loads_the_same_onto_a_gpu(toy, wanted):
    spec, _, tensors, folder = toy
    save_file(tensors, folder / "model.safetensors")

    on_gpu = load_checkpoint(folder, spec, device="cuda", dtype=wanted)

    assert all(tensor.is_cuda for tensor in on_gpu.values())
    assert_same({n: w.cpu() for n, w in on_gpu.items()}, load(folder, spec, dtype=wanted))
