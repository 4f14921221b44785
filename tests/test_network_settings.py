"""The two short files of separate machines, and the keys that they name."""

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
import yaml

pytest.importorskip("cryptography", reason="comes with Flower: clues[flower]")

from clues.errors import ConfigError, KeyFileError
from clues.network.keys import (
    check_private_key,
    fingerprint,
    make_authority,
    make_node_key,
    make_server_certificate,
    read_public_key,
    trusting,
)
from clues.network.settings import is_loopback, load_coordinator, load_join, split_address
from deploy.rehearsal import write_hospitals

OTHER = {"public": "fl.example.org:443"}
SILO = "north-clinic"


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    return write_hospitals(tmp_path_factory.mktemp("hospitals"))


def changed(path: Path, **changes) -> Path:
    """A file beside another, with some keys changed; None takes a key out."""
    content = {**yaml.safe_load(path.read_text()), **changes}
    other = path.with_name("changed.yaml")
    other.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return other


def test_both_files_are_read_and_what_they_name_is_found(hospitals):
    found = load_coordinator(hospitals.coordinator)
    assert set(found.keys) == set(hospitals.silos)
    assert found.folder == hospitals.coordinator_run
    assert found.settings.ca.is_absolute()
    silo = load_join(hospitals.silos[SILO])
    assert silo.silo.name == SILO
    assert Path(silo.silo.data).is_absolute()
    assert silo.folder == hospitals.silo_run(SILO)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"superlink": "0.0.0.0:8000"}, "superlink must be on loopback"),
        ({"insecure": True, **OTHER}, "insecure is for loopback"),
        ({"insecure": True}, "public and superlink must be the same"),
        ({"silos": [SILO]}, "must give each silo's public key"),
        ({"silos": {}}, "silos lists nobody"),
        ({"silos": {SILO: "nobody.pub"}}, "there is no file nobody.pub"),
        ({"silos": {SILO: "no\u202ebody.pub"}}, r"there is no file no\\u202ebody.pub"),
        ({"silos": {SILO: "a\0b"}}, "holds a zero byte"),
        ({"silos": {SILO: "1" * 300}}, "File name too long"),
        ({"run": "1" * 300}, "File name too long"),
        ({"silos": {"../x": "x"}}, "name"),
        ({"ca": None}, "ca is missing"),
        ({"ca": "no.crt"}, "no.crt: there is no such file"),
        ({"ca": "no\u202e.crt"}, r"no\\u202e.crt: there is no such file"),
        ({"ca": "a\0b"}, "holds a zero byte"),
        ({"folder": "a\0b"}, "holds a zero byte"),
        ({"public": "fl.example.org"}, "must look like host:443"),
        ({"publik": "x:1"}, "Did you mean 'public'?"),
        ({"run": "clues.yaml"}, "each silo keeps its own settings"),
    ],
)
def test_a_wrong_coordinator_file_says_what_to_do(hospitals, changes, says):
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        load_coordinator(changed(hospitals.coordinator, **changes))


def test_one_key_for_two_silos_is_refused(hospitals):
    keys = dict.fromkeys(hospitals.silos, f"../keys/{SILO}.pub")
    with pytest.raises(ConfigError, match="the same public key"):
        load_coordinator(changed(hospitals.coordinator, silos=keys))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key": None}, "key is missing"),
        ({"insecure": True, "coordinator": "fl.example.org:443"}, "insecure is for loopback"),
        ({"silo": {"name": "x"}}, "silo.data is missing"),
        ({"folder": None}, "folder is missing"),
        ({"folder": "a\0b"}, "holds a zero byte"),
        ({"key": "a\0b"}, "holds a zero byte"),
        ({"silo": {"name": SILO, "domain": "medicine", "data": "1" * 300}}, "File name too long"),
        ({"cordinator": "x:1"}, "Did you mean 'coordinator'?"),
    ],
)
def test_a_wrong_silo_file_says_what_to_do(hospitals, changes, says):
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        load_join(changed(hospitals.silos[SILO], **changes))


