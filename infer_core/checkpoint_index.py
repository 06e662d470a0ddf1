"""Which tensors a checkpoint folder holds: safetensors headers only, no tensor data.

Files are chosen as transformers chooses them: `model.safetensors` if it is there, else the
shards of `model.safetensors.index.json`; other safetensors beside those are ignored. A folder
with neither may hold exactly one safetensors file of another name.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from infer_core.errors import WeightError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# safetensors' names of the float types that can be cast to a model's dtype -> bytes an element
FLOAT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a safetensors header describes it; `dtype` is safetensors' own name."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes in the file; 0 for types that are never read (see `FLOAT_BYTES`)."""
        return math.prod(self.shape) * FLOAT_BYTES.get(self.dtype, 0)


def read_checkpoint_index(folder: Path) -> dict[str, StoredTensor]:
    """List every tensor of the checkpoint in `folder`, by name.

    Raises:
        WeightError: no such folder, no safetensors, more than one candidate, a malformed index,
            a missing, truncated or foreign file, a tensor in two shards or not where the index
            says.
    """
    if not folder.is_dir():
        raise WeightError(
            f"{folder} is not a folder; expected a checkpoint folder in Hugging Face format "
            f"(config.json and {SINGLE}, or {INDEX} and its shards)"
        )
    if (folder / SINGLE).is_file():
        return _read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    return _read_header(_only_safetensors(folder))


def first_few(names: list[str], limit: int = 3) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _only_safetensors(folder: Path) -> Path:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    candidates = [path for path in files if path.suffix == ".safetensors"]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise WeightError(
            f"{folder} holds {len(candidates)} safetensors files (first: "
            f"{first_few([path.name for path in candidates])}) but neither {SINGLE} nor {INDEX}: "
            f"which are the model's is unknown. Download {INDEX} too, or leave one file"
        )
    pickles = [path.name for path in files if path.suffix in {".bin", ".pt", ".pth"}]
    if pickles:
        raise WeightError(
            f"{folder} holds pickled weights only ({first_few(pickles)}); infer reads safetensors "
            "only, since a pickle can run code. Convert a checkpoint you trust with transformers: "
            "AutoModelForCausalLM.from_pretrained(folder, dtype='auto')"
            ".save_pretrained(new_folder)"
        )
    raise WeightError(
        f"{folder} holds no weights: neither {SINGLE} nor {INDEX} nor another *.safetensors "
        f"(found: {first_few([path.name for path in files]) or 'no files'}). Download them, or run "
        "with random ones: --weights dummy"
    )


def _read_shards(folder: Path) -> dict[str, StoredTensor]:
    """Union of the shards; as in transformers, a shard's own header says what it holds."""
    shard_of = _read_weight_map(folder / INDEX)
    missing = sorted({name for name in shard_of.values() if not (folder / name).is_file()})
    if missing:
        raise WeightError(
            f"{folder}: {len(missing)} of {len(set(shard_of.values()))} shards that {INDEX} names "
            f"are not there ({first_few(missing)}); download them again"
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(shard_of.values())):
        for name, tensor in _read_header(folder / shard).items():
            if name in tensors:
                raise WeightError(
                    f"{folder}: tensor {name!r} stands in both {tensors[name].file.name} and "
                    f"{shard}; expected in one shard only"
                )
            tensors[name] = tensor
    misplaced = [
        f"{name} in {shard}"
        for name, shard in shard_of.items()
        if name not in tensors or tensors[name].file != folder / shard
    ]
    if misplaced:
        raise WeightError(
            f"{folder}: {len(misplaced)} tensors are not in the shard that {INDEX} names "
            f"({first_few(misplaced)}); index and shards are of different downloads"
        )
    return tensors


def _read_weight_map(index: Path) -> dict[str, str]:
    """`weight_map` of an index: tensor name -> shard's file name."""
    try:
        document = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightError(f"{index} cannot be read as JSON ({error}); download it again") from error
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightError(
            f"{index}: expected an object 'weight_map' of tensor name -> shard, "
            f"got {type(weight_map).__name__}"
        )
    for name, shard in weight_map.items():
        # An index is data from a stranger: it may not point outside its folder.
        if not isinstance(shard, str) or Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise WeightError(
                f"{index}: tensor {name!r} is said to be in {shard!r}; expected the name of a "
                "file beside the index"
            )
    return weight_map


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            tensors = {}
            for name in opened.keys():  # noqa: SIM118 (no dict: it cannot be iterated)
                view = opened.get_slice(name)
                shape = tuple(view.get_shape())
                tensors[name] = StoredTensor(name, file, shape, str(view.get_dtype()))
    except (SafetensorError, OSError) as error:
        raise WeightError(
            f"{file} ({file.stat().st_size} bytes) is no whole safetensors file: {error}. It is "
            "truncated or something else under that name; download it again"
        ) from error
    return tensors
