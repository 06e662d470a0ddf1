"""A small model spec that belongs to no family, for tests of the core alone."""

from infer_core import (
    AttentionLayout,
    BlockLayout,
    KVCachePolicy,
    ModelShape,
    ModelSpec,
    NormFlavour,
    Rope,
    WeightRule,
)


def toy_spec(
    *,
    num_layers=3,
    window=None,
    ring=False,
    qk_norm=None,
    biases=False,
    sandwich=False,
    placement=None,
    gated=True,
    tied=True,
    eos_token_ids=(),
    max_context=256,
    **block,
):
    """Build a spec with odd sizes; `window` applies to every layer but the last.

    `block` goes to BlockLayout.
    """
    windows = [window] * (num_layers - 1) + [None]
    attention = tuple(
        AttentionLayout(
            num_heads=6,
            num_kv_heads=2,
            head_dim=12,
            softmax_scale=12**-0.5,
            rope=Rope(theta=10000.0),
            window=layer_window,
            qk_norm=qk_norm,
            qkv_bias=biases,
            out_bias=biases,
        )
        for layer_window in windows
    )
    policies = tuple(
        KVCachePolicy(kind="ring", window=w) if ring and w else KVCachePolicy() for w in windows
    )
    return ModelSpec(
        architecture="ToyForCausalLM",
        plugin="toy",
        distribution="infer-toy",
        plugin_version="0.1.0",
        shape=ModelShape(
            num_layers=num_layers,
            hidden_size=40,
            intermediate_size=56,
            vocab_size=97,
            max_context=max_context,
            dtype="float32",
            tied_embeddings=tied,
        ),
        attention=attention,
        norm=NormFlavour(eps=1e-6, placement=placement or ("sandwich" if sandwich else "pre")),
        kv_cache=policies,
        block=BlockLayout(
            activation="silu" if gated else "gelu_tanh", gated=gated, mlp_bias=biases, **block
        ),
        weights=(WeightRule("embed.weight", "embed"),),
        eos_token_ids=eos_token_ids,
    )
