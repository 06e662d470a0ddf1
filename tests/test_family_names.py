"""The code of the core and of the benchmark names no model family.

Source is read with `ast`, so docstrings and comments may cite whom they like.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file for folder in ("infer_core", "bench/infer_bench") for file in (ROOT / folder).rglob("*.py")
)


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


# Families of the Hugging Face hub, ours and others. `phi` needs its number: "graphics" has one.
FAMILY = re.compile(
    r"llama|qwen|gemma|mistral|mixtral|ministral|deepseek|smollm|olmo|granite|falcon|starcoder"
    r"|internlm|baichuan|chatglm|glm4|nemotron|minicpm|exaone|bloom|gpt|phi[-_.]?\d",
    re.IGNORECASE,
)

# `llama3` is a published value of rope_type: every family that scales RoPE by that formula says
# so by this name in its config.json, and a reader would not recognise another. The class holds
# its numbers, the function of rope.py computes it.
ALLOWED = {"llama3", "Llama3RopeScaling", "_llama3"}


def words_of_code(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of every identifier and string literal that is not documentation."""
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str | bytes) and id(node) not in documentation:
                yield line, str(node.value)
            continue
        # id, attr, arg, name, asname, module, kwd_attrs: wherever a node keeps identifiers
        for _, value in ast.iter_fields(node):
            for word in value if isinstance(value, list) else [value]:
                if isinstance(word, str):
                    yield line, word


def families_named(source: str) -> list[str]:
    """Give `line: word` for every family named in the code of a module."""
    return [
        f"{line}: {word}"
        for line, word in words_of_code(ast.parse(source))
        if word not in ALLOWED and FAMILY.search(word)
    ]


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_the_core_and_the_benchmark_name_no_family(file):
    assert not FAMILY.search(relative(file))
    assert families_named(file.read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        'if architecture.startswith("Gemma"): pass',
        "class LlamaAttention: pass",
        "def load(qwen_config): pass",
        "load(is_gemma3=True)",
        "spec.llama_style = 1",
        "from infer_llama import x",
        "import infer_core as mistral",
        'f"{prefix}.Qwen3ForCausalLM"',
        '{"phi-3": 1}',
        'match kind:\n    case "gpt2": pass',
        'ROPE = "llama3.1"',
        "def llama3(): pass\ndef llama3_frequencies(): pass",
    ],
)
def test_a_planted_family_name_is_found(planted):
    assert families_named(planted) != []


def test_docstrings_comments_and_the_rope_type_may_cite_a_family():
    source = '''
        """As published with Llama 3."""
        # Gemma rounds before scaling.
        class Llama3RopeScaling:
            """Qwen3 has none."""
            kind: Literal["llama3"] = "llama3"
            """Documentation of an attribute: Gemma."""
    '''
    assert families_named(f"if True:\n{source}") == []
