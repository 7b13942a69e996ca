"""PURE. HOST:PORT as people write it."""

from __future__ import annotations

import ipaddress

from server.errors import ConfigError


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT in parts. Raises ConfigError."""
    host, separator, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"`{address}` is not HOST:PORT", hint="For instance 127.0.0.1:6335")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The other way round."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
