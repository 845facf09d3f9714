"""Base class of all config sections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from rlsys.config.values import is_text


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, assignments are validated, and docstrings of fields are their help texts."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: Any, field: ValidationInfo) -> Any:
        """Reject empty names and paths, and expand `~/`, which a shell does not do after an equals sign."""
        if not isinstance(value, str | Path) or field.field_name is None or not is_text(cls.model_fields[field.field_name].annotation):
            return value
        if value == "":
            raise ValueError("expected a name or a path, found nothing")
        return os.path.expanduser(value) if str(value).startswith("~/") else value
