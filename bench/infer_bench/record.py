"""Base of everything a report is made of: frozen, unknown fields refused, units stated."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Immutable piece of a report; NaN and infinity are refused, JSON cannot hold them."""

    # built on first use: the command line should start before a schema of hundreds of fields is
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def quantity(unit: str, description: str, **options: Any) -> Any:
    """Declare a measured field; its unit stands in the report's JSON Schema as `unit`."""
    return Field(description=description, json_schema_extra={"unit": unit}, **options)
