"""The URL of Redis and the namespace, for a client that was given none.

The distribution `sqe-hrm-client` has a module of its own in this place.
"""

from worker.broker import embedded
from worker.broker.keys import Namespace
from worker.settings import Settings


def redis_url() -> str:
    """Return `SQE_REDIS_URL`, or the URL of the embedded server that runs for this folder.

    Raises `SQEHRMError` if there is neither.
    """
    with embedded.redis_url(Settings.from_env().redis_url, start_if_missing=False) as found:
        return found


def namespace() -> Namespace:
    """Return the namespace in `SQE_NAMESPACE`. Raises `NamespaceError`."""
    return Namespace(Settings.from_env().namespace)


def wait_replicas() -> int:
    """Return the number of replicas that confirm each message. Raises `SettingsError`."""
    return Settings.from_env().wait_replicas
