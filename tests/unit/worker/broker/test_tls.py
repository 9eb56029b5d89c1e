"""worker.broker.tls: files and errors of TLS, worded with their fix."""

import ssl
from pathlib import Path

import pytest
import redis

from tests.support.tls import Authority
from worker.broker.errors import describe, is_lasting
from worker.broker.tls import tls_problem
from worker.broker.urls import RedisURLError, connections


def test_files_that_can_be_used_are_accepted(tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    connections(f"rediss://db?ssl_ca_certs={ours.file}&{ours.client_options()}")


@pytest.mark.parametrize("content", [None, "no certificate"])
@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_file_that_cannot_be_used_is_named_before_anything_connects(
    tmp_path: Path, option: str, content: str | None
) -> None:
    ours = Authority(tmp_path)
    options = dict(each.split("=") for each in ours.client_options().split("&"))
    options |= {"ssl_ca_certs": str(ours.file), option: str(tmp_path / "wrong.pem")}
    if content is not None:
        (tmp_path / "wrong.pem").write_text(content)
    with pytest.raises(RedisURLError) as refused:
        connections("rediss://:secret@db?" + "&".join(f"{k}={v}" for k, v in options.items()))
    text = str(refused.value)
    assert text.startswith("SQE_REDIS_URL: ssl_")
    assert f"{option}={tmp_path}/wrong.pem" in text
    assert ("No such file or directory" in text) == (content is None)
    assert "secret" not in text
    assert "_ssl.c" not in text


def test_a_key_with_a_password_is_refused_without_asking_at_the_terminal(tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    certificate, key = (each.split("=")[1] for each in ours.client_options().split("&"))
    locked = tmp_path / "locked.pem"
    locked.write_bytes(ours.locked(Path(key), b"open sesame"))
    url = f"rediss://db?ssl_certfile={certificate}&ssl_keyfile={locked}"
    connections(f"{url}&ssl_password=open%20sesame")
    for wrong in (url, f"{url}&ssl_password=guess"):
        with pytest.raises(RedisURLError, match=r"the key's ssl_password if it has one$") as found:
            connections(wrong)
        assert "guess" not in str(found.value)


def of_openssl(cause: ssl.SSLError) -> redis.ConnectionError:
    """The error that redis-py raises for one of OpenSSL."""
    error = redis.ConnectionError(f"Error 1 connecting to db:6380. {cause}.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("code", "message", "fix"),
    [
        (20, "unable to get local issuer certificate", "?ssl_ca_certs=FILE in SQE_REDIS_URL"),
        (18, "self-signed certificate", "?ssl_ca_certs=FILE in SQE_REDIS_URL"),
        (19, "self-signed certificate in certificate chain", "?ssl_ca_certs=FILE in SQE_REDIS_URL"),
        (9, "certificate is not yet valid", "check this machine's clock"),
        (10, "certificate has expired", "renew it"),
        (62, "Hostname mismatch", "write a host in SQE_REDIS_URL that the certificate names"),
        (23, "certificate revoked", "check the server's certificate"),
    ],
)
def test_each_reason_not_to_accept_a_certificate_has_a_fix_and_lasts(
    code: int, message: str, fix: str
) -> None:
    cause = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] (_ssl.c:1006)")
    cause.verify_code, cause.verify_message = code, message
    error = of_openssl(cause)
    problem = tls_problem(error)
    assert problem is not None
    assert problem.startswith(f"the server's certificate is not accepted ({message}): ")
    assert problem.endswith(fix)
    assert is_lasting(error)
    assert describe(error) == f"Redis is not reachable: {problem}"


@pytest.mark.parametrize(
    ("reason", "lasting"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True),
        ("TLSV1_ALERT_UNKNOWN_CA", True),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", True),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", True),
        ("TLSV1_ALERT_INTERNAL_ERROR", False),
    ],
)
def test_a_servers_refusal_is_told_apart_from_its_faults(reason: str, lasting: bool) -> None:  # noqa: FBT001
    cause = ssl.SSLError(1, f"[SSL: {reason}] said by the server (_ssl.c:2580)")
    cause.reason = reason
    assert is_lasting(of_openssl(cause)) == lasting
    problem = tls_problem(of_openssl(cause))
    assert problem is not None
    assert ("ssl_certfile and ssl_keyfile" in problem) == lasting
    assert "_ssl.c" not in problem


def test_a_connection_that_ends_may_be_for_want_of_a_certificate_and_may_pass() -> None:
    cause = ssl.SSLEOFError(8, "EOF occurred in violation of protocol (_ssl.c:2427)")
    assert not is_lasting(of_openssl(cause))
    assert "ssl_certfile" in str(tls_problem(of_openssl(cause)))
    assert tls_problem(redis.ConnectionError("Connection closed by server.")) is None
