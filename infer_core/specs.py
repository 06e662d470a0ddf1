"""What a plugin says about a model family: frozen data, checked when built, no torch.

Each hook of `infer_core.hookspecs` returns one of these. `ModelSpec` is the sum of the
answers; everything below the plugin layer works from it alone.
"""

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

DType = Literal["float32", "bfloat16", "float16"]
Activation = Literal["silu", "gelu_tanh", "gelu"]
Part = Literal["q", "k", "v", "gate", "up"]


class Spec(BaseModel):
    """Base: immutable, unknown fields refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class ReferenceModel(Spec):
    """A published model a benchmark can run without any download.

    `config` is the published config.json as it stands on the hub; `tiny_config` has the same
    architecture in sizes a CPU runs in seconds.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$", description="what --model takes")
    label: str = Field(min_length=1, description="column heading in reports")
    hub_id: str = Field(pattern=r"^[^/\s]+/[^/\s]+$")
    revision: str = Field(min_length=1, description="commit of the hub repository")
    config: dict[str, Any]
    tiny_config: dict[str, Any]


class Architectures(Spec):
    """The names of config.json a plugin answers for, and its reference models."""

    architectures: tuple[str, ...] = Field(min_length=1)
    model_types: tuple[str, ...] = ()
    reference_models: tuple[ReferenceModel, ...] = ()


class ConfigFields(Spec):
    """Which config.json fields a plugin honours, insists on, or may ignore.

    A field in none of the four, and not among those the core handles for every family, must
    be absent or null; any other value is an error that names it. `rope_parameters.NAME` stands
    for a field inside the RoPE parameters, of whichever layer type.
    """

    honoured: frozenset[str]
    defaults: dict[str, Any] = Field(
        default={}, description="further honoured fields -> the family's value when one is omitted"
    )
    required: dict[str, tuple[Any, ...]] = Field(
        default={}, description="field -> values it may have (absent and null always may)"
    )
    ignored: dict[str, str] = Field(default={}, description="field -> why it changes no token")

    @model_validator(mode="after")
    def _one_verdict_a_field(self) -> Self:
        names = [*self.honoured, *self.defaults, *self.required, *self.ignored]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"fields {twice} stand in more than one of honoured/defaults/required/ignored"
            )
        return self


class ModelShape(Spec):
    """Sizes of one decoder, as the checkpoint states them."""

    num_layers: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    max_context: PositiveInt = Field(description="tokens the model was made for, prompt included")
    dtype: DType
    tied_embeddings: bool


class LinearRopeScaling(Spec):
    """Positions divided by `factor` (position interpolation)."""

    kind: Literal["linear"] = "linear"
    factor: PositiveFloat


class Llama3RopeScaling(Spec):
    """Long wavelengths divided by `factor`, short ones kept, a linear blend between."""

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat
    low_freq_factor: PositiveFloat
    high_freq_factor: PositiveFloat
    original_max_position_embeddings: PositiveInt


class YarnRopeScaling(Spec):
    """YaRN (arXiv:2309.00071): blended frequencies and a factor on cos and sin."""

    kind: Literal["yarn"] = "yarn"
    factor: PositiveFloat
    original_max_position_embeddings: PositiveInt
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    attention_factor: PositiveFloat | None = Field(
        default=None, description="None: 0.1 * ln(factor) + 1"
    )
    truncate: bool = True


RopeScaling = LinearRopeScaling | Llama3RopeScaling | YarnRopeScaling


class Rope(Spec):
    """Rotary embedding of q and k; halves rotated, as Hugging Face checkpoints store them."""

    theta: PositiveFloat
    rotary_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    scaling: RopeScaling | None = Field(default=None, discriminator="kind")


class AttentionLayout(Spec):
    """Attention of one layer."""

    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    softmax_scale: PositiveFloat
    rope: Rope
    window: PositiveInt | None = Field(
        default=None, description="a token sees itself and the window - 1 tokens before it"
    )
    qk_norm: Literal["head", "projection"] | None = Field(
        default=None,
        description="RMSNorm before RoPE: 'head' of every q and k head, 'projection' of all "
        "q heads together and of all k heads together",
    )
    qkv_bias: bool = False
    out_bias: bool = False
    logit_softcap: PositiveFloat | None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) is odd; RoPE rotates pairs")
        return self

    @property
    def group_size(self) -> int:
        """Query heads per key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def rotary_dim(self) -> int:
        """Leading elements of a head that RoPE rotates."""
        return int(self.head_dim * self.rope.rotary_fraction)


class NormFlavour(Spec):
    """RMSNorm: `x / sqrt(mean(x**2) + eps) * (weight + weight_offset)`.

    `weight_in_fp32` multiplies before rounding to the model's dtype, otherwise after.
    `placement`: 'pre' normalises a block's input; 'post' its output, before the residual is
    added; 'sandwich' both.
    """

    eps: PositiveFloat
    weight_offset: float = 0.0
    weight_in_fp32: bool = False
    placement: Literal["pre", "sandwich", "post"] = "pre"

    @property
    def before(self) -> bool:
        """Whether a block's input is normalised."""
        return self.placement != "post"

    @property
    def after(self) -> bool:
        """Whether a block's output is normalised."""
        return self.placement != "pre"


