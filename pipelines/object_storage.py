"""How is an object in a bucket, or a file, read and written whole? Failures that pass are waited out, others named.

pyarrow does not notice an answer that is shorter than the object: it fills it up with zeros. So whoever reads says how
a whole one is told, and what is not whole is read again before it counts as damaged.
"""

from __future__ import annotations

import os
import random
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pyarrow import fs

from orchestrator.errors import DamagedArtifact, PreflightError
from pipelines.s3_settings import S3Settings, without_secrets

T = TypeVar("T")

RETRY_SECONDS = 120.0
"""No attempt begins later than this after the first failed. The last may itself take 2 * REQUEST_SECONDS."""
FIRST_WAIT, LONGEST_WAIT = 0.25, 10.0
"""Seconds between attempts: doubled each time, and drawn from the upper half, so that workers do not ask in step."""
CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 30.0
"""An answer that stands still for so long is given up."""
SDK_ATTEMPTS = 2
READINGS = 3
"""Of an object that is not whole, before it is called damaged."""

BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")
FIXES = {
    # Of HEAD requests, which have no body, S3 says no more than the status.
    r"ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|INVALID_SIGNATURE"
    r"|MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|INVALID_TOKEN|EXPIRED_TOKEN|HTTP status 40[13]\b"
    r"|PERMISSION_DENIED|UNAUTHENTICATED": "the credentials are wrong, or may not do this: see AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY, AWS_PROFILE (of gs://, GOOGLE_APPLICATION_CREDENTIALS), and the bucket's policy",
    r"NO_SUCH_BUCKET|NO_SUCH_KEY|RESOURCE_NOT_FOUND|HTTP status 404\b": "it, or its bucket, is not there: see the URL, "
    "and the endpoint in AWS_ENDPOINT_URL",
    r"HTTP status 30[17]\b|PermanentRedirect|AuthorizationHeaderMalformed|HTTP status 400\b": "the region may be "
    "another: set AWS_REGION to the bucket's; or a session token has run out",
    r"REQUEST_TIME_TOO_SKEWED|REQUEST_EXPIRED": "this machine's clock is wrong: set it",
    r"curlCode: 60\b": "the server's certificate is not trusted: see AWS_ENDPOINT_URL",
    r"Permanent error": "trying again would not help: see the URL and the credentials",  # Google's library says so
}
"""What is not tried again, by how the libraries say it. What none of them knows may pass."""


@dataclass(frozen=True)
class Location:
    """Where one object or a folder of them is. It holds no connection and no secret, and may be pickled."""

    url: str
    """s3://BUCKET/PATH, gs://BUCKET/PATH, or the absolute path of a file; without a slash at its end."""

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.url}/{name}")

    @property
    def parent(self) -> Location:
        """The folder it is in."""
        return Location(self.url.rpartition("/")[0])

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    def check_bucket(self) -> None:
        """Raises PreflightError when the bucket is not there. Servers differ: some make one at the first write."""
        if "://" not in self.url:
            return
        bucket = urlsplit(self.url).netloc
        info = _patiently(self, "looked at", lambda: _files(self.url).get_file_info(bucket))
        if info.type == fs.FileType.NotFound:
            raise PreflightError(f"{self}: there is no bucket {bucket!r}: make it first, or see AWS_ENDPOINT_URL")

    def size(self) -> int | None:
        """Bytes of the object; None where there is none. One HEAD request: nothing is listed."""
        try:
            return _patiently(self, "looked at", self._size)
        except FileNotFoundError:
            return None

    def read(self, *, is_whole: Callable[[bytes], bool], size: int | None = None) -> bytes:
        """All of it. Raises DamagedArtifact for what is not there, not of its size, or not whole however often read."""
        for _ in range(READINGS):
            try:
                content = _patiently(self, "read", self._read)
            except FileNotFoundError as error:
                raise DamagedArtifact(self.url, "is not there, or its bucket is not") from error
            if size is not None and len(content) != size:
                raise DamagedArtifact(self.url, f"has {len(content)} bytes instead of {size}")
            if is_whole(content):
                return content
        raise DamagedArtifact(self.url, f"is not what was written, read {READINGS} times")

    def write(self, content: bytes) -> None:
        """Put it there, whole or not at all."""
        _patiently(self, "written", lambda: self._write(content))
        if (size := self.size()) != len(content):
            raise PreflightError(f"{self}: {size} bytes are there of {len(content)} that were written; write it again")

    def _size(self) -> int:
        with _files(self.url).open_input_file(_path(self.url)) as stream:
            return stream.size()

    def _read(self) -> bytes:
        with _files(self.url).open_input_file(_path(self.url)) as stream:
            return stream.read()

    def _write(self, content: bytes) -> None:
        files, path = _files(self.url), _path(self.url)
        if isinstance(files, fs.LocalFileSystem):
            files.create_dir(str(Path(path).parent), recursive=True)
            partial = str(Path(path).with_name(f".{self.name}.{uuid.uuid4().hex}"))
            _put(files, partial, content)
            files.move(partial, path)
        else:
            _put(files, path, content)


