"""Both modules that tell a client where Redis is, from the environment."""

from types import ModuleType

import pytest

from schemas import SQEHRMError
from worker.client import address
from worker.client_package import address as own_address


@pytest.mark.parametrize("module", [address, own_address])
def test_a_namespace_and_replicas_come_from_the_environment(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQE_NAMESPACE", "SQE_WAIT_REPLICAS"):
        monkeypatch.delenv(name, raising=False)
    assert (module.namespace().name, module.wait_replicas()) == ("", 0)
    monkeypatch.setenv("SQE_NAMESPACE", "staging")
    monkeypatch.setenv("SQE_WAIT_REPLICAS", "2")
    assert (module.namespace().name, module.wait_replicas()) == ("staging", 2)


@pytest.mark.parametrize("module", [address, own_address])
@pytest.mark.parametrize(
    ("variable", "value"), [("SQE_NAMESPACE", "a/b"), ("SQE_WAIT_REPLICAS", "-1")]
)
def test_a_bad_value_is_an_error_that_names_the_variable(
    module: ModuleType, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SQEHRMError, match=f"^{variable}"):
        module.namespace(), module.wait_replicas()
