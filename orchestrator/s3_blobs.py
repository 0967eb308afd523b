"""How are files kept in a bucket, so that nothing half-written is ever read? The one place that imports boto3.

S3 has a file whole or not at all, checks what it receives against a checksum, and changes one only if it is still what
it was, when asked so. AWS_ENDPOINT_URL, and all else that boto3 takes from the environment, holds.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

from orchestrator.blobs import Conflict, TransientError

PART = 64 * 2**20
CONTENT = "sha256"  # metadata of a file that is swapped, by which we know our own
CONNECT_SECONDS, READ_SECONDS = 10, 60
MISSING = {"404", "NoSuchKey", "NotFound"}
CONFLICT = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
HOPELESS = {"NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidBucketName"}
"""What asking again does not mend. A plain refusal (403) may: roles and policies take a while to be known."""


class S3Blobs:
    """Below a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self.location = f"s3://{bucket}/{prefix}"
        settings = Config(
            connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": 1},
            s3={"addressing_style": "auto"},
        )  # fmt: skip
        # Not shared by threads: each of a process's stores has its own. boto3 reads AWS_DEFAULT_REGION alone.
        region = os.environ.get("AWS_REGION")
        self._client: Any = boto3.session.Session(region_name=region).client("s3", config=settings)
        self._in_parts = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)

    def write(self, name: str, content: bytes) -> None:
        """See Blobs. Read back in size, and in checksum by the server, before this returns."""
        with self._asking(name):
            self._client.upload_fileobj(io.BytesIO(content), self._bucket, self._key(name), Config=self._in_parts)
            size = self._client.head_object(Bucket=self._bucket, Key=self._key(name))["ContentLength"]
        if size != len(content):
            raise TransientError(f"{self.location}/{name}: {size} of {len(content)} bytes arrived")

    def read(self, name: str) -> bytes:
        """See Blobs."""
        return self._get(name)[1]

    def names(self) -> list[str]:
        """See Blobs."""
        found: list[str] = []
        with self._asking(""):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                found += [entry["Key"].removeprefix(self._prefix) for entry in page.get("Contents", [])]
        return found

    def delete(self, name: str) -> None:
        """See Blobs."""
        with self._asking(name):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def version(self, name: str) -> tuple[str, bytes] | None:
        """See Blobs: the server's own tag."""
        try:
            return self._get(name)
        except FileNotFoundError:
            return None

    def swap(self, name: str, content: bytes, *, expected: str | None) -> str:
        """See Blobs. A conflict with our own content, which arrived though its answer did not, is none."""
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        try:
            with self._asking(name):
                answer = self._client.put_object(
                    Bucket=self._bucket, Key=self._key(name), Body=content,
                    Metadata={CONTENT: hashlib.sha256(content).hexdigest()}, **condition,
                )  # fmt: skip
                return str(answer["ETag"])
        except (Conflict, FileNotFoundError) as conflict:  # If-Match on what is gone is answered by 404
            found = self.version(name)
            if found is not None and found[1] == content:
                return found[0]
            raise Conflict(f"{self.location}/{name} was changed by somebody else") from conflict

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _get(self, name: str) -> tuple[str, bytes]:
        with self._asking(name):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
            content = answer["Body"].read()  # raises where fewer bytes come than were announced
        return str(answer["ETag"]), content

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """What went wrong, as this project says it; nothing of the request, which may hold credentials."""
        where = f"{self.location}/{name}"
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            if code in MISSING:
                raise FileNotFoundError(where) from error
            if code in CONFLICT:
                raise Conflict(where) from error
            if code in HOPELESS:
                raise OSError(f"{where}: {code}") from error
            raise TransientError(f"{where}: the server said {code}") from error
        except (NoCredentialsError, ParamValidationError) as error:
            raise OSError(f"{where}: {error}") from error
        except (BotoCoreError, boto3.exceptions.Boto3Error, OSError) as error:
            raise TransientError(f"{where}: {type(error).__name__}") from error
