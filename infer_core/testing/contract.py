"""Every check a plugin has to pass, as a class its test module derives from."""

import json
import statistics
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from infer_core.errors import ConfigError, InferError
from infer_core.sampling_params import SamplingParams
from infer_core.testing.comparisons import (
    LOGIT_TOLERANCE,
    fail_parity,
    import_alone,
    relative_error,
    same_tokens,
)
from infer_core.testing.dialects import in_new_dialect, in_old_dialect
from infer_core.testing.hints import HOOK_OF, fail, looking_at

if TYPE_CHECKING:
    from infer_core.plugins import PluginRegistry
    from infer_core.specs import ReferenceModel
    from infer_core.testing.case import ContractCase

IMPORT_LIMIT_S = 0.2
UNKNOWN_FIELD = "field_that_no_plugin_knows"


class PluginContract:
    """Derive from this in a test module; only `plugin` has to be given.

    Each check runs for the tiny config of every reference model and for `variants`, which are
    changes to the first one (name -> fields; a value of None removes the field). A plugin
    without reference models gives a `tiny_config`.
    """

    plugin: ClassVar[ModuleType]
    tiny_config: ClassVar[Mapping[str, Any] | None] = None
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    is_plugin_contract: ClassVar[bool] = True

    def test_hooks_fit_the_contract(self) -> None:
        _registry(self.plugin)

    def test_specs_are_valid_for_every_reference_config(self) -> None:
        registry = _registry(self.plugin)
        for model in _reference_models(self.plugin):
            for field, config in (("config", model.config), ("tiny_config", model.tiny_config)):
                try:
                    registry.resolve(config)
                except InferError as error:
                    fail(
                        f"{field} of reference model {model.name!r}: {error}",
                        "infer_architectures and the hook named above",
                    )

    def test_the_entry_module_is_light(self) -> None:
        # the least of three: what a busy machine adds is not the plugin's
        for _ in range(3):
            seconds, heavy = import_alone(self.plugin.__name__)
            if heavy or seconds < IMPORT_LIMIT_S:
                break
        if heavy:
            fail(
                f"importing {self.plugin.__name__} imports {' and '.join(heavy)}; a plugin is "
                "data, and `infer plugins list` imports every one",
                "the imports at the top of the module, not a hook",
            )
        if seconds >= IMPORT_LIMIT_S:
            fail(
                f"importing {self.plugin.__name__} takes {seconds:.2f} s, expected less than "
                f"{IMPORT_LIMIT_S} s; compute inside hooks, which are asked once a load",
                "the top level of the module, not a hook",
            )

    def test_the_weight_map_is_a_bijection(self, contract_case: "ContractCase") -> None:
        import torch

        from infer_core.testing.case import save_by_table
        from infer_core.weights import load_checkpoint

        spec, loaded = contract_case.spec, contract_case.parameters
        # the same weights once more through the plugin's own names: each row where it was
        folder = contract_case.checkpoint / "by-table"
        folder.mkdir(exist_ok=True)
        save_by_table(spec, loaded, folder)
        with looking_at("infer_weight_map"):
            again = load_checkpoint(folder, spec, device="cpu", dtype=torch.float32)
        moved = [name for name in loaded if not torch.equal(loaded[name], again[name])]
        if moved:
            fail(f"rules disagree about the rows of {', '.join(moved)}", "infer_weight_map (part)")

    def test_logits_equal_transformers_in_fp32(self, contract_case: "ContractCase") -> None:
        from infer_core.testing.case import every_logit
        from infer_core.testing.oracle import oracle_logits

        _need_oracle(contract_case)
        prompt = contract_case.prompt
        parameters = contract_case.parameters
        with looking_at("infer_attention_layout", "infer_block_layout"):
            logits = every_logit(contract_case.spec, parameters, prompt)
        truth = oracle_logits(contract_case.oracle, prompt)
        errors = ((logits - truth).abs().amax(dim=1) / truth.abs().max()).tolist()
        if not max(errors) <= LOGIT_TOLERANCE:
            fail_parity(errors, contract_case.spec)

    def test_greedy_tokens_equal_transformers_in_fp32(self, contract_case: "ContractCase") -> None:
        from infer_core.testing.oracle import oracle_greedy

        _need_oracle(contract_case)
        expected = oracle_greedy(
            contract_case.oracle, contract_case.prompt, new_tokens=len(contract_case.tokens)
        )
        same_tokens(contract_case.tokens, expected, "transformers", "infer_attention_layout (rope)")

    def test_cached_equals_uncached(self, contract_case: "ContractCase") -> None:
        uncached = contract_case.greedy(contract_case.engine(kv_cache=False))
        same_tokens(
            contract_case.tokens,
            uncached,
            "decoding that recomputes the prefix",
            "infer_kv_cache_policy",
            "infer_attention_layout (window)",
        )

    def test_a_ring_equals_a_mask(self, contract_case: "ContractCase") -> None:
        masked = contract_case.greedy(contract_case.engine(spec=contract_case.masked_spec()))
        same_tokens(
            contract_case.tokens,
            masked,
            "keeping every token under the window's mask",
            "infer_kv_cache_policy",
        )

    def test_prefill_in_pieces_equals_prefill_at_once(self, contract_case: "ContractCase") -> None:
        pieces = contract_case.greedy(contract_case.engine(prefill_chunk=7))
        same_tokens(
            contract_case.tokens,
            pieces,
            "prefill in pieces of 7 tokens",
            "infer_kv_cache_policy",
            "infer_block_layout (decoder)",
        )

    def test_two_runs_give_the_same_tokens(self, contract_case: "ContractCase") -> None:
        engine = contract_case.engine()
        same_tokens(
            contract_case.tokens, contract_case.greedy(engine), "a second run", "the decoder"
        )
        sampled = SamplingParams(temperature=0.9, top_k=20, seed=3)
        first, second = (
            engine.generate(
                contract_case.prompt, max_new_tokens=16, sampling=sampled, ignore_eos=True
            ).tokens
            for _ in range(2)
        )
        same_tokens(first, second, "a second sampled run with the same seed", "the decoder")

    def test_both_config_dialects_say_the_same(self, contract_case: "ContractCase") -> None:
        config = contract_case.config
        told = {
            "of transformers 4": in_old_dialect(config),
            "of transformers 5": in_new_dialect(config),
        }
        if contract_case.why_no_oracle is None:
            written = contract_case.checkpoint / "config.json"
            told["transformers writes"] = json.loads(written.read_text(encoding="utf-8"))
        for dialect, said in told.items():
            with looking_at("infer_config_fields"):
                spec = contract_case.registry.resolve(said)
            differing = [
                name for name in HOOK_OF if getattr(spec, name) != getattr(contract_case.spec, name)
            ]
            if differing:
                first = differing[0]
                fail(
                    f"the config in the dialect {dialect} gives another {', '.join(differing)}:\n"
                    f"  {getattr(spec, first)}\n  instead of\n  "
                    f"{getattr(contract_case.spec, first)}",
                    *(HOOK_OF[name] for name in differing),
                )

    def test_an_unknown_config_field_is_refused(self, contract_case: "ContractCase") -> None:
        try:
            contract_case.registry.resolve({**contract_case.config, UNKNOWN_FIELD: 1})
        except ConfigError as error:
            if UNKNOWN_FIELD not in str(error):
                fail(f"the error does not name the unknown field: {error}", "infer_config_fields")
        else:
            fail("a field nobody knows was accepted", "infer_config_fields")

    @pytest.mark.gpu
    def test_bf16_errs_no_more_than_transformers(self, contract_case: "ContractCase") -> None:
        import copy

        import torch

        from infer_core.engine import Engine
        from infer_core.testing.case import every_logit
        from infer_core.testing.oracle import oracle_logits

        _need_gpu()
        _need_oracle(contract_case)
        rounded = copy.deepcopy(contract_case.oracle).to("cuda", torch.bfloat16)
        truth = copy.deepcopy(rounded).float()
        ours = {
            name: parameter.to("cuda", torch.bfloat16)
            for name, parameter in contract_case.parameters.items()
        }
        engine = Engine(contract_case.spec, ours)
        mine, theirs = [], []
        for ids in _prompts(contract_case, count=8):
            expected = oracle_logits(truth, ids)
            # half of the rows by prefill, half by decode steps
            half = len(ids) // 2
            prefilled = every_logit(contract_case.spec, ours, ids[:half])
            decoded = engine.score(ids, prompt_len=half).cpu()
            mine.append(relative_error(torch.cat([prefilled[:-1], decoded]), expected))
            theirs.append(relative_error(oracle_logits(rounded, ids), expected))
        # on one tiny prompt the smaller error is a matter of luck: over all of them the excess
        # must be more than the prompts' own spread explains
        excess = [ours - other for ours, other in zip(mine, theirs, strict=True)]
        chance = 2 * statistics.stdev(excess) / len(excess) ** 0.5
        if not statistics.mean(excess) <= chance:
            fail(
                f"relative error {statistics.mean(mine):.4f} against fp32, transformers' own bf16 "
                f"has {statistics.mean(theirs):.4f} (chance explains {chance:.4f})",
                "infer_norm_flavour (weight_in_fp32)",
                "infer_block_layout (embedding_scale)",
            )

    @pytest.mark.gpu
    def test_a_captured_graph_equals_eager_steps(self, contract_case: "ContractCase") -> None:
        import torch

        from infer_core.engine import Engine

        _need_gpu()
        ours = {
            name: parameter.to("cuda", torch.bfloat16)
            for name, parameter in contract_case.parameters.items()
        }
        with looking_at("infer_block_layout (decoder): nothing in forward may visit the host"):
            graph, eager = (
                contract_case.greedy(Engine(contract_case.spec, ours, cuda_graph=captured))
                for captured in (True, False)
            )
        same_tokens(graph, eager, "steps without a captured graph", "infer_block_layout (decoder)")

    @classmethod
    def check_names(cls) -> list[str]:
        """Every check of the contract, by function name."""
        return sorted(name for name in vars(PluginContract) if name.startswith("test_"))

    @classmethod
    def configs(cls) -> dict[str, Mapping[str, Any]]:
        """The raw config of every case, by name.

        Raises:
            ValueError: the plugin has no reference model and the class no `tiny_config`.
        """
        configs = {model.name: model.tiny_config for model in _reference_models(cls.plugin)}
        if cls.tiny_config is not None:
            configs = {"tiny_config": dict(cls.tiny_config), **configs}
        if not configs:
            raise ValueError(
                "infer_architectures gives no reference model; give the class a tiny_config"
            )
        base = next(iter(configs.values()))
        for name, changes in cls.variants.items():
            changed = {**base, **changes}
            configs[name] = {key: value for key, value in changed.items() if value is not None}
        return dict(configs)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each check that takes a case on every config."""
        if "contract_case" in metafunc.fixturenames:
            try:
                names = list(self.configs())
            except Exception:  # said again, in words, by the checks themselves
                names = ["tiny_config"]
            metafunc.parametrize("contract_case", names, indirect=True, scope="class")


def _registry(plugin: ModuleType) -> "PluginRegistry":
    from infer_core.testing.case import registry_of

    with looking_at("the hook named above"):
        return registry_of(plugin)


def _reference_models(plugin: ModuleType) -> "Sequence[ReferenceModel]":
    return [model for _, model in _registry(plugin).reference_models()]


def _need_oracle(case: "ContractCase") -> None:
    if case.why_no_oracle is not None:
        pytest.skip(case.why_no_oracle)


def _need_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")


def _prompts(case: "ContractCase", *, count: int) -> list[list[int]]:
    """The prompt, and others of its length that start elsewhere in it."""
    step = max(1, len(case.prompt) // count)
    return [case.prompt[n * step :] + case.prompt[: n * step] for n in range(count)]
