"""Publish the models as JSON Schema files, so that agents in any language can check messages."""

import json
from pathlib import Path

from pydantic import BaseModel

from schemas.example import HRMExample
from schemas.message import SQEMessage
from schemas.rejection import DeadLetter, Rejection
from schemas.verdict import Verdict

MODELS: dict[str, type[BaseModel]] = {
    "sqe_message": SQEMessage,
    "hrm_example": HRMExample,
    "verdict": Verdict,
    "rejection": Rejection,
    "dead_letter": DeadLetter,
}

PUBLISHED = Path(__file__).parent / "v1"


def json_schema(name: str) -> str:
    """The JSON Schema (draft 2020-12) of the model published as `name`, as text."""
    schema = MODELS[name].model_json_schema(
        mode="serialization" if name == "verdict" else "validation"
    )
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2) + "\n"


def publish(folder: Path) -> list[Path]:
    """Write every schema as `NAME.schema.json` into `folder`, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in MODELS:
        file = folder / f"{name}.schema.json"
        file.write_text(json_schema(name), encoding="utf-8")
        files.append(file)
    return files
