import pytest
from infer_bench.cases import CASES, SUITES, named_cases, prompt_ids
from infer_bench.errors import UsageError

from infer_core import SamplingParams

SAMPLED = {"temperature": 0.8, "top_k": 50, "top_p": 0.9}


@pytest.mark.parametrize(
    ("name", "prompt_tokens", "max_new_tokens", "sampling"),
    [
        ("short", 64, 64, {}),
        ("medium", 256, 256, {}),
        ("prefill", 1024, 64, {}),
        ("decode", 64, 1024, {}),
        ("long", 1024, 1024, {}),
        ("sampled", 256, 256, SAMPLED),
        ("full-pipe", 256, 256, SAMPLED | {"repetition_penalty": 1.1}),
    ],
)
def test_configs_are_those_of_the_log(name, prompt_tokens, max_new_tokens, sampling):
    case = CASES[name]

    assert (case.prompt_tokens, case.max_new_tokens) == (prompt_tokens, max_new_tokens)
    assert case.sampling == SamplingParams(**sampling)


def test_suites_grow_and_full_holds_all_seven_in_the_logs_order():
    assert SUITES == {
        "quick": ("short", "medium"),
        "standard": ("short", "medium", "prefill", "decode", "sampled"),
        "full": ("short", "medium", "prefill", "decode", "long", "sampled", "full-pipe"),
    }


def test_a_config_named_twice_counts_once_and_order_is_kept():
    assert [case.name for case in named_cases(["long", "short", "long"])] == ["long", "short"]


def test_an_unknown_config_is_refused_with_the_list_of_configs():
    with pytest.raises(UsageError, match=r"unknown config 'shrot'.*short, medium.*full-pipe"):
        named_cases(["short", "shrot"])


def test_a_seed_fixes_the_draws_of_a_case():
    case = CASES["sampled"].seeded(7)

    assert case.sampling == SamplingParams(**SAMPLED, seed=7)
    assert CASES["sampled"].sampling.seed == 0


def test_prompt_ids_stay_in_the_vocabulary_and_reach_all_of_it():
    assert set(prompt_ids(1000, vocab_size=5, seed=42)) == {0, 1, 2, 3, 4}


def test_prompts_depend_on_the_seed_alone():
    first = prompt_ids(64, vocab_size=1000, seed=42)

    assert prompt_ids(64, vocab_size=1000, seed=42) == first
    assert prompt_ids(64, vocab_size=1000, seed=43) != first
    # random.choices has drawn the same numbers on every platform since Python 3.2
    assert first[:4] == [639, 25, 275, 223]
