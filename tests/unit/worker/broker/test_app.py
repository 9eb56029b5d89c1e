"""worker.broker.app: the settings on which producers and workers agree."""

import ssl

import pytest
from redis import SSLConnection

from worker.broker.app import create_app


@pytest.mark.parametrize("transport", [None, "worker.delivery.transport:Transport"])
def test_a_tls_url_means_tls_with_a_certificate_that_is_checked(transport: str | None) -> None:
    app = create_app("rediss://:pw@db:6380/1")
    connection = app.connection_for_read()
    if transport is not None:
        connection = app.connection(transport=transport)
    assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert app.backend.connparams["connection_class"] is SSLConnection
    assert app.backend.connparams["ssl_cert_reqs"] == ssl.CERT_REQUIRED


def test_the_url_may_say_how_certificates_are_checked() -> None:
    app = create_app("rediss://db:6380/1?ssl_cert_reqs=none&ssl_ca_certs=%2Fca.pem")
    assert app.connection(transport="worker.delivery.transport:Transport").ssl == {
        "ssl_cert_reqs": ssl.CERT_NONE,
        "ssl_ca_certs": "/ca.pem",
    }


def test_a_plain_url_means_no_tls() -> None:
    assert not create_app("redis://db:6379/1").connection_for_read().ssl


def test_nothing_but_json_is_accepted() -> None:
    conf = create_app("redis://db").conf
    assert (conf.accept_content, conf.result_accept_content) == (["json"], ["json"])
