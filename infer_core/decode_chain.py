"""One decode step as a chain of fused kernels, five a layer, made for capture in a CUDA graph.

    norm + qkv -> attention -> out projection + residual -> norm + gate/up + activation ->
    down projection + residual -> ... -> norm + LM head + candidates -> pick + embed

Sampling takes the place of the pick: see `fused_sampling`.

Every difference between model families is a compile-time value taken from the specs. All state
(token, position, sequence) lives on the device, so a captured step replays without the host.
With programmatic dependent launch a kernel starts, and loads weights, while its predecessor still
runs; each kernel waits for its predecessor before it touches anything the chain writes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from infer_core.chain_tiles import ChainTiles, attention_split, default_tiles
from infer_core.fused_sampling import FusedSampling
from infer_core.kernels._common import has_pdl, num_multiprocessors
from infer_core.kernels.chain_attention import chain_attention
from infer_core.kernels.chain_types import Norm, Tile
from infer_core.kernels.linear_residual import linear_residual
from infer_core.kernels.lm_head import lm_head
from infer_core.kernels.norm_linear import norm_linear
from infer_core.kernels.pick_embed import NextInput, pick_embed
from infer_core.kernels.sampling_parts import SamplerState
from infer_core.sampling import GREEDY, SamplingKind
from infer_core.specs import ModelSpec
from infer_core.tuner import load_tiles, tiles_key


class DecodeChain:
    """Decode steps of one model over one KV cache, batch 1.

    Attributes (device tensors, fixed addresses): `token` int64 [1], input of the next step;
    `position` int32 [1], its position; `logits` [vocab_size] of the last step; `sequence` int64
    [max_context + 1], every token the chain has picked, at its position.

    The first kernel of a step starts only when the step before has ended. So every other kernel may
    read, before it waits, what only the end of a step writes (`position`) and what earlier steps
    wrote (past keys and values).
    """

    def __init__(
        self,
        spec: ModelSpec,
        parameters: Mapping[str, Tensor],
        rope_tables: Sequence[tuple[Tensor, Tensor]],
        kv_cache: Sequence[tuple[Tensor, Tensor]],
        *,
        max_context: int,
        sequence: Tensor | None = None,
        position: Tensor | None = None,
        sampler: SamplerState | None = None,
        pdl: bool | None = None,
        tiles: ChainTiles | None = None,
    ) -> None:
        """Plan the launches; nothing runs yet.

        `rope_tables`: (cos, sin) of every layer, float32 [context, rotary_dim / 2]. `kv_cache`:
        (k, v) of every layer, [num_kv_heads, capacity, head_dim]. `max_context` bounds the
        positions of this chain and with them the attention parts. `sequence`, `position`: state
        shared with the caller. `sampler`: what a request brings; without it every step is plain
        argmax. `pdl=None`: where the GPU has it (compute capability 9.0 and later).

        Raises:
            ValueError: the tables or caches do not cover every layer and `max_context`.
        """
        layers = spec.shape.num_layers
        if len(rope_tables) != layers or len(kv_cache) != layers:
            raise ValueError(
                f"DecodeChain: {layers} layers need as many rope tables and caches; "
                f"got {len(rope_tables)} and {len(kv_cache)}"
            )
        short = min(cos.shape[0] for cos, _ in rope_tables)
        if short < max_context:
            raise ValueError(
                f"DecodeChain: rope tables hold {short} positions, max_context is {max_context}"
            )
        embed = parameters["embed"]
        device, dtype = embed.device, embed.dtype
        self.pdl = has_pdl(device) if pdl is None else pdl
        self._sms = num_multiprocessors(device)
        self._tiles = tiles or self._kept_tiles(spec, embed) or default_tiles(spec, self._sms)
        self._spec = spec
        self._norm = Norm(spec.norm.eps, spec.norm.weight_offset, spec.norm.weight_in_fp32)
        self._embed = embed
        self._head = parameters.get("lm_head", embed)

        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        if position is None:
            position = torch.zeros(1, dtype=torch.int32, device=device)
        if sequence is None:
            sequence = torch.zeros(max_context + 1, dtype=torch.int64, device=device)
        self.position, self.sequence = position, sequence
        self.logits = torch.zeros(spec.shape.vocab_size, dtype=torch.float32, device=device)

        hidden = spec.shape.hidden_size
        self._x = torch.zeros(hidden, dtype=dtype, device=device)
        self._x_other = torch.zeros_like(self._x)  # the residual stream alternates, sandwich only
        programs = self._programs(self._tiles.lm_head, spec.shape.vocab_size)
        self._candidates = (
            torch.zeros(programs, dtype=torch.float32, device=device),
            torch.zeros(programs, dtype=torch.int32, device=device),
        )
        self._next = NextInput(
            self.token, self.position, self.sequence, embed, self._x,
            scale=spec.block.embedding_scale,
        )  # fmt: skip
        self._sampling: FusedSampling | None = None
        if sampler is not None:
            self._sampling = FusedSampling(sampler, spec.shape.vocab_size, device)
        self._launches = self._plan(parameters, rope_tables, kv_cache, max_context)

    @staticmethod
    def _kept_tiles(spec: ModelSpec, embed: Tensor) -> ChainTiles | None:
        """Tiles that were tuned on this GPU, if any."""
        if embed.device.type != "cuda":
            return None
        gpu = torch.cuda.get_device_name(embed.device)
        return load_tiles(tiles_key(spec, embed.dtype, gpu))

    def begin(self, token: int, position: int) -> None:
        """Set the token that the next step reads, and its position."""
        self.token.fill_(token)
        self.position.fill_(position)
        pick_embed(self._next, advance=False)

    def step(self, kind: SamplingKind = GREEDY) -> None:
        """Enqueue one step: write the token's keys and values, compute `logits`, pick.

        The pick goes to `token` and `sequence`, `position` advances, the pick is embedded.

        Raises:
            ValueError: `kind` is not plain argmax, and the chain was made without a sampler.
        """
        for launch in self._launches:
            launch()
        self._pick(kind)

    def finish_prefill(self, normed: Tensor, kind: SamplingKind = GREEDY) -> None:
        """Enqueue the end of a prefill: `logits` of its last row, and the pick, as `step`.

        `normed` [hidden_size]: what the final norm has left of the row, whose position is in
        `position`.

        Raises:
            ValueError: as `step`.
        """
        lm_head(
            normed, None, self._head, self.logits, *self._candidates, None,
            tile=self._tiles.lm_head, softcap=self._spec.block.final_logit_softcap, pdl=self.pdl,
        )  # fmt: skip
        self._pick(kind)

    def advance(self) -> None:
        """Enqueue the end of a step whose token another has written to `token`."""
        pick_embed(self._next)

    def _pick(self, kind: SamplingKind) -> None:
        if kind == GREEDY:
            pick_embed(self._next, candidates=self._candidates, pdl=self.pdl)
        elif self._sampling is None:
            raise ValueError(f"DecodeChain: made without a sampler, asked to pick by {kind}")
        else:
            self._sampling.pick(
                kind, self.logits, self._next, candidates=self._candidates, pdl=self.pdl
            )

    def _programs(self, tile: Tile, num_rows: int) -> int:
        return min(self._sms * tile.per_sm, -(-num_rows // tile.rows))

    def _plan(
        self,
        parameters: Mapping[str, Tensor],
        rope_tables: Sequence[tuple[Tensor, Tensor]],
        kv_cache: Sequence[tuple[Tensor, Tensor]],
        max_context: int,
    ) -> list[Callable[[], None]]:
        """Bind every launch of a step to its buffers, in order."""
        spec, tiles = self._spec, self._tiles
        block, hidden = spec.block, spec.shape.hidden_size
        sandwich = spec.norm.placement == "sandwich"
        empty = partial(torch.zeros, dtype=self._x.dtype, device=self._x.device)
        delta = empty(hidden)  # a block's output before its norm, sandwich only
        inner = empty(spec.shape.intermediate_size)
        launches: list[Callable[[], None]] = []
        x, x_other = self._x, self._x_other

        def normed(post_weight: str, *, first: bool = False) -> dict[str, Any]:
            """Arguments that add the last block's normed output; none for 'pre' norms."""
            if not sandwich or first:
                return {}
            return {
                "delta": delta,
                "post_weight": parameters[post_weight],
                "x_out": x_other,
            }

        for layer, attention in enumerate(spec.attention):
            name = f"layers.{layer}."
            k_cache, v_cache = kv_cache[layer]
            capacity = k_cache.shape[1]
            slots = min(capacity, max_context)
            plan = attention_split(attention, slots, tiles.attention)
            qkv_rows = (attention.num_heads + 2 * attention.num_kv_heads) * attention.head_dim
            width = attention.num_heads * attention.head_dim
            num_parts = 1 + -(-slots // plan.split)
            qkv, out = empty(qkv_rows), empty((num_parts, width))
            lse = empty((num_parts, attention.num_heads), dtype=torch.float32)
            cos, sin = rope_tables[layer]

            extra = normed(f"layers.{layer - 1}.mlp_post_norm", first=layer == 0)
            launches.append(
                partial(
                    norm_linear, x, parameters[name + "attn_norm"], parameters[name + "qkv"], qkv,
                    self._norm, bias=parameters.get(name + "qkv_bias"),
                    tile=tiles.qkv, programs=self._programs(tiles.qkv, qkv_rows),
                    # a step starts when the one before has ended: see the class docstring
                    pdl=self.pdl, early=layer > 0, **extra,
                )
            )  # fmt: skip
            if extra:
                x, x_other = x_other, x
            launches.append(
                partial(
                    chain_attention, qkv, k_cache, v_cache, self.position, cos, sin, out, lse,
                    split=plan.split, block=plan.block, warps=plan.warps,
                    max_slots=slots, softmax_scale=attention.softmax_scale,
                    window=attention.window, logit_softcap=attention.logit_softcap,
                    q_norm=parameters.get(name + "q_norm"),
                    k_norm=parameters.get(name + "k_norm"),
                    norm=self._norm if attention.qk_norm is not None else None, pdl=self.pdl,
                )
            )  # fmt: skip
            launches.append(
                partial(
                    linear_residual, out, parameters[name + "attn_out"], delta if sandwich else x,
                    residual=None if sandwich else x, bias=parameters.get(name + "attn_out_bias"),
                    lse=lse, position=self.position, capacity=slots, split=plan.split,
                    tile=tiles.attn_out, programs=self._programs(tiles.attn_out, hidden),
                    pdl=self.pdl,
                )
            )  # fmt: skip
            extra = normed(name + "attn_post_norm")
            launches.append(
                partial(
                    norm_linear, x, parameters[name + "mlp_norm"], parameters[name + "gate_up"],
                    inner, self._norm, bias=parameters.get(name + "gate_up_bias"),
                    activation=block.activation, gated=block.gated,
                    tile=tiles.gate_up, programs=self._programs(tiles.gate_up, inner.shape[0]),
                    pdl=self.pdl, **extra,
                )
            )  # fmt: skip
            if extra:
                x, x_other = x_other, x
            launches.append(
                partial(
                    linear_residual, inner, parameters[name + "mlp_out"], delta if sandwich else x,
                    residual=None if sandwich else x, bias=parameters.get(name + "mlp_out_bias"),
                    tile=tiles.mlp_out, programs=self._programs(tiles.mlp_out, hidden),
                    pdl=self.pdl,
                )
            )  # fmt: skip
        launches.append(
            partial(
                lm_head, x, parameters["final_norm"], self._head,
                self.logits, *self._candidates, self._norm, tile=tiles.lm_head,
                softcap=block.final_logit_softcap, pdl=self.pdl,
                **normed(f"layers.{spec.shape.num_layers - 1}.mlp_post_norm"),
            )
        )  # fmt: skip
        return launches


def supports(spec: ModelSpec) -> bool:
    """Whether the fused kernels cover all that the spec asks for."""
    return not spec.uncommon