def open_location(url: str) -> Location:
    """Of s3://, gs://, file:// or a path. Raises ValueError for any other, without repeating what may be a secret."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        if not url:
            raise ValueError("an empty URL: name s3://BUCKET/PATH, gs://BUCKET/PATH, or a folder")
        return Location(str(Path(url).expanduser().absolute()))
    scheme = scheme.lower()
    if scheme == "file":
        if not rest.startswith("/"):
            raise ValueError("a file URL of this machine has three slashes: file:///FOLDER")
        return Location(str(Path(url2pathname(rest))))
    if scheme not in ("s3", "gs"):
        raise ValueError(f"{scheme}:// is not known: name s3://BUCKET/PATH, gs://BUCKET/PATH, or a folder")
    bucket, _, path = rest.rstrip("/").partition("/")
    if any(sign in rest for sign in "@?#") or not BUCKET.fullmatch(bucket) or {"", ".", ".."} & {*path.split("/")}:
        raise ValueError(
            f"this {scheme}:// URL (not repeated: it may hold a secret) is not {scheme}://BUCKET/PATH. Credentials and "
            f"settings do not belong in it: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION"
        )
    return Location(f"{scheme}://{bucket}/{path}")


def _put(files: fs.FileSystem, path: str, content: bytes) -> None:
    # One write, and no `with`: that would close, and thereby complete, what an exception has cut short.
    stream = files.open_output_stream(path)
    stream.write(content)
    stream.close()


def _patiently(location: Location, what: str, attempt: Callable[[], T]) -> T:
    """attempt(), again and again while it fails as things do that pass. FileNotFoundError goes through."""
    wait, began = FIRST_WAIT, time.monotonic()
    while True:
        try:
            return attempt()
        except FileNotFoundError:
            raise
        except OSError as error:
            said = without_secrets(str(error)).rstrip(". ")
            if error.errno is not None:  # of this machine's files; answers of servers have no number
                raise PreflightError(f"{location} cannot be {what} ({said})") from error
            fix = next((fix for pattern, fix in FIXES.items() if re.search(pattern, said)), None)
            if fix is not None:
                raise PreflightError(f"{location} cannot be {what}: {fix} ({said})") from error
            left = began + RETRY_SECONDS - time.monotonic()
            if left <= 0:
                raise PreflightError(
                    f"{location} could not be {what} within {RETRY_SECONDS:g} s: is the server up (of "
                    f"s3://, the one in AWS_ENDPOINT_URL)? ({said})"
                ) from error
        time.sleep(min(left, random.SystemRandom().uniform(wait / 2, wait)))  # no generator of training is touched
        wait = min(2 * wait, LONGEST_WAIT)


def _files(url: str) -> fs.FileSystem:
    scheme = url.partition("://")[0] if "://" in url else "file"
    # By process: connections do not survive a fork.
    return _connected(scheme, S3Settings.of(os.environ) if scheme == "s3" else None, os.getpid())


@lru_cache(maxsize=8)
def _connected(scheme: str, s3: S3Settings | None, pid: int) -> fs.FileSystem:
    if scheme == "file":
        return fs.LocalFileSystem()
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=2 * REQUEST_SECONDS))
    assert s3 is not None
    # Shards are held against their SHA-256; the library's own checksum would double what reading costs. It looks there.
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    return fs.S3FileSystem(
        anonymous=s3.anonymous,
        endpoint_override=s3.endpoint,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        allow_delayed_open=True,  # small objects are one request
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=SDK_ATTEMPTS),
    )


def _path(url: str) -> str:
    return url.partition("://")[2] if "://" in url else url
