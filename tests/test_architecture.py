"""The shape of the code: no family named in the core, imports point down, plugins stay light.

Everything here reads source with `ast`, so docstrings and comments may cite whom they like.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import infer_core

ROOT = Path(__file__).parents[1]
CORE = ROOT / "infer_core"
BENCH = ROOT / "bench" / "infer_bench"
PLUGINS = sorted((ROOT / "plugins").glob("infer_*/infer_*"))


def python_files(*folders: Path) -> list[Path]:
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


# --- no family is named ---------------------------------------------------------------------

# Families of the Hugging Face hub, ours and others. `phi` needs its number: "graphics" has one.
FAMILY = re.compile(
    r"llama|qwen|gemma|mistral|mixtral|ministral|deepseek|smollm|olmo|granite|falcon|starcoder"
    r"|internlm|baichuan|chatglm|glm4|nemotron|minicpm|exaone|bloom|gpt|phi[-_.]?\d",
    re.IGNORECASE,
)

# `llama3` is a published value of rope_type: every family that scales RoPE by that formula says
# so by this name in its config.json, and a reader would not recognise another.
ALLOWED = {"llama3", "Llama3RopeScaling"}


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


@pytest.mark.parametrize("file", python_files(CORE, BENCH), ids=relative)
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


# --- imports point down ---------------------------------------------------------------------

# A module may import those of the groups above its own (style.md, section 1). Packages of
# infer_core count as one module, `kernels` stands below everything that computes.
LAYERS = [
    {"errors", "specs"},
    {"hookspecs", "sampling_params", "parameters", "config"},
    {"plugins", "kernels"},
    {"rope", "kv_cache", "sampling", "weights", "model_source"},
    {"attention"},
    {"decoder"},
    {"engine"},
    {"cli", "testing"},
]
LAYER = {module: depth for depth, group in enumerate(LAYERS) for module in group}

# What other distributions may use. Plugins get the package's exports alone; the benchmark runs
# engines, so it also gets the modules that find models and describe requests.
PLUGIN_MAY_IMPORT = {"infer_core"}
BENCH_MAY_IMPORT = {
    "infer_core",
    "infer_core.engine",
    "infer_core.errors",
    "infer_core.model_source",
    "infer_core.plugins",
}
KERNELS_MAY_IMPORT = {"torch", "triton", "infer_core.kernels"}


def imported(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, module and name of each import, lazy ones too; name is '' for `import x`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, module, alias.name) for alias in node.names)


def module_imported(module: str, name: str) -> str:
    """Resolve `from infer_core import engine` to the module it loads; else the module itself."""
    path = ROOT.joinpath(*module.split("."), name) if module.split(".")[0] == "infer_core" else None
    if name and path and (path.with_suffix(".py").exists() or (path / "__init__.py").exists()):
        return f"{module}.{name}"
    return module


def is_inside(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def core_violations(module: str, source: str) -> list[str]:
    """Check one module of infer_core, named by its first part below the package."""
    found = []
    for line, target, name in imported(source):
        target = module_imported(target, name)
        package, _, rest = target.partition(".")
        below = rest.partition(".")[0] if package == "infer_core" else ""
        if target.startswith("."):
            found.append(f"{line}: relative import {target}; write infer_core...")
        elif package.startswith("infer_") and package != "infer_core":
            found.append(f"{line}: the core imports {target}")
        elif module == "kernels":
            if package not in sys.stdlib_module_names and not is_inside(target, KERNELS_MAY_IMPORT):
                found.append(f"{line}: a kernel imports {target}, not only torch and triton")
        elif target == "infer_core" and name != "__version__":
            found.append(f"{line}: {name or target} from the package; import its own module")
        elif below and LAYER.get(below, len(LAYERS)) >= LAYER[module] and below != module:
            found.append(f"{line}: {module} imports {below}, which is not below it")
    return found


def outside_violations(package: str, allowed: set[str], light: bool, source: str) -> list[str]:
    """Check one module of a plugin or of the benchmark."""
    found = []
    for line, target, name in imported(source):
        target = module_imported(target, name)
        first = target.partition(".")[0]
        if first == "infer_core" and target not in allowed:
            found.append(f"{line}: {target} is not public here; allowed: {sorted(allowed)}")
        elif target == "infer_core" and name.startswith("_") and name != "__version__":
            found.append(f"{line}: {name} is private to infer_core")
        elif target == "infer_core" and name and name not in {*infer_core.__all__, "__version__"}:
            found.append(f"{line}: infer_core does not export {name}")
        elif first.startswith("infer_") and first not in {"infer_core", package}:
            found.append(f"{line}: {package} imports {first}")
        elif light and first not in {"", "infer_core", package, *sys.stdlib_module_names}:
            found.append(f"{line}: a plugin is data, but imports {target}")
    return found


def core_module(file: Path) -> str:
    return file.relative_to(CORE).with_suffix("").parts[0]


@pytest.mark.parametrize("file", python_files(CORE), ids=relative)
def test_every_module_of_the_core_has_a_layer(file):
    module = core_module(file)

    assert module in {*LAYER, "__init__"}, (
        f"{relative(file)} stands in no group of LAYERS; add it to the highest one that fits"
    )


# infer_core/__init__.py is the face of the package and may show names of every layer.
@pytest.mark.parametrize(
    "file", [f for f in python_files(CORE) if core_module(f) in LAYER], ids=relative
)
def test_imports_of_the_core_point_down(file):
    assert core_violations(core_module(file), file.read_text()) == []


@pytest.mark.parametrize("file", python_files(*PLUGINS), ids=relative)
def test_plugins_import_only_what_the_core_exports(file):
    package = file.relative_to(ROOT / "plugins").parts[1]

    assert outside_violations(package, PLUGIN_MAY_IMPORT, True, file.read_text()) == []


@pytest.mark.parametrize("file", python_files(BENCH), ids=relative)
def test_the_benchmark_imports_only_public_modules(file):
    assert outside_violations("infer_bench", BENCH_MAY_IMPORT, False, file.read_text()) == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("specs", "from infer_core.hookspecs import hookimpl"),
        ("errors", "from infer_core.specs import Spec"),
        ("rope", "import infer_core.engine"),
        ("weights", "from infer_core import decoder"),
        ("decoder", "def late():\n    from infer_core.engine import Engine"),
        ("engine", "from infer_core import Engine"),
        ("engine", "from infer_bench.cli import main"),
        ("plugins", "import infer_llama"),
        ("kernels", "from infer_core.specs import NormFlavour"),
        ("kernels", "import pydantic"),
        ("kernels", "from . import other"),
    ],
)
def test_a_planted_upward_import_is_found(module, planted):
    assert core_violations(module, planted) != []


@pytest.mark.parametrize(
    ("allowed", "light", "planted"),
    [
        (PLUGIN_MAY_IMPORT, True, "from infer_core.specs import Spec"),
        (PLUGIN_MAY_IMPORT, True, "from infer_core import specs"),
        (PLUGIN_MAY_IMPORT, True, "from infer_core import _LAZY"),
        (PLUGIN_MAY_IMPORT, True, "import infer_other"),
        (PLUGIN_MAY_IMPORT, True, "def late():\n    import torch"),
        (BENCH_MAY_IMPORT, False, "from infer_core.kernels.rms_norm import rms_norm"),
        (BENCH_MAY_IMPORT, False, "import infer_other"),
    ],
)
def test_a_planted_private_import_is_found(allowed, light, planted):
    assert outside_violations("infer_mine", allowed, light, planted) != []


# --- plugins are light and small ------------------------------------------------------------


def heavy_modules_loaded_by(module: str, *path: Path) -> list[str]:
    """Import a module in a fresh interpreter; give which of torch and triton came with it."""
    code = (
        f"import sys; sys.path[:0] = {[str(p) for p in path]}; import {module}; "
        "print(*sorted({'torch', 'triton'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def entry_modules() -> list[tuple[Path, str]]:
    entries = []
    for package in PLUGINS:
        project = tomllib.loads((package.parent / "pyproject.toml").read_text())["project"]
        for target in project["entry-points"]["infer_core.architectures"].values():
            entries.append((package.parent, target.partition(":")[0]))
    return entries


@pytest.mark.parametrize(("folder", "module"), entry_modules(), ids=lambda value: str(value))
def test_an_entry_module_loads_neither_torch_nor_triton(folder, module):
    assert heavy_modules_loaded_by(module, folder) == []


def test_an_entry_module_that_loads_torch_is_found(tmp_path):
    (tmp_path / "torch.py").touch()  # a stand-in: the real one takes seconds to import
    (tmp_path / "heavy_plugin.py").write_text("from torch import __name__\n")

    assert heavy_modules_loaded_by("heavy_plugin", tmp_path) == ["torch"]


def test_the_three_plugins_are_here():
    assert [package.name for package in PLUGINS] == ["infer_gemma3", "infer_llama", "infer_qwen3"]


@pytest.mark.parametrize("file", python_files(*PLUGINS), ids=relative)
def test_a_plugin_module_is_read_in_one_sitting(file):
    assert len(file.read_text().splitlines()) <= 250
