"""Fill a model's parameters: from a checkpoint, or with seeded random numbers.

Both return the keys and shapes of `infer_core.parameters.model_parameters`. A checkpoint is
checked whole, from its headers, before memory is taken; then each tensor is copied from the
mapped file into its rows of a parameter on the target device. There is never a second copy of
the weights: the host holds at most one tensor beside what the parameters themselves take.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from infer_core.checkpoint_index import StoredTensor, read_checkpoint_index
from infer_core.dummy_weights import dummy_weights
from infer_core.errors import WeightError
from infer_core.parameters import model_parameters
from infer_core.specs import ModelSpec
from infer_core.weight_plan import Copy, plan_load

__all__ = ["dummy_weights", "load_checkpoint"]


def load_checkpoint(
    folder: Path,
    spec: ModelSpec,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Load the safetensors of `folder` into contiguous parameters on `device`, cast to `dtype`.

    `progress` is called after each tensor with bytes done and bytes in total, as stored.

    Raises:
        WeightError: the folder holds no readable safetensors, or its tensors are not exactly
            what the spec asks for (see `read_checkpoint_index` and `plan_load`), or a tied
            model's checkpoint holds an output head that differs from its embeddings.
    """
    plan = plan_load(read_checkpoint_index(folder), spec)
    if plan.tied_head is not None:
        embedding = next(copy.tensor for copy in plan.copies if copy.target == "embed")
        _require_equal(plan.tied_head, embedding, spec)

    by_file: dict[Path, list[Copy]] = defaultdict(list)
    for copy in plan.copies:
        by_file[copy.tensor.file].append(copy)
    total = sum(copy.tensor.num_bytes for copy in plan.copies)
    done = 0
    parameters = model_parameters(spec)
    weights: dict[str, torch.Tensor] = {}
    for file, copies in by_file.items():
        with safe_open(file, framework="pt", device="cpu") as opened:
            for copy in copies:
                if copy.target not in weights:
                    shape = parameters[copy.target].shape
                    weights[copy.target] = torch.empty(shape, device=device, dtype=dtype)
                # get_tensor maps the file's pages; copy_ reads them once, casts and moves.
                weights[copy.target][copy.start : copy.stop].copy_(
                    opened.get_tensor(copy.tensor.name)
                )
                done += copy.tensor.num_bytes
                if progress is not None:
                    progress(done, total)
    return {name: weights[name] for name in parameters}


def _require_equal(head: StoredTensor, embedding: StoredTensor, spec: ModelSpec) -> None:
    """A tied model computes logits with its embeddings; a head of its own would be ignored."""
    same_kind = (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
    if same_kind and torch.equal(_bytes(head), _bytes(embedding)):
        return
    raise WeightError(
        f"the config of {spec.architecture} ties the output head to the embeddings, but the "
        f"checkpoint holds {head.name!r} ({head.dtype} {list(head.shape)}), which differs from "
        f"{embedding.name!r} ({embedding.dtype} {list(embedding.shape)}). If the head was trained "
        "on its own, set tie_word_embeddings to false in config.json; otherwise remove the tensor"
    )


def _bytes(stored: StoredTensor) -> torch.Tensor:
    """The tensor's bytes, still in the mapped file: bitwise comparison holds for NaN too."""
    with safe_open(stored.file, framework="pt", device="cpu") as opened:
        tensor: torch.Tensor = opened.get_tensor(stored.name)
    return tensor.view(torch.uint8)
