"""worker.settings: variables, overrides, and errors that name the variable."""

from pathlib import Path

import pytest

from hrm.kernels import compiler, cuda
from worker.settings import PREFIX, Settings, SettingsError, unknown_variables

README = Path(__file__).parents[3] / "worker" / "README.md"


def test_without_variables_every_setting_has_a_default() -> None:
    assert Settings.from_env({}) == Settings()


def test_every_setting_is_in_the_readme() -> None:
    text = README.read_text()
    for name in Settings.model_fields:
        assert f"`{PREFIX}{name.upper()}`" in text, name


def test_a_variable_sets_the_field_of_its_name() -> None:
    settings = Settings.from_env(
        {"SQE_REDIS_URL": "rediss://:pw@db:6380/1", "SQE_SLOTS": "3", "SQE_VISIBILITY_TIMEOUT": "9"}
    )
    assert settings.redis_url == "rediss://:pw@db:6380/1"
    assert (settings.slots, settings.visibility_timeout) == (3, 9.0)


def test_a_cache_is_switched_off_by_0() -> None:
    assert Settings.from_env({"SQE_CACHED_PREDICTIONS": "0"}).cached_predictions == 0
    assert Settings().cached_predictions > 0


def test_an_empty_variable_counts_as_absent() -> None:
    assert Settings.from_env({"SQE_THREADS": "", "SQE_REDIS_URL": ""}) == Settings()


def test_an_option_of_the_command_line_takes_precedence_if_it_is_given() -> None:
    environ = {"SQE_DEVICE": "cuda:1", "SQE_SLOTS": "3"}
    settings = Settings.from_env(environ, device="cpu", slots=None)
    assert (settings.device, settings.slots) == ("cpu", 3)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SQE_SLOTS", "many", "SQE_SLOTS: input should be a valid integer"),
        ("SQE_SLOTS", "0", "SQE_SLOTS: input should be greater than or equal to 1"),
        ("SQE_CACHED_PREDICTIONS", "-1", "SQE_CACHED_PREDICTIONS: input should be greater"),
        ("SQE_CACHED_PREDICTIONS", "10000001", "SQE_CACHED_PREDICTIONS: input should be less"),
        ("SQE_VISIBILITY_TIMEOUT", "0.5", "SQE_VISIBILITY_TIMEOUT: input should be greater"),
        ("SQE_METRICS_PORT", "70000", "SQE_METRICS_PORT: input should be less"),
        ("SQE_REDIS_URL", "localhost:6379", "SQE_REDIS_URL: give a URL such as redis://"),
        ("SQE_CPU_KERNELS", "banana", "SQE_CPU_KERNELS: input should be 'auto' or 'off'"),
        ("SQE_GPU_KERNELS", "on", "SQE_GPU_KERNELS: input should be 'auto', 'compiled' or 'off'"),
        ("SQE_REDIS_URL", "amqp://localhost", "SQE_REDIS_URL: give a URL such as redis://"),
    ],
)
def test_a_bad_value_is_reported_with_the_name_of_its_variable(
    variable: str, value: str, message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({variable: value})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_kernels_read_the_variables_that_are_checked_here() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert {compiler.SWITCH, cuda.SWITCH} < known


def test_an_unknown_variable_is_named_with_the_one_that_was_meant() -> None:
    environ = {
        "SQE_SLOT": "3",
        "SQE_CHEKPOINT": "mine",
        "SQE_SLOTS": "3",
        "SQE_REDIS_SERVICE_HOST": "10.0.0.1",
        "PATH": "/bin",
    }
    assert list(unknown_variables(environ)) == [
        "SQE_CHEKPOINT: no such setting; did you mean SQE_CHECKPOINT?",
        "SQE_REDIS_SERVICE_HOST: no such setting",
        "SQE_SLOT: no such setting; did you mean SQE_SLOTS?",
    ]


def test_an_error_does_not_show_a_password() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"SQE_REDIS_URL": "http://:secret@db"})
    assert "secret" not in str(caught.value)
