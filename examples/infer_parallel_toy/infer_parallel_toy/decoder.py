"""The decoder of the parallel toy, from the core's operations."""

import torch

from infer_core import Decoder, Piece


class ParallelDecoder(Decoder):
    """Attention and MLP side by side, gated; attention itself is the core's."""

    def hidden(self, tokens: torch.Tensor, piece: Piece) -> torch.Tensor:
        ops, parameters, eps = self.ops, self.parameters, self.spec.norm.eps
        x = ops.embed(tokens, parameters["embed"])
        for layer in range(self.spec.shape.num_layers):
            prefix = f"layers.{layer}."
            normed = ops.rms_norm(x, parameters[prefix + "attn_norm"], eps)
            attended = self.attention(layer, normed, piece)
            inner = ops.linear_activation(
                normed,
                parameters[prefix + "gate_up"],
                activation=self.spec.block.activation,
                gated=True,
            )
            narrow = ops.linear(inner, parameters[prefix + "mlp_out"])
            x = x + parameters[prefix + "gate"] * (attended + narrow)
        return ops.rms_norm(x, parameters["final_norm"], eps)
