"""Which parameters a model has, their shapes, and which rows a stacked part fills.

Names: `embed`, `final_norm`, `lm_head` (untied only) and, for each layer `layers.{i}.`,
`attn_norm`, `qkv`, `qkv_bias`, `q_norm`, `k_norm`, `attn_out`, `attn_out_bias`,
`attn_post_norm`, `mlp_norm`, `gate_up`, `gate_up_bias`, `mlp_out`, `mlp_out_bias`,
`mlp_post_norm`; those a spec does not ask for do not exist, and a custom decoder may omit some
and add its own.
"""

from dataclasses import dataclass

from infer_core.errors import PluginContractError
from infer_core.specs import CustomDecoder, ModelSpec, Part


@dataclass(frozen=True, slots=True)
class Parameter:
    """Shape of one parameter and, when it is stacked, the rows [start, stop) of each part."""

    shape: tuple[int, ...]
    parts: dict[Part, tuple[int, int]]


def model_parameters(spec: ModelSpec) -> dict[str, Parameter]:
    """List every parameter of a model, by name, in the order the forward pass uses them."""
    shape, block = spec.shape, spec.block
    hidden, inter = shape.hidden_size, shape.intermediate_size
    parameters = {"embed": Parameter((shape.vocab_size, hidden), {})}

    def add(name: str, *dims: int, parts: dict[Part, tuple[int, int]] | None = None) -> None:
        parameters[name] = Parameter(dims, parts or {})

    for layer, attention in enumerate(spec.attention):
        q_rows = attention.num_heads * attention.head_dim
        kv_rows = attention.num_kv_heads * attention.head_dim
        qkv_rows = q_rows + 2 * kv_rows
        qkv_parts: dict[Part, tuple[int, int]] = {
            "q": (0, q_rows),
            "k": (q_rows, q_rows + kv_rows),
            "v": (q_rows + kv_rows, qkv_rows),
        }
        prefix = f"layers.{layer}."
        if spec.norm.before:
            add(prefix + "attn_norm", hidden)
        add(prefix + "qkv", qkv_rows, hidden, parts=qkv_parts)
        if attention.qkv_bias:
            add(prefix + "qkv_bias", qkv_rows, parts=qkv_parts)
        if attention.qk_norm == "head":
            add(prefix + "q_norm", attention.head_dim)
            add(prefix + "k_norm", attention.head_dim)
        elif attention.qk_norm == "projection":
            add(prefix + "q_norm", q_rows)
            add(prefix + "k_norm", kv_rows)
        add(prefix + "attn_out", hidden, q_rows)
        if attention.out_bias:
            add(prefix + "attn_out_bias", hidden)
        if spec.norm.after:
            add(prefix + "attn_post_norm", hidden)
        if spec.norm.before:
            add(prefix + "mlp_norm", hidden)
        up_rows = 2 * inter if block.gated else inter
        up_parts: dict[Part, tuple[int, int]] = (
            {"gate": (0, inter), "up": (inter, 2 * inter)} if block.gated else {}
        )
        add(prefix + "gate_up", up_rows, hidden, parts=up_parts)
        if block.mlp_bias:
            add(prefix + "gate_up_bias", up_rows, parts=up_parts)
        add(prefix + "mlp_out", hidden, inter)
        if block.mlp_bias:
            add(prefix + "mlp_out_bias", hidden)
        if spec.norm.after:
            add(prefix + "mlp_post_norm", hidden)
    add("final_norm", hidden)
    if not shape.tied_embeddings:
        add("lm_head", shape.vocab_size, hidden)
    return parameters if block.decoder is None else _customised(parameters, block.decoder, spec)


def _customised(
    parameters: dict[str, Parameter], decoder: CustomDecoder, spec: ModelSpec
) -> dict[str, Parameter]:
    """Leave out and add what a custom decoder says.

    Raises:
        PluginContractError: it omits a parameter there is not, or adds one there is.
    """

    def every_layer(name: str) -> list[str]:
        layers = range(spec.shape.num_layers) if "{layer}" in name else (0,)
        return [name.replace("{layer}", str(layer)) for layer in layers]

    omits = {name for template in decoder.omits for name in every_layer(template)}
    adds = {name: shape for t, shape in decoder.adds.items() for name in every_layer(t)}
    unknown, twice = omits - parameters.keys(), adds.keys() & (parameters.keys() - omits)
    if unknown or twice:
        raise PluginContractError(
            f"plugin {spec.plugin!r}: infer_block_layout's decoder omits parameters that do not "
            f"exist ({', '.join(sorted(unknown)) or 'none'}), or adds some that do "
            f"({', '.join(sorted(twice)) or 'none'}); see infer_core.parameters for the names"
        )
    kept = {name: each for name, each in parameters.items() if name not in omits}
    return kept | {name: Parameter(shape, {}) for name, shape in adds.items()}
