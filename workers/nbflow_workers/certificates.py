"""Mints the certificate of a worker that listens beyond loopback and was given none.

Self-signed, one per worker, good for its CA file: clients get it through the spec file, and check it and its fixed name
(`security.TLS_NAME`) instead of a host name. Imported only where TLS is asked for: `cryptography` takes 0.1 s to load.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nbflow_workers.security import TLS_NAME, ServerTls

LIFETIME_DAYS = 365


def mint(hosts: tuple[str, ...] = ()) -> ServerTls:
    """A fresh self-signed certificate for TLS_NAME and `hosts` (names or IP addresses), on curve P-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Unlike any other worker's: a client that trusts several finds the right one by this name. Clients check TLS_NAME.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{TLS_NAME} {secrets.token_hex(8)}")])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.DNSName(TLS_NAME)]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of two machines differ.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=LIFETIME_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return ServerTls(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
