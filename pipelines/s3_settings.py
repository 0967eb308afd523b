"""Which S3 is meant, and who asks? What the environment and AWS's own files say; a URL says nothing of it.

pyarrow finds credentials and region there by itself, an endpoint it does not. No secret passes through here.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.errors import PreflightError

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
ANONYMOUS = "PAPERTABLE_S3_ANONYMOUS"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


@dataclass(frozen=True)
class S3Settings:
    """What is told to pyarrow; nothing of it is secret."""

    endpoint: str | None
    """http://HOST:PORT or https://HOST of a server that is not AWS."""
    anonymous: bool
    """Ask without credentials: public buckets."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> S3Settings:
        """Raises PreflightError for an endpoint that is none, and for a profile that is not there."""
        anonymous = environment.get(ANONYMOUS, "0")
        if anonymous not in ("0", "1"):
            raise PreflightError(f"{ANONYMOUS}={anonymous}: set it to 1 to ask without credentials, or to 0")
        profile = _profile(environment)
        for name in ENDPOINTS:
            if environment.get(name):
                return cls(_checked(environment[name], name), anonymous == "1")
        endpoint = profile.get("endpoint_url")
        if endpoint is None and "services" in profile:
            raise PreflightError(
                "the AWS profile names services, whose endpoints are not read here: set AWS_ENDPOINT_URL_S3, or "
                "endpoint_url in the profile itself"
            )
        return cls(endpoint and _checked(endpoint, "endpoint_url of the AWS profile"), anonymous == "1")


def without_secrets(text: str) -> str:
    """The text with the environment's own credentials taken out, should a server have said them."""
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, f"({name})")
    return text


def _profile(environment: Mapping[str, str]) -> Mapping[str, str]:
    """What AWS's config file says of the profile in use."""
    home = Path(environment.get("HOME", "~")).expanduser() / ".aws"
    files = [environment.get("AWS_CONFIG_FILE") or home / "config",
             environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"]  # fmt: skip
    config, credentials = (configparser.ConfigParser(interpolation=None) for _ in files)
    for parser, file in zip((config, credentials), files, strict=True):
        try:
            parser.read(file)
        except configparser.Error as error:
            # No `from`: the parser's own message quotes lines of the file.
            raise PreflightError(f"{file} cannot be read ({type(error).__name__}): mend it") from None
    name = environment.get("AWS_PROFILE") or "default"
    section = name if name == "default" else f"profile {name}"
    if environment.get("AWS_PROFILE") and section not in config and name not in credentials:
        raise PreflightError(f"AWS_PROFILE={name}: neither {files[0]} nor {files[1]} has a profile of that name")
    return config[section] if config.has_section(section) else {}


def _checked(endpoint: str, source: str) -> str:
    parts = urlsplit(endpoint)
    bare = parts.scheme in ("http", "https") and parts.hostname and not parts.query and parts.path in ("", "/")
    if not bare or "@" in endpoint:
        raise PreflightError(  # it may hold a password, and is not repeated
            f"{source} is no endpoint: http:// or https://, a host and perhaps a port, nothing else; credentials "
            f"belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return endpoint.rstrip("/")
