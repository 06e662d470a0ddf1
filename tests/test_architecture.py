"""The shape of the code: imports point down, plugins are light and small."""

import ast
import graphlib
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
EXAMPLES = sorted((ROOT / "examples").glob("infer_*/infer_*"))


def python_files(*folders: Path) -> list[Path]:
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


# Group -> its modules, and the other groups they may import: imports point down. Modules of one
# group may import each other, never in a circle. `kernels` is the whole package.
GROUPS: dict[str, tuple[set[str], set[str]]] = {
    "facts": ({"errors", "specs", "sampling_params", "user_cache"}, set()),
    "contract": (
        {"hookspecs", "parameters", "config", "config_audit", "config_rope"},
        {"facts"},
    ),
    "loader": (
        {"plugins", "plugin_claims", "plugin_hooks", "plugin_loader", "plugin_status"}
        | {"model_source", "hub", "kit_record"},
        {"facts", "contract"},
    ),
    "kernels": ({"kernels"}, set()),
    "parts": (
        {"ops", "rope", "kv_cache", "sampling"}
        | {"weights", "weight_plan", "checkpoint_index", "dummy_weights"},
        {"facts", "contract", "kernels"},
    ),
    "model": (
        {"decoder", "decode_chain", "fused_sampling", "chain_tiles", "tuner"},
        {"facts", "contract", "kernels", "parts"},
    ),
    "text": (
        {"json_files", "tokenizer", "detokenizer", "stop_strings", "stop_tokens"}
        | {"chat_template", "template_sandbox", "generation_defaults"},
        {"facts"},
    ),
    "engine": (
        {"engine", "session"},
        {"facts", "contract", "loader", "kernels", "parts", "model"},
    ),
    "llm": (
        {"llm", "completion", "text_stream", "conversation", "device", "memory"},
        {"facts", "contract", "loader", "kernels", "parts", "model", "engine", "text"},
    ),
    "faces": (
        {"cli", "cli_plugins", "cli_options", "cli_generate", "cli_chat", "cli_inspect"}
        | {"new_plugin", "testing"},
        {"facts", "contract", "loader", "kernels", "parts", "model", "engine", "text", "llm"},
    ),
}
GROUP_OF = {module: group for group, (modules, _) in GROUPS.items() for module in modules}

# What lies outside the core may use. Plugins get the package's exports alone; the benchmark also
# gets the modules that list plugins and their state, and those that find, size and run models.
PLUGIN_MAY_IMPORT = {"infer_core"}
BENCH_MAY_IMPORT = {
    "infer_core",
    "infer_core.device",
    "infer_core.engine",
    "infer_core.hookspecs",
    "infer_core.model_source",
    "infer_core.parameters",
    "infer_core.plugin_status",
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
    group = GROUP_OF[module]
    groups_allowed = {group, *GROUPS[group][1]}
    found = []
    for line, target, name in imported(source):
        target = module_imported(target, name)
        package, _, rest = target.partition(".")
        other = rest.partition(".")[0] if package == "infer_core" else ""
        if target.startswith("."):
            found.append(f"{line}: relative import {target}; write infer_core...")
        elif package.startswith("infer_") and package != "infer_core":
            found.append(f"{line}: the core imports {target}")
        elif module == "kernels":
            if package not in sys.stdlib_module_names and not is_inside(target, KERNELS_MAY_IMPORT):
                found.append(f"{line}: a kernel imports {target}, not only torch and triton")
        elif target == "infer_core" and name not in {"", "__version__"}:
            found.append(f"{line}: {name} from the package; import its own module")
        elif other and GROUP_OF.get(other) not in groups_allowed:
            found.append(f"{line}: {module} ({group}) imports {other}, which is not below it")
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
def test_every_module_of_the_core_has_its_place(file):
    module = core_module(file)

    assert module in {*GROUP_OF, "__init__"}, (
        f"{relative(file)} stands in no group of GROUPS; add it to the lowest one that fits"
    )


# infer_core/__init__.py is the face of the package and may show names of every layer.
@pytest.mark.parametrize(
    "file", [f for f in python_files(CORE) if core_module(f) in GROUP_OF], ids=relative
)
def test_imports_of_the_core_point_down(file):
    assert core_violations(core_module(file), file.read_text()) == []


def imports_within_the_core(sources: dict[str, str]) -> dict[str, set[str]]:
    """Map every module of the core to the modules of the core it imports."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        targets = (module_imported(target, name) for _, target, name in imported(source))
        others = {target.split(".")[1] for target in targets if target.startswith("infer_core.")}
        graph.setdefault(module, set()).update(others - {module})
    return graph


def test_no_module_of_the_core_imports_itself_in_a_circle():
    sources: dict[str, str] = {}
    for file in python_files(CORE):
        if core_module(file) != "__init__":
            sources[core_module(file)] = sources.get(core_module(file), "") + file.read_text()

    graphlib.TopologicalSorter(imports_within_the_core(sources)).prepare()  # raises CycleError


def test_a_planted_circle_is_found():
    sources = {
        "attention": "from infer_core.decoder import Decoder",
        "decoder": "def late():\n    import infer_core.attention",
    }

    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(imports_within_the_core(sources)).prepare()


@pytest.mark.parametrize("file", python_files(*PLUGINS, *EXAMPLES), ids=relative)
def test_plugins_import_only_what_the_core_exports(file):
    package = file.relative_to(ROOT).parts[2]
    light = file.name != "decoder.py"  # the escape hatch: code, imported when a model is loaded

    assert outside_violations(package, PLUGIN_MAY_IMPORT, light, file.read_text()) == []


@pytest.mark.parametrize("file", python_files(BENCH), ids=relative)
def test_the_benchmark_imports_only_public_modules(file):
    assert outside_violations("infer_bench", BENCH_MAY_IMPORT, False, file.read_text()) == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("specs", "from infer_core.hookspecs import hookimpl"),
        ("specs", "from infer_core.not_in_the_table import anything"),
        ("plugins", "from infer_core.weights import load_checkpoint"),
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
    for package in (*PLUGINS, *EXAMPLES):
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


def test_the_examples_are_here():
    names = ["infer_granite", "infer_olmo2", "infer_parallel_toy", "infer_phi3"]

    assert [package.name for package in EXAMPLES] == names


@pytest.mark.parametrize("file", python_files(*PLUGINS, *EXAMPLES), ids=relative)
def test_a_plugin_module_is_read_in_one_sitting(file):
    assert len(file.read_text().splitlines()) <= 250
