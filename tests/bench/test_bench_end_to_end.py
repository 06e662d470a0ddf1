"""The benchmark over the real engine and a toy plugin, without any fake, in this process."""

import json

import pytest
from bench_fakes import in_this_process
from infer_bench.backend import Backend
from infer_bench.cli import make_app
from infer_bench.report import Report
from typer.testing import CliRunner

from infer_core.plugins import load_registry


class ToyBackend(Backend):
    """The real engine; only the toy plugins of one folder are installed."""

    def __init__(self, path):
        self.path = path

    def load_registry(self):
        return load_registry(environ={}, path=self.path)


def bench(make_plugin, *arguments):
    # the toy model knows 64 tokens of context
    sizes = ["--prompt-tokens", "20", "--max-new-tokens", "12"]
    result = CliRunner().invoke(
        make_app(ToyBackend(make_plugin.path), in_this_process),
        [*sizes, "--device", "cpu", "--max-trials", "3", "--no-save", "--json", *arguments],
        catch_exceptions=False,
    )
    return result, Report.model_validate(json.loads(result.stdout)) if result.stdout else None


@pytest.mark.parametrize(
    "sampling",
    [[], ["--temperature", "0.8", "--top-k", "5", "--top-p", "0.9", "--repetition-penalty", "1.1"]],
    ids=["greedy", "sampled"],
)
def test_an_installed_plugin_is_measured(make_plugin, sampling):
    make_plugin()

    result, report = bench(make_plugin, *sampling)

    (row,) = report.rows
    assert (result.exit_code, row.status, row.reason) == (0, "ok", None)
    assert row.trials_agree
    assert [sample.num_tokens for sample in row.samples] == [12, 12, 12]
    loaded = row.loaded
    assert (loaded.weights, loaded.kernels, loaded.dtype) == ("dummy", "reference", "float32")
    assert loaded.tiny
    assert (row.parity.num_tokens, row.parity.agrees) == (12, True)
    assert row.parity.path == "no KV cache, no CUDA graph"


def test_without_a_kv_cache_the_tokens_are_the_same(make_plugin):
    make_plugin()

    _, cached = bench(make_plugin)
    _, uncached = bench(make_plugin, "--no-kv-cache")

    fingerprints = {report.rows[0].greedy_tokens_sha256 for report in (cached, uncached)}
    assert len(fingerprints) == 1
    assert None not in fingerprints


def test_a_case_beyond_the_models_context_fails_with_the_engines_words(make_plugin):
    make_plugin()

    result, report = bench(make_plugin, "--max-new-tokens", "60")

    assert result.exit_code == 1
    assert report.rows[0].status == "failed"
    assert "context of 64" in report.rows[0].reason


def test_a_plugin_that_does_not_import_is_a_failed_row_beside_the_good_one(make_plugin):
    make_plugin()
    make_plugin("odd", source="import nothing_of_this_name\n")

    result, report = bench(make_plugin)

    assert result.exit_code == 1
    assert {row.model: row.status for row in report.rows} == {
        "toy-tiny (tiny)": "ok",
        "odd": "failed",
    }
    assert "nothing_of_this_name" in report.failures[0].reason


def test_a_machine_without_plugins_is_told_what_to_install(make_plugin):
    result, report = bench(make_plugin)

    assert (result.exit_code, report) == (2, None)
    assert "pip install" in result.stderr
