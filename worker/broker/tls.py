"""Errors of TLS, worded in one line with the fix.

Knows certificates, and OpenSSL's errors as redis-py passes them on; nothing of what is sent.
"""

import re
import ssl
from collections.abc import Mapping
from typing import Any

_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}
"""OpenSSL's numbers for a chain of certificates that does not begin with a known one."""
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_HOST = {62, 64}

_CLIENTS_FIX = (
    "name a certificate that the server accepts with ssl_certfile and ssl_keyfile in SQE_REDIS_URL"
)


def file_problem(options: Mapping[str, Any]) -> str | None:
    """Say which of the files that a URL's options name cannot be used; None if all can."""
    authorities = options.get("ssl_ca_certs")
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if authorities:
            context.load_verify_locations(authorities)
    except OSError as error:
        return f"ssl_ca_certs={authorities} cannot be used ({_reason(error)}): name a PEM file"
    password = options.get("ssl_password") or ""
    try:
        if certificate or key:
            # Without a password, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(str(certificate or key), key, lambda: password)
    except OSError as error:
        return (
            f"ssl_certfile={certificate} and ssl_keyfile={key} cannot be used ({_reason(error)}): "
            "name the PEM files of a certificate and its key, and the key's ssl_password if it "
            "has one"
        )
    return None


def tls_problem(error: BaseException) -> str | None:
    """Word an error of redis-py that is about TLS, and name the fix; None for any other."""
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _unverified(cause)
    if _is_alert(cause):
        return f"the server refuses this client's certificate ({_reason(cause)}): {_CLIENTS_FIX}"
    if isinstance(cause, ssl.SSLEOFError):
        return (
            "the server ended the TLS connection: if it asks clients for certificates, "
            f"{_CLIENTS_FIX}"
        )
    return f"TLS fails ({_reason(cause)})" if isinstance(cause, ssl.SSLError) else None


def is_refused_certificate(error: BaseException) -> bool:
    """Whether one side does not accept the other's certificate, now and later."""
    cause = _cause(error)
    return isinstance(cause, ssl.SSLCertVerificationError) or _is_alert(cause)


def _cause(error: BaseException) -> BaseException | None:
    """Find OpenSSL's error behind redis-py's."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _is_alert(cause: BaseException | None) -> bool:
    """Whether the server refused a certificate, or the lack of one."""
    reason = getattr(cause, "reason", None) or ""
    return bool(re.search("ALERT_.*(CERTIFICATE|UNKNOWN_CA)|ALERT_HANDSHAKE_FAILURE", reason))


def _unverified(cause: ssl.SSLCertVerificationError) -> str:
    reason = cause.verify_message.rstrip(".")
    if cause.verify_code in _UNKNOWN_AUTHORITY:
        fix = "name the file of its authority with ?ssl_ca_certs=FILE in SQE_REDIS_URL"
    elif cause.verify_code in _OTHER_HOST:
        fix = "write a host in SQE_REDIS_URL that the certificate names"
    elif cause.verify_code == _EXPIRED:
        fix = "renew it"
    elif cause.verify_code == _NOT_YET_VALID:
        fix = "check this machine's clock"
    else:
        fix = "check the server's certificate"
    return f"the server's certificate is not accepted ({reason}): {fix}"


def _reason(error: BaseException | None) -> str:
    text = str(getattr(error, "strerror", None) or error)
    return re.sub(r" \(_ssl\.c:\d+\)", "", text)
