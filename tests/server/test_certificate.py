from __future__ import annotations

from ipaddress import ip_address

from cryptography import x509
from loopback import http_client, served, server_configuration

from quicferry import ClientMigration, Configuration
from quicferry.server import load_pem, self_signed


def test_names_and_addresses() -> None:
    pem, key = self_signed(["example.org", "127.0.0.1", "::1"])
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["example.org"]
    addresses = [ip_address("127.0.0.1"), ip_address("::1")]
    assert names.value.get_values_for_type(x509.IPAddress) == addresses
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert self_signed(["example.org"]) != self_signed(["example.org"])


async def test_a_client_that_is_given_it_trusts_it() -> None:
    pem, key = self_signed(["127.0.0.1"])
    configuration = server_configuration()
    load_pem(configuration, pem, key)
    async with served(configuration=configuration) as server:
        trusting = Configuration(cadata=pem, server_migration=ClientMigration())
        async with http_client(server, configuration=trusting) as client:
            assert (await client.request("POST", "/", body=b"trusted")).body == b"trusted"
