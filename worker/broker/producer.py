"""The Celery application `app` for producers and for `celery -A worker.broker.producer`.

Importing it reads `SQE_REDIS_URL` and `SQE_NAMESPACE` and connects to nothing; without the former,
it finds the embedded server of the folder. Raises `SQEHRMError` if there is no usable URL. Knows no
tasks, which are sent by name.
"""

from worker.broker import embedded
from worker.broker.app import create_app
from worker.broker.keys import Namespace
from worker.settings import Settings

_settings = Settings.from_env()

with embedded.redis_url(_settings.redis_url, start_if_missing=False) as _url:
    app = create_app(_url, Namespace(_settings.namespace))
