from xml.etree import ElementTree

import pytest
from bench_fakes import GPU
from bench_reports import a_report, a_row, loaded_model
from infer_bench.compare import compare, find_differences
from infer_bench.compare_output import comparison_table, to_junit, verdict_lines
from infer_bench.errors import NotComparable
from infer_bench.report import Report, Row, Settings

STEADY = (1.0, 1.001, 0.999)


def times(factor, spread=0.001):
    return (factor, factor * (1 + spread), factor * (1 - spread))


def verdicts(before, after, **options):
    return [change.verdict for change in compare(a_report(before), a_report(after), **options)]


@pytest.mark.parametrize(
    ("factor", "spread", "verdict"),
    [
        pytest.param(1.0, 0.001, "same", id="same-build"),
        pytest.param(1.02, 0.001, "same", id="certain-but-below-the-limit"),
        pytest.param(1.1, 0.001, "regression", id="ten-percent-slower"),
        pytest.param(0.9, 0.001, "better", id="ten-percent-faster"),
        pytest.param(1.1, 0.2, "unclear", id="slower-within-the-noise"),
    ],
)
def test_a_verdict_needs_size_and_certainty(factor, spread, verdict):
    before = a_row(times=times(1.0, spread))
    after = a_row(times=times(factor, spread))

    assert verdicts(before, after, metrics=["step_p50_ms"]) == [verdict]


def test_throughput_regresses_downwards_and_times_upwards():
    changes = compare(a_report(a_row(times=STEADY)), a_report(a_row(times=times(1.5))))

    assert [(change.metric, change.verdict) for change in changes] == [
        ("e2e_tokens_per_s", "regression"),
        ("step_p50_ms", "regression"),
    ]
    assert changes[0].ratio < 1 < changes[1].ratio
    low, high = changes[1].interval
    assert changes[1].ratio == pytest.approx(1.5)
    assert low < 1.5 < high


def test_a_metric_that_trials_do_not_have_is_compared_by_its_one_value():
    assert verdicts(a_row(times=(1.0,)), a_row(times=(1.5,)), metrics=["mbu"]) == ["regression"]


def test_a_row_that_no_longer_works_closes_the_gate():
    failed = Row(engine="infer", model="toy", case="short", status="failed", reason="no luck")

    assert verdicts(a_row(), failed, metrics=["step_p50_ms"]) == ["broken"]
    assert verdicts(failed, a_row(), metrics=["step_p50_ms"]) == ["mended"]
    assert verdicts(failed, failed, metrics=["step_p50_ms"]) == ["not measured"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"environment": GPU.model_copy(update={"gpu": None})}, "GPU: Toy GPU 9000 against None"),
        ({"settings": Settings(kv_cache=False)}, "KV cache: True against False"),
    ],
)
def test_unlike_conditions_are_refused_by_name_until_forced(change, named):
    before, after = a_report(), a_report(**change)

    with pytest.raises(NotComparable, match=named):
        compare(before, after)

    assert {one.verdict for one in compare(before, after, force=True)} == {"same"}


@pytest.mark.parametrize(
    "change", [{"dtype": "float16"}, {"weights": "checkpoint"}, {"tiny": True}], ids=str
)
def test_unlike_models_are_refused(change):
    (name,) = change

    (difference,) = find_differences(a_report(), a_report(a_row(loaded=loaded_model(**change))))

    assert difference.startswith(f"{name} of toy on infer: ")


def test_a_config_of_the_same_name_but_other_lengths_is_refused():
    report = a_report()
    longer = report.cases[0].model_copy(update={"max_new_tokens": 128})

    with pytest.raises(NotComparable, match="config short"):
        compare(report, report.model_copy(update={"cases": (longer,)}))


def test_other_kernels_are_what_one_compares():
    other = a_report(a_row(loaded=loaded_model(kernels="reference", load_s=9.0)))

    assert find_differences(a_report(), other) == []


def test_reports_without_a_common_row_cannot_be_compared():
    with pytest.raises(NotComparable, match="no engine, model and config is in both reports"):
        compare(a_report(a_row("alpha")), a_report(a_row("beta")))


def test_rows_that_only_one_report_has_are_left_out_and_named():
    before = a_report(a_row("toy", "short"), a_row("toy", "medium"))
    after = a_report(a_row("toy", "short"), a_row("new", "short"))

    changes = compare(before, after)

    assert {(change.model, change.case) for change in changes} == {("toy", "short")}
    assert verdict_lines(changes, before, after).splitlines() == [
        "2 same",
        "only in the first report: 1 rows (toy medium on infer)",
        "only in the second report: 1 rows (new short on infer)",
    ]


def test_a_report_that_was_saved_and_read_compares_as_the_same():
    report = a_report()

    again = Report.model_validate_json(report.to_json())

    assert {change.verdict for change in compare(report, again)} == {"same"}


@pytest.fixture
def changes():
    before = a_report(a_row("good", times=STEADY), a_row("bad & ugly", times=STEADY))
    after = a_report(a_row("good", times=STEADY), a_row("bad & ugly", times=times(1.25)))
    return compare(before, after, metrics=["step_p50_ms"])


def test_the_table_begins_with_what_became_worse(changes):
    table = comparison_table(changes)

    assert [row[:2] for row in table.rows] == [("regression", "bad & ugly"), ("same", "good")]
    assert table.rows[0][7] == "+25.0 %"
    assert verdict_lines(changes, a_report(), a_report()) == "1 same, 1 regression"


def test_junit_has_a_failure_for_a_regression_and_a_skip_for_what_is_unclear(changes):
    noisy = compare(
        a_report(a_row(times=times(1.0, 0.3))),
        a_report(a_row(times=times(1.2, 0.3))),
        metrics=["step_p50_ms"],
    )

    suite = ElementTree.fromstring(to_junit([*changes, *noisy], max_regress=0.05))

    counts = [suite.get(name) for name in ("tests", "failures", "errors", "skipped")]
    assert counts == ["3", "1", "0", "1"]
    failed = suite.find("testcase[failure]")
    assert failed.get("classname") == "bad & ugly.infer"
    assert failed.get("name") == "short step_p50_ms"
    assert failed.find("failure").get("message") == "regression: +25.0 % (limit 5 %)"
