"""One decoder for every family: what differs comes from the specs as values, not as branches."""

import torch
import torch.nn.functional as F

from infer_core.kv_cache import KVCache
from infer_core.ops import Ops
from infer_core.rope import rope_tables
from infer_core.specs import ModelSpec, Rope


class Decoder:
    """The forward pass over a model's parameters; holds no per-request state.

    `parameters` has the names and shapes of `infer_core.parameters.model_parameters`; `context`
    bounds the positions it will see. Rows beyond it, of a piece run at a larger size, are padding:
    `padding` of them at most, whose results nobody reads.
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
        spec, ops, block = self.spec, self.ops, self.spec.block
        norm = {
            "weight_offset": spec.norm.weight_offset,
            "weight_in_fp32": spec.norm.weight_in_fp32,
        }
        eps = spec.norm.eps
        get = self.parameters.get
        residual = ops.embed(tokens, self.parameters["embed"], block.embedding_scale)
        normed = ops.rms_norm(residual, self.parameters["layers.0.attn_norm"], eps, **norm)
        for layer in range(spec.shape.num_layers):
            prefix = f"layers.{layer}."
            attended = self._attention(
                layer, normed, cache, start, count, is_prefill=is_prefill, is_fresh=is_fresh
            )
            normed, residual = ops.add_rms_norm(
                attended,
                residual,
                self.parameters[prefix + "mlp_norm"],
                eps,
                post_weight=get(prefix + "attn_post_norm"),
                **norm,
            )
            wide = F.linear(
                normed, self.parameters[prefix + "gate_up"], get(prefix + "gate_up_bias")
            )
            activate = ops.gated_activation if block.gated else ops.activation
            narrow = F.linear(
                activate(wide, block.activation),
                self.parameters[prefix + "mlp_out"],
                get(prefix + "mlp_out_bias"),
            )
            following = get(f"layers.{layer + 1}.attn_norm", self.parameters["final_norm"])
            normed, residual = ops.add_rms_norm(
                narrow, residual, following, eps, post_weight=get(prefix + "mlp_post_norm"), **norm
            )
        if every_row:
            rows = normed
        elif count is None:
            rows = normed[-1:]
        else:
            rows = normed.index_select(0, count - 1)
        logits = F.linear(rows, get("lm_head", self.parameters["embed"])).float()
        if block.final_logit_softcap is not None:
            logits = torch.tanh(logits / block.final_logit_softcap) * block.final_logit_softcap
        return logits

    def _attention(
        self,
        layer: int,
        normed: torch.Tensor,
        cache: KVCache,
        start: torch.Tensor,
        count: torch.Tensor | None,
        *,
        is_prefill: bool,
        is_fresh: bool,
    ) -> torch.Tensor:
        spec, ops, layout = self.spec, self.ops, self.spec.attention[layer]
        prefix = f"layers.{layer}."
        get = self.parameters.get
        keys, values = cache.keys[layer], cache.values[layer]
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
        qkv = F.linear(normed, self.parameters[prefix + "qkv"], get(prefix + "qkv_bias"))
        # A piece of a prompt reads ring slots that its own tokens will take over, so it writes
        # afterwards; a single token takes the one slot that has just left its window, and a
        # layer that keeps everything has a slot for each.
        write_now = not is_prefill or is_fresh or spec.kv_cache[layer].kind == "full"
        caches = {"k_cache": keys, "v_cache": values, "count": count}
        ops.qk_norm_rope(
            qkv,
            cos,
            sin,
            start,
            **heads,
            q_weight=get(prefix + "q_norm"),
            k_weight=get(prefix + "k_norm"),
            eps=spec.norm.eps,
            weight_offset=spec.norm.weight_offset,
            weight_in_fp32=spec.norm.weight_in_fp32,
            **(caches if write_now else {}),
        )
        if is_prefill:
            out = ops.prefill_attention(qkv, keys, values, start, **heads, **scores)
            if not write_now:
                ops.write_kv(qkv, start, keys, values, **heads, count=count)
        else:
            out = ops.decode_attention(
                qkv, keys, values, start, **heads, **scores, max_context=self.context
            )
        return F.linear(out, self.parameters[prefix + "attn_out"], get(prefix + "attn_out_bias"))
