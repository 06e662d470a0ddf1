"""One decoder for every family: what differs comes from the specs as values, not as branches."""

import importlib
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from infer_core.errors import PluginContractError, PluginError
from infer_core.kv_cache import KVCache
from infer_core.ops import Ops
from infer_core.rope import rope_tables
from infer_core.specs import ModelSpec, Rope

# From so many tokens on, the last layer ends for one of them alone. On an H100 that saved 2 to 3 %
# of a prefill of 1,024 tokens and nothing of 256; at 64 its small kernels cost 1 %.
ALONE_FROM = 512


@dataclass(frozen=True, slots=True)
class Piece:
    """The tokens of one pass, seen from the cache; as the arguments of `Decoder.forward`.

    `row` [1], int32, on the device: the only token of a prompt whose output is wanted; without it
    every token's is.
    """

    cache: KVCache
    start: torch.Tensor
    count: torch.Tensor | None
    is_prefill: bool
    is_fresh: bool
    row: torch.Tensor | None = None


class Decoder:
    """The forward pass over a model's parameters; holds no per-request state.

    `parameters` has the names and shapes of `infer_core.parameters.model_parameters`; `context`
    bounds the positions it will see. Rows beyond it, of a piece run at a larger size, are padding:
    `padding` of them at most, whose results nobody reads.

    A plugin's own decoder derives from this and overrides `hidden`, in which nothing may visit
    the host, for it is captured; `attention` is for it too.
    """

    def __init__(
        self,
        spec: ModelSpec,
        parameters: dict[str, torch.Tensor],
        *,
        context: int,
        ops: Ops,
        padding: int = 0,
    ) -> None:
        self.spec = spec
        self.parameters = parameters
        self.context = context
        self.ops = ops
        embed = parameters["embed"]
        tables: dict[tuple[Rope, int], tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in spec.attention:
            key = (layer.rope, layer.rotary_dim)
            if key not in tables:
                tables[key] = rope_tables(*key, context + padding, embed.device)
        self.rope = [tables[layer.rope, layer.rotary_dim] for layer in spec.attention]

    def forward(
        self,
        tokens: torch.Tensor,
        cache: KVCache,
        start: torch.Tensor,
        *,
        is_prefill: bool,
        count: torch.Tensor | None = None,
        is_fresh: bool = False,
        every_row: bool = False,
    ) -> torch.Tensor:
        """Run `tokens`, the first of which is at position `start`, and add them to `cache`.

        Shapes: tokens [num_tokens], int64; start and count [1], int32, on the device, so that a
            captured graph can be replayed at any position; the first `count` tokens (all of them
            without it) are real, the others padding. `is_fresh` promises that `start` is 0, so
            that nothing of the cache is read. Returns logits [num_rows, vocab_size],
            float32, of the last real token, or of every token with `every_row`.
        """
        row = None
        if is_prefill and not every_row:
            last = len(tokens) - 1
            row = torch.full_like(start, last) if count is None else count - 1
        rows = self.output(tokens, Piece(cache, start, count, is_prefill, is_fresh, row))
        block = self.spec.block
        head = self.parameters.get("lm_head", self.parameters["embed"])
        logits = F.linear(rows, head).float()
        if block.logits_scale != 1.0:
            logits = logits * block.logits_scale
        if block.final_logit_softcap is not None:
            logits = torch.tanh(logits / block.final_logit_softcap) * block.final_logit_softcap
        return logits

    def output(self, tokens: torch.Tensor, piece: Piece) -> torch.Tensor:
        """Run every layer; give the output of the final norm, of `piece.row` alone if it is given.

        Shapes: tokens [num_tokens], int64; returns [num_rows, hidden_size].
        """
        rows = self.hidden(tokens, piece)
        return rows if piece.row is None or len(rows) == 1 else rows.index_select(0, piece.row)

    def hidden(self, tokens: torch.Tensor, piece: Piece) -> torch.Tensor:
        """Run every layer; give the output of the final norm.

        Shapes: tokens [num_tokens], int64; returns [num_tokens, hidden_size], or of `piece.row`
            alone [1, hidden_size].
        """
        spec, ops, block = self.spec, self.ops, self.spec.block
        norm = {
            "weight_offset": spec.norm.weight_offset,
            "weight_in_fp32": spec.norm.weight_in_fp32,
        }
        eps = spec.norm.eps
        get = self.parameters.get
        residual = ops.embed(tokens, self.parameters["embed"], block.embedding_scale)
        normed = residual  # what a block reads: the normalised residual, or with 'post' itself
        if spec.norm.before:
            normed = ops.rms_norm(residual, self.parameters["layers.0.attn_norm"], eps, **norm)
        flags = ops.mlp_flags(normed, spec.shape.intermediate_size, spec.shape.num_layers)
        for layer in range(spec.shape.num_layers):
            last = layer + 1 == spec.shape.num_layers
            prefix = f"layers.{layer}."
            alone = self._alone(layer, piece, len(normed))
            if alone is not None:
                residual = residual.index_select(0, alone)
            # what add_rms_norm takes has no name, so that its memory is free for what comes next
            normed, residual = ops.add_rms_norm(
                ops.linear_parts(
                    self._attend(layer, normed, piece),
                    self.parameters[prefix + "attn_out"],
                    get(prefix + "attn_out_bias"),
                ),
                residual,
                get(prefix + "mlp_norm"),
                eps,
                post_weight=get(prefix + "attn_post_norm"),
                residual_scale=block.residual_scale,
                **norm,
            )
            normed, residual = ops.add_rms_norm(
                ops.mlp_parts(
                    normed,
                    self.parameters[prefix + "gate_up"],
                    self.parameters[prefix + "mlp_out"],
                    get(prefix + "gate_up_bias"),
                    get(prefix + "mlp_out_bias"),
                    activation=block.activation,
                    gated=block.gated,
                    flags=None if flags is None or alone is not None else flags[layer],
                ),
                residual,
                get("final_norm" if last else f"layers.{layer + 1}.attn_norm"),
                eps,
                post_weight=get(prefix + "mlp_post_norm"),
                residual_scale=block.residual_scale,
                **norm,
            )
        return normed

    def attention(self, layer: int, normed: torch.Tensor, piece: Piece) -> torch.Tensor:
        """Attention of one layer over the cache and `normed`, whose K and V are added to it.

        Shapes: normed and result [num_tokens, hidden_size].
        """
        prefix = f"layers.{layer}."
        return self.ops.linear(
            self._attend(layer, normed, replace(piece, row=None)),
            self.parameters[prefix + "attn_out"],
            self.parameters.get(prefix + "attn_out_bias"),
        )

    def _alone(self, layer: int, piece: Piece, num_tokens: int) -> torch.Tensor | None:
        """The row that goes on alone from the attention of this layer, the others being done.

        Nothing after the last layer's keys and values needs the other tokens. The row reads them
        from the cache, which must hold them (without a cache it has one slot).
        """
        is_last = layer + 1 == self.spec.shape.num_layers
        has_cache = piece.cache.context >= self.context
        return piece.row if is_last and has_cache and num_tokens >= ALONE_FROM else None

    def _attend(self, layer: int, normed: torch.Tensor, piece: Piece) -> torch.Tensor:
        """Give what the out projection takes: [num_rows, num_heads * head_dim]."""
        spec, ops, layout = self.spec, self.ops, self.spec.attention[layer]
        prefix = f"layers.{layer}."
        get = self.parameters.get
        start, count = piece.start, piece.count
        keys, values = piece.cache.keys[layer], piece.cache.values[layer]
        heads = {
            "num_heads": layout.num_heads,
            "num_kv_heads": layout.num_kv_heads,
            "head_dim": layout.head_dim,
        }
        scores = {
            "softmax_scale": layout.softmax_scale,
            "window": layout.window,
            "logit_softcap": layout.logit_softcap,
        }
        cos, sin = self.rope[layer]
        norm = {
            "eps": spec.norm.eps,
            "weight_offset": spec.norm.weight_offset,
            "weight_in_fp32": spec.norm.weight_in_fp32,
        }
        # A piece of a prompt reads ring slots that its own tokens will take over, so it writes
        # afterwards; a single token takes the one slot that has just left its window, and a
        # layer that keeps everything has a slot for each. A row that goes on alone sees what a
        # ring holds afterwards.
        alone = self._alone(layer, piece, len(normed))
        keeps_all = spec.kv_cache[layer].kind == "full"
        write_now = not piece.is_prefill or piece.is_fresh or keeps_all or alone is not None
        caches = {"k_cache": keys, "v_cache": values, "count": count} if write_now else {}
        q_weight, k_weight = get(prefix + "q_norm"), get(prefix + "k_norm")
        weight, bias = self.parameters[prefix + "qkv"], get(prefix + "qkv_bias")
        if layout.qk_norm == "projection":
            qkv = ops.linear(normed, weight, bias)
            q_rows = layout.num_heads * layout.head_dim
            k_rows = layout.num_kv_heads * layout.head_dim
            q, k, _ = qkv.split([q_rows, k_rows, k_rows], dim=1)
            ops.rms_norm(q, q_weight, **norm, in_place=True)
            ops.rms_norm(k, k_weight, **norm, in_place=True)
            ops.qk_norm_rope(qkv, cos, sin, start, **heads, **caches)
        else:
            head_norm = {"q_weight": q_weight, "k_weight": k_weight, **norm}
            qkv = ops.qkv_linear(
                normed, weight, bias, cos, sin, start, **heads, **head_norm, **caches
            )
        if piece.is_prefill and alone is None:
            out = ops.prefill_attention(
                qkv, keys, values, start, **heads, **scores, is_fresh=piece.is_fresh
            )
            if not write_now:
                ops.write_kv(qkv, start, keys, values, **heads, count=count)
        else:
            if alone is not None:
                qkv, start = qkv.index_select(0, alone), start + alone
            out = ops.decode_attention(
                qkv, keys, values, start, **heads, **scores, max_context=self.context
            )
        attended: torch.Tensor = out
        return attended


def decoder_class(spec: ModelSpec) -> type[Decoder]:
    """Give the class that runs a model: the core's, or the one its plugin names instead.

    Raises:
        PluginError: importing the plugin's module failed.
        PluginContractError: there is no such class, or it is no subclass of `Decoder`.
    """
    custom = spec.block.decoder
    if custom is None:
        return Decoder
    who = f"plugin {spec.plugin!r}: the decoder {custom.target!r} of infer_block_layout"
    mend = f"pip install --upgrade {spec.distribution or '<its distribution>'}"
    module, _, name = custom.target.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a stranger's import may raise anything
        raise PluginError(
            f"{who} cannot be imported ({type(error).__name__}: {error})", mend=mend
        ) from error
    if not (isinstance(found, type) and issubclass(found, Decoder)):
        raise PluginContractError(
            f"{who} is {found!r}, expected a subclass of infer_core.Decoder", mend=mend
        )
    return found