class KVCachePolicy(Spec):
    """What one layer keeps: everything, or a ring of the last `window` tokens."""

    kind: Literal["full", "ring"] = "full"
    window: PositiveInt | None = None

    @model_validator(mode="after")
    def _ring_has_a_window(self) -> Self:
        if (self.kind == "ring") != (self.window is not None):
            raise ValueError(
                f"kind {self.kind!r} with window {self.window}: "
                "a ring, and only a ring, has a window"
            )
        return self

    def capacity(self, context: int) -> int:
        """Slots this layer needs for `context` tokens."""
        return context if self.window is None else min(self.window, context)


class CustomDecoder(Spec):
    """Escape hatch for a family the specs cannot express: a class of the plugin runs the model.

    `target` names a class that is built and called as `infer_core.Decoder` is, and replaces it;
    it is imported when a model is loaded, never by `infer plugins list`. `adds` and `omits` change
    which parameters there are: names as `infer_core.parameters` has them, `{layer}` allowed,
    `adds` with their shapes. Such a model decodes unfused, and reports say so.
    """

    target: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    adds: dict[str, tuple[PositiveInt, ...]] = {}
    omits: frozenset[str] = frozenset()


class BlockLayout(Spec):
    """MLP, embedding, residual and output details that hold for every layer."""

    activation: Activation
    gated: bool = True
    mlp_bias: bool = False
    embedding_scale: PositiveFloat = Field(
        default=1.0, description="embeddings are multiplied by this, rounded to the dtype first"
    )
    residual_scale: PositiveFloat = Field(
        default=1.0, description="a block's output is multiplied by this, then added"
    )
    logits_scale: PositiveFloat = Field(
        default=1.0, description="logits are multiplied by this, before any soft cap"
    )
    final_logit_softcap: PositiveFloat | None = None
    decoder: CustomDecoder | None = None


class WeightRule(Spec):
    """Where tensors of a checkpoint go: names are matched whole, `{layer}` is a layer number.

    `source` may list alternatives (older and newer names); exactly one of them may exist in a
    checkpoint. Rules that share a `target` fill its rows by `part`. `target=None` drops the
    tensors on purpose; only there `{any}` matches the rest of a name.
    """

    source: tuple[str, ...]
    target: str | None
    part: Part | None = None
    reason: str | None = Field(default=None, description="why a dropped tensor is not needed")

    def __init__(
        self,
        source: str | tuple[str, ...],
        target: str | None,
        *,
        part: Part | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(source=source, target=target, part=part, reason=reason)  # type: ignore[call-arg]

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _dropped_with_a_reason(self) -> Self:
        if (self.target is None) != (self.reason is not None):
            raise ValueError(f"{self.source}: a dropped tensor, and only that, has a reason")
        if self.target is not None and any("{any}" in name for name in self.source):
            raise ValueError(f"{self.source}: {{any}} is for dropped tensors only")
        return self


class ModelSpec(Spec):
    """Everything the core knows of a model: the owner's answers, checked against each other."""

    architecture: str
    plugin: str
    distribution: str | None
    plugin_version: str | None
    shape: ModelShape
    attention: tuple[AttentionLayout, ...]
    norm: NormFlavour
    kv_cache: tuple[KVCachePolicy, ...]
    block: BlockLayout
    weights: tuple[WeightRule, ...]
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def uncommon(self) -> tuple[str, ...]:
        """What this model needs beyond the decoder most families share, each as `name=value`.

        A specialised path (fused kernels) must refuse a spec unless it honours all of these.
        """
        values = {
            "qk_norm": next((a.qk_norm for a in self.attention if a.qk_norm == "projection"), None),
            "placement": "post" if self.norm.placement == "post" else None,
            "residual_scale": None if self.block.residual_scale == 1 else self.block.residual_scale,
            "logits_scale": None if self.block.logits_scale == 1 else self.block.logits_scale,
            "decoder": self.block.decoder and self.block.decoder.target,
        }
        return tuple(f"{name}={value}" for name, value in values.items() if value is not None)

    @model_validator(mode="after")
    def _answers_agree(self) -> Self:
        layers = self.shape.num_layers
        for hook, answers in (
            ("infer_attention_layout", self.attention),
            ("infer_kv_cache_policy", self.kv_cache),
        ):
            if len(answers) != layers:
                raise ValueError(f"{hook} described {len(answers)} layers, the model has {layers}")
        for layer, (attention, policy) in enumerate(
            zip(self.attention, self.kv_cache, strict=True)
        ):
            if policy.window is not None and policy.window != attention.window:
                raise ValueError(
                    f"layer {layer}: infer_kv_cache_policy keeps {policy.window} tokens, "
                    f"infer_attention_layout sees {attention.window}"
                )
        return self
