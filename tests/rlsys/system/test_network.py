"""The interface of an address is found by the operating system's own list."""

from rlsys.system.network import interface_of


def test_the_loopback_has_its_address_and_nobody_has_another_network_s():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None  # of a network reserved for documentation
