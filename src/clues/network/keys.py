"""A private certificate authority, the coordinator's certificate, and the silos' node keys.

A silo trusts the one certificate of the authority and nobody else's; the coordinator knows each
silo by its public key.
"""

import datetime
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from clues.atomic import (
    OTHERS,
    atomic_write_bytes,
    make_private_folder,
    refuse_what_never_ends,
)
from clues.errors import KeyFileError
from clues.extras import needs

with needs("cryptography", what="keys and certificates"):
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        load_ssh_private_key,
        load_ssh_public_key,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS, SERVER_DAYS = 3650, 397
CURVE = ec.SECP384R1
# For the way from the edge to the SuperLink behind it, on the same machine.
ALWAYS = ("localhost", "127.0.0.1")
_MADE_ANEW = (
    "Put the file back from where it was kept. If it is lost, remove ca.crt and ca.key, call "
    "`clues keys ca`, and give every silo the new ca.crt."
)


def make_authority(folder: Path) -> tuple[Path, Path]:
    """Make a private authority: `ca.crt` for everybody, `ca.key` for a safe place.

    Raises:
        KeyFileError: there is one already.
    """
    certificate, key_file = folder / "ca.crt", folder / "ca.key"
    _refuse_existing(certificate, key_file)
    key = ec.generate_private_key(CURVE())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clues private authority")])
    made = (
        _builder(name, name, key.public_key(), days=CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_private(key_file, _pem(key))
    _write(certificate, made.public_bytes(serialization.Encoding.PEM))
    return certificate, key_file


def make_server_certificate(folder: Path, names: Sequence[str], *, authority: Path) -> Path:
    """Make `server.crt` and `server.key` for the coordinator's public names.

    Args:
        folder: where they go.
        names: host names or addresses that silos connect to.
        authority: the folder of `ca.crt` and `ca.key`.

    Raises:
        KeyFileError: no authority there, no name, or a certificate exists already.
    """
    certificate, key_file = folder / "server.crt", folder / "server.key"
    _refuse_existing(certificate, key_file)
    if not names:
        raise KeyFileError(
            "a server certificate needs the name or address that silos connect to. Call: clues "
            "keys server NAME"
        )
    ca, ca_key = _read_authority(authority)
    key = ec.generate_private_key(CURVE())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    alternatives = [_general_name(name) for name in dict.fromkeys((*names, *ALWAYS))]
    made = (
        _builder(subject, ca.subject, key.public_key(), days=SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write_private(key_file, _pem(key))
    _write(certificate, made.public_bytes(serialization.Encoding.PEM))
    return certificate


def make_node_key(folder: Path, silo: str) -> tuple[Path, Path]:
    """Make a silo's `SILO.key`, which never leaves it, and `SILO.pub` for the coordinator.

    As `ssh-keygen -t ecdsa -b 384` makes them.

    Raises:
        KeyFileError: there is one already.
    """
    private, public = folder / f"{silo}.key", folder / f"{silo}.pub"
    _refuse_existing(private, public)
    key = ec.generate_private_key(CURVE())
    _write_private(
        private,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write(public, line + f" {silo}\n".encode())
    return private, public


def read_public_key(text: str, *, silo: str) -> bytes:
    """A silo's public key as Flower knows it (PEM), from one line of OpenSSH.

    Raises:
        KeyFileError: not a public key, or not one of a NIST curve.
    """
    try:
        key = load_ssh_public_key(text.strip().encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise KeyFileError(
            f"silo {silo}: not a public key of the kind ecdsa-sha2-nistp384. The silo makes one "
            "with `clues keys node` and sends its .pub file."
        )
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def check_private_key(path: Path) -> None:
    """Refuse a node key that Flower could not use, or that others on this machine can read.

    Raises:
        KeyFileError: with what is wrong.
    """
    try:
        refuse_what_never_ends(path)
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise KeyFileError(
            f"{path}: the key cannot be read ({error.strerror}). `clues keys node` makes one."
        ) from None
    except (ValueError, UnsupportedAlgorithm, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyFileError(
            f"{path}: not a private key of the kind ecdsa (384 bits) in OpenSSH's format and "
            "without a passphrase. `clues keys node` makes one."
        )
    check_closed(path)


def check_closed(path: Path) -> None:
    """Refuse a private key that others on this machine can read.

    Raises:
        KeyFileError: they can.
    """
    if path.stat().st_mode & OTHERS:
        raise KeyFileError(f"{path}: other users can read this key. Call: chmod 600 {path}")


def trusting(ca: Path) -> ssl.SSLContext:
    """Trust the certificates of one authority and nobody else's.

    Raises:
        KeyFileError: its own certificate is missing or cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=str(ca))
    except OSError as error:  # of which the errors of ssl are a kind
        raise KeyFileError(
            f"{ca}: not a certificate of an authority ({error.strerror or type(error).__name__}). "
            "Ask the coordinator for its ca.crt."
        ) from None


def fingerprint(pem: bytes) -> str:
    """SHA-256 of a public key as two people compare it over the telephone."""
    key = serialization.load_pem_public_key(pem)
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    text = digest.finalize().hex()[:32]
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def _read_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    ca_file, key_file = folder / "ca.crt", folder / "ca.key"
    ca_pem, key_pem = _read(ca_file), _read(key_file)
    check_closed(key_file)
    try:
        ca = x509.load_pem_x509_certificate(ca_pem)
    except ValueError:
        raise KeyFileError(f"{ca_file}: not a certificate. {_MADE_ANEW}") from None
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyFileError(f"{key_file}: not a key that `clues keys ca` made. {_MADE_ANEW}")
    if ca.public_key() != key.public_key():
        raise KeyFileError(f"{key_file}: not the key of {ca_file.name} beside it. {_MADE_ANEW}")
    return ca, key


def _read(path: Path) -> bytes:
    try:
        refuse_what_never_ends(path)
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(
            f"{path}: the authority cannot be read ({error.strerror}). `clues keys ca` makes ca.crt "
            "and ca.key, in the same folder."
        ) from None


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    # Clocks differ by a little: valid since an hour ago.
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise KeyFileError(f"{path}: exists already. Remove it first, if nobody uses it.")


def _write(path: Path, data: bytes) -> None:
    """Write what others are given: they may read it."""
    atomic_write_bytes(path, data, private=False)


def _write_private(path: Path, data: bytes) -> None:
    # A folder that the user had before may hold other things, and stays as open as it is.
    if not path.parent.exists():
        make_private_folder(path.parent)
    atomic_write_bytes(path, data, private=True)
