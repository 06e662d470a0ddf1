"""A report as an entry of the benchmark log (docs/performance.md): heading, tables, notes."""

from infer_bench.report import Report
from infer_bench.table import to_markdown
from infer_bench.tables import failure_lines, heading, report_tables


def to_log_entry(report: Report, *, title: str) -> str:
    """Render as the log has its entries: `## date — title`, a table a metric, notes last."""
    device, *conditions = heading(report)
    environment = report.environment
    versions = [f"torch {environment.torch}", f"triton {environment.triton}"]
    if environment.revision:
        versions.append(environment.revision)
    parts = [
        f"## {report.created:%Y-%m-%d} — {title}\n",
        f"**Hardware**: {device.removeprefix('device: ')}\n",
        f"{'; '.join([*versions, *conditions])}.\n",
        *map(to_markdown, report_tables(report)),
    ]
    notes = failure_lines(report)
    if not report.complete:
        notes.insert(0, "the run was interrupted; rows that are missing did not run")
    if notes:
        parts.append("### Notes\n\n" + "".join(f"- {note}\n" for note in notes))
    return "\n".join(parts)
