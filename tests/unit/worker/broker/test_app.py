"""worker.broker.app: the settings on which producers and workers agree."""

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from redis import SSLConnection

from tests.support.tls import Authority
from worker.broker.app import create_app
from worker.broker.keys import Namespace
from worker.broker.urls import RedisURLError


@pytest.mark.parametrize("transport", [None, "worker.delivery.transport:Transport"])
def test_a_tls_url_means_tls_with_a_certificate_that_is_checked(transport: str | None) -> None:
    app = create_app("rediss://:pw@db:6380/1")
    connection = app.connection_for_read()
    if transport is not None:
        connection = app.connection(transport=transport)
    assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert app.backend.connparams["connection_class"] is SSLConnection
    assert app.backend.connparams["ssl_cert_reqs"] == ssl.CERT_REQUIRED


def test_the_url_may_say_how_certificates_are_checked(tmp_path: Path) -> None:
    authority = str(Authority(tmp_path).file)
    app = create_app(f"rediss://db:6380/1?ssl_cert_reqs=none&ssl_ca_certs={authority}")
    assert app.connection(transport="worker.delivery.transport:Transport").ssl == {
        "ssl_cert_reqs": ssl.CERT_NONE,
        "ssl_ca_certs": authority,
    }


def test_a_plain_url_means_no_tls() -> None:
    assert not create_app("redis://db:6379/1").connection_for_read().ssl


@pytest.mark.parametrize(
    ("url", "of_celery"),
    [
        ("redis://agent:p%2Fw@db:6379/1", "redis://agent:p%2Fw@db:6379/1"),
        ("unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"),
        ("unix://a:p%2Fw@/run/r.sock", "redis+socket://a:p%2Fw@/run/r.sock?virtual_host=0"),
        (
            "sentinel://a:p%2Fw@one,two:26380/4?master_name=primary",
            "sentinel://a:p%2Fw@one:26379/4;sentinel://a:p%2Fw@two:26380/4",
        ),
    ],
)
def test_every_form_of_a_url_is_given_to_celery_in_its_own(url: str, of_celery: str) -> None:
    conf = create_app(url).conf
    assert (conf.broker_url, conf.result_backend) == (of_celery, of_celery)


def test_celery_gets_the_name_and_the_password_of_sentinels() -> None:
    app = create_app("sentinel://one:26379/0?master_name=primary&sentinel_password=secret")
    for options in (app.conf.broker_transport_options, app.conf.result_backend_transport_options):
        assert options["master_name"] == "primary"
        assert options["sentinel_kwargs"]["password"] == "secret"


def test_a_namespace_begins_every_name_of_the_application() -> None:
    app = create_app("redis://db", Namespace("staging"))
    assert app.connection().transport_options["global_keyprefix"] == "{staging}:"
    assert app.backend.get_key_for_task("t1") == b"{staging}:celery-task-meta-t1"
    plain = create_app("redis://db")
    assert "global_keyprefix" not in plain.connection().transport_options


def test_an_unusable_url_is_refused() -> None:
    with pytest.raises(RedisURLError):
        create_app("http://db")


PRODUCER = "from worker.broker.producer import app; print(app.conf.broker_url)"


def test_the_producers_application_reads_the_environment_and_connects_to_nothing() -> None:
    url = "redis://127.0.0.1:1/0"  # nobody listens there
    environ = {**os.environ, "SQE_REDIS_URL": url, "SQE_NAMESPACE": "staging"}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCER], env=environ, capture_output=True, check=True
    )
    assert done.stdout.decode() == f"{url}\n"


def test_the_producers_application_needs_a_redis(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "SQE_REDIS_URL"}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCER],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    last = done.stderr.decode().splitlines()[-1]
    assert "no Redis is running" in last
    assert last.endswith("or set SQE_REDIS_URL")


def test_nothing_but_json_is_accepted() -> None:
    conf = create_app("redis://db").conf
    assert (conf.accept_content, conf.result_accept_content) == (["json"], ["json"])
