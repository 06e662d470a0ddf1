"""Match a checkpoint's tensors to a model's parameters: each tensor once, each row once.

Pure bookkeeping over names and shapes, done before any tensor is read, so that a bad checkpoint
fails before memory is taken.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from infer_core.checkpoint_index import FLOAT_BYTES, StoredTensor, first_few
from infer_core.errors import WeightError
from infer_core.parameters import Parameter, model_parameters
from infer_core.specs import ModelSpec, Part, WeightRule


@dataclass(frozen=True, slots=True)
class Copy:
    """`tensor` fills rows [start, stop) of parameter `target`."""

    tensor: StoredTensor
    target: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to copy, and what a tied model's checkpoint holds as a separate head, if anything."""

    copies: tuple[Copy, ...]
    tied_head: StoredTensor | None


@dataclass(frozen=True, slots=True)
class _Match:
    rule: WeightRule
    target: str | None
    layer: int | None


def plan_load(stored: Mapping[str, StoredTensor], spec: ModelSpec) -> LoadPlan:
    """Decide where every tensor of a checkpoint goes.

    Raises:
        WeightError: a tensor that is quantised, matches two rules, shares its rows with another
            or has the wrong shape; parameters that get no tensor; tensors that have no place.
    """
    parameters = model_parameters(spec)
    who = f"{spec.architecture} (infer_weight_map of plugin {spec.plugin!r})"
    matches = _match_rules(stored, spec.weights, who)
    dropped = {name for name, match in matches.items() if match.target is None}
    _refuse_quantised([stored[name] for name in stored if name not in dropped])

    sources: dict[tuple[str, Part | None], list[StoredTensor]] = defaultdict(list)
    left_over: dict[str, list[str]] = defaultdict(list)  # reason -> tensor names
    tied_head = None
    for name in sorted(stored.keys() - dropped):
        match = matches.get(name)
        if match is None or match.target is None:
            left_over["match no rule"].append(name)
        elif match.target in parameters:
            part = match.rule.part
            if part is not None and part not in parameters[match.target].parts:
                parts = ", ".join(parameters[match.target].parts) or "none"
                raise WeightError(
                    f"{who}: the rule for {name!r} fills part {part!r} of {match.target!r}, "
                    f"whose parts are: {parts}"
                )
            sources[match.target, part].append(stored[name])
        elif match.layer is not None and match.layer >= spec.shape.num_layers:
            left_over[f"belong to layers beyond the config's {spec.shape.num_layers}"].append(name)
        elif match.target == "lm_head" and spec.shape.tied_embeddings and tied_head is None:
            tied_head = stored[name]
        else:
            left_over["go to parameters this model does not have"].append(
                f"{name} -> {match.target}"
            )

    _refuse_shared_rows(sources, who)
    missing = [
        target if part is None else f"{target}[{part}]"
        for target, parameter in parameters.items()
        for part in (parameter.parts or (None,))
        if (target, part) not in sources and (target, None) not in sources
    ]
    _refuse_incomplete(missing, left_over, who, num_stored=len(stored))
    copies = [
        Copy(tensors[0], target, *_rows(parameters[target], part))
        for (target, part), tensors in sources.items()
    ]
    _refuse_wrong_shapes(copies, parameters, who)
    return LoadPlan(tuple(copies), tied_head)


def _match_rules(
    names: Iterable[str], rules: tuple[WeightRule, ...], who: str
) -> dict[str, _Match]:
    """Tensor name -> its one rule; names that match none are left out."""
    patterns = [(_pattern(source), rule) for rule in rules for source in rule.source]
    matches: dict[str, _Match] = {}
    for name in names:
        for pattern, rule in patterns:
            found = pattern.fullmatch(name)
            if found is None:
                continue
            if name in matches:
                raise WeightError(
                    f"{who}: two rules match tensor {name!r}: {_describe(matches[name].rule)} and "
                    f"{_describe(rule)}; expected one"
                )
            layer, target = found.groupdict().get("layer"), rule.target
            if target is not None and layer is not None:
                target = target.replace("{layer}", layer)
            matches[name] = _Match(rule, target, None if layer is None else int(layer))
    return matches


def _pattern(source: str) -> re.Pattern[str]:
    """A whole-name pattern; `{layer}` is a number without leading zeros, `{any}` what is left."""
    pattern = re.escape(source).replace(re.escape("{any}"), ".+")
    layer = re.escape("{layer}")
    pattern = pattern.replace(layer, "(?P<layer>0|[1-9][0-9]*)", 1).replace(layer, "(?P=layer)")
    return re.compile(pattern)


def _describe(rule: WeightRule) -> str:
    part = f"[{rule.part}]" if rule.part else ""
    return f"{' | '.join(rule.source)} -> {rule.target or 'dropped'}{part}"


def _rows(parameter: Parameter, part: Part | None) -> tuple[int, int]:
    """Rows of a part; without one, all of them (a checkpoint may hold q, k, v already stacked)."""
    return (0, parameter.shape[0]) if part is None else parameter.parts[part]


def _refuse_quantised(tensors: list[StoredTensor]) -> None:
    odd = [tensor for tensor in tensors if tensor.dtype not in FLOAT_BYTES]
    if odd:
        raise WeightError(
            f"{len(odd)} tensors have a dtype other than {', '.join(FLOAT_BYTES)} "
            f"({first_few([f'{tensor.name} is {tensor.dtype}' for tensor in odd])}): quantised "
            "checkpoints are not supported; use the model's bf16, fp16 or fp32 checkpoint"
        )


def _refuse_shared_rows(
    sources: Mapping[tuple[str, Part | None], list[StoredTensor]], who: str
) -> None:
    for (target, part), tensors in sources.items():
        whole = sources.get((target, None), []) if part is not None else []
        names = [tensor.name for tensor in (*whole, *tensors)]
        if len(names) > 1:
            raise WeightError(
                f"{who}: {len(names)} tensors fill the same rows of {target!r} "
                f"({first_few(names)}); expected one of them"
            )


def _refuse_incomplete(
    missing: list[str], left_over: Mapping[str, list[str]], who: str, *, num_stored: int
) -> None:
    if not missing and not left_over:
        return
    first_missing = f" (first: {first_few(missing)})" if missing else ""
    left = "; ".join(
        f"{len(names)} {reason} (first: {first_few(names)})" for reason, names in left_over.items()
    )
    num_left = sum(len(names) for names in left_over.values())
    raise WeightError(
        f"{who} and the checkpoint do not fit each other. Parameters without a tensor: "
        f"{len(missing)}{first_missing}. Tensors without a place: {num_left} of {num_stored}"
        f"{f': {left}' if left else ''}. Is config.json this checkpoint's own? If so, mend the "
        "rules of infer_weight_map"
    )


def _refuse_wrong_shapes(copies: list[Copy], parameters: Mapping[str, Parameter], who: str) -> None:
    wrong = []
    for copy in copies:
        expected = (copy.stop - copy.start, *parameters[copy.target].shape[1:])
        if copy.tensor.shape != expected:
            wrong.append(
                f"{copy.tensor.name} is {list(copy.tensor.shape)}, {copy.target} expects "
                f"{list(expected)}"
            )
    if wrong:
        raise WeightError(
            f"{who}: {len(wrong)} tensors have a shape that config.json does not give "
            f"({first_few(wrong)})"
        )
