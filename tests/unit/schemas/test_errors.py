"""schemas.errors: the first problem of a model as a short line."""

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas import first_problem


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    one: int = 0


def test_a_problem_names_its_field_and_never_its_value() -> None:
    with pytest.raises(ValidationError) as caught:
        Strict.model_validate({"one": "secret"})
    problem = first_problem(caught.value)
    assert problem.field == "one"
    assert "secret" not in str(problem)


def test_a_name_of_any_length_is_cut() -> None:
    with pytest.raises(ValidationError) as caught:
        Strict.model_validate({"x" * 5000: 1})
    assert str(first_problem(caught.value)) == f"unknown field '{'x' * 80}\\u2026'"
