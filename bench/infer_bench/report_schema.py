"""The report's JSON Schema, for readers that are not this program.

`python -m infer_bench.report_schema > bench/infer_bench/report.schema.json` after a change of
`report.py`; a test holds the two together.
"""

import json
from pathlib import Path

from infer_bench.report import Report

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def schema_text() -> str:
    """Render the schema as it is committed."""
    return json.dumps(Report.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
