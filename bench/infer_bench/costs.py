"""What a model's passes have to move and compute, from its spec alone."""

from infer_core import ModelSpec
from infer_core.parameters import model_parameters


def decode_step_bytes(
    spec: ModelSpec, *, weight_bytes: int, element_bytes: int, context: int
) -> int:
    """Count the bytes one decode step must read with `context` tokens cached.

    Every weight once, and of each layer's cache the tokens its window lets it see. An embedding
    table that is not also the LM head is left out: a step reads one row of it.
    """
    shape = spec.shape
    unread = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    cached = sum(
        2 * layer.num_kv_heads * layer.head_dim * min(context, layer.window or context)
        for layer in spec.attention
    )
    return weight_bytes + (cached - unread) * element_bytes


def prefill_flops(spec: ModelSpec, *, prompt_tokens: int) -> int:
    """Count the multiplications and additions a prompt needs.

    Two for each element of a matrix and token; two for each query, visible key and dimension, once
    for scores and once for values. Of the last layer that is keys and values of every token, and
    the rest for the last token alone, as for the LM head. Norms, activations and softmax are left
    out: they are not what a matrix unit does.
    """
    *layers, last = spec.attention
    last_prefix = f"layers.{len(layers)}."
    key_value_rows = 2 * last.num_kv_heads * last.head_dim
    every_token = key_value_rows * spec.shape.hidden_size
    # less the rows just counted, which the last layer's matrix of q, k and v brings once more
    last_token = spec.shape.vocab_size * spec.shape.hidden_size - every_token
    for name, parameter in model_parameters(spec).items():
        if len(parameter.shape) != 2 or name in ("embed", "lm_head"):
            continue
        if name.startswith(last_prefix):
            last_token += _elements(parameter.shape)
        else:
            every_token += _elements(parameter.shape)
    attention = sum(
        4 * layer.num_heads * layer.head_dim * _visible(prompt_tokens, layer.window)
        for layer in layers
    )
    seen = min(prompt_tokens, last.window or prompt_tokens)
    attention += 4 * last.num_heads * last.head_dim * seen
    return 2 * (every_token * prompt_tokens + last_token) + attention


def _visible(num_tokens: int, window: int | None) -> int:
    """Sum over a prompt's tokens how many each may attend to, itself included."""
    full = min(num_tokens, window or num_tokens)
    return full * (full + 1) // 2 + (num_tokens - full) * full


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