def test_addresses_are_taken_apart():
    assert split_address("fl.example.org:443") == ("fl.example.org", 443)
    assert split_address("[::1]:443") == ("::1", 443)
    assert [is_loopback(a) for a in ("127.0.0.2:1", "[::1]:1", "localhost:1", "10.0.0.1:1")] == [
        True,
        True,
        True,
        False,
    ]
    for wrong in ("host", "host:", ":443", "host:70000", "::1:443", "host:x"):
        with pytest.raises(ValueError, match=r":443|brackets"):
            split_address(wrong)


def handshake(certificate: Path, ca: Path, *, name: str) -> None:
    """Connect with TLS to a server that has this certificate, trusting only this authority."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, certificate.with_suffix(".key"))
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with pytest.MonkeyPatch.context(), theirs:
            try:
                server.wrap_socket(theirs, server_side=True).close()
            except (ssl.SSLError, ConnectionError):
                return

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with (
            ours,
            ssl.create_default_context(cafile=str(ca)).wrap_socket(ours, server_hostname=name),
        ):
            pass
    finally:
        ours.close()
        thread.join()


def test_a_certificate_holds_for_its_names_and_its_authority_alone(tmp_path):
    make_authority(tmp_path / "one")
    make_authority(tmp_path / "two")
    made = make_server_certificate(
        tmp_path / "one", ["fl.example.org", "10.1.2.3"], authority=tmp_path / "one"
    )
    for name in ("fl.example.org", "10.1.2.3", "localhost"):
        handshake(made, tmp_path / "one/ca.crt", name=name)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"fl\.example\.com"):
        handshake(made, tmp_path / "one/ca.crt", name="fl.example.com")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, tmp_path / "two/ca.crt", name="fl.example.org")


def test_private_keys_are_private_from_the_start_and_nothing_is_overwritten(tmp_path):
    make_authority(tmp_path)
    make_server_certificate(tmp_path, ["a.org"], authority=tmp_path)
    private, public = make_node_key(tmp_path, "north")
    for key in ("ca.key", "server.key", "north.key"):
        assert stat.S_IMODE((tmp_path / key).stat().st_mode) == 0o600
    check_private_key(private)
    for again in (
        lambda: make_authority(tmp_path),
        lambda: make_server_certificate(tmp_path, ["a.org"], authority=tmp_path),
        lambda: make_node_key(tmp_path, "north"),
    ):
        with pytest.raises(KeyFileError, match="exists already"):
            again()
    private.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        check_private_key(private)
    with pytest.raises(KeyFileError, match="not a private key"):
        check_private_key(public)


def test_an_authority_that_cannot_be_used_says_which_file_and_what_to_do(tmp_path):
    def says(what: str) -> None:
        with pytest.raises(KeyFileError, match=what):
            make_server_certificate(tmp_path / "server", ["a.org"], authority=tmp_path)

    says(r"ca\.crt: the authority cannot be read \(No such file.*`clues keys ca` makes")
    certificate, key = make_authority(tmp_path)
    whole, other = key.read_bytes(), make_authority(tmp_path / "other")[1].read_bytes()
    anew = r"Put the file back .* call `clues keys ca`, and give every silo the new ca\.crt"
    for content, what in (
        (b"nonsense", "not a key that"),
        (other, r"not the key of ca\.crt beside it"),
    ):
        key.write_bytes(content)
        says(rf"ca\.key: {what}.* {anew}")
    key.write_bytes(whole)
    certificate.write_text("nonsense")
    says(rf"ca\.crt: not a certificate\. {anew}")
    for path in (certificate, tmp_path / "no.crt"):
        with pytest.raises(
            KeyFileError, match=rf"{path.name}: .*Ask the coordinator for its ca\.crt"
        ):
            trusting(path)


def test_a_public_key_is_recognised_and_has_a_fingerprint_to_read_aloud(tmp_path):
    _, public = make_node_key(tmp_path, "north")
    pem = read_public_key(public.read_text(), silo="north")
    assert pem.startswith(b"-----BEGIN PUBLIC KEY-----")
    assert len(fingerprint(pem).split()) == 8
    assert fingerprint(pem) == fingerprint(read_public_key(public.read_text(), silo="north"))
    ed25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
    for wrong in ("", "ecdsa-sha2-nistp384 AAAA", ed25519):
        with pytest.raises(KeyFileError, match="silo north: not a public key"):
            read_public_key(wrong, silo="north")
