"""S3 as the kit uses it: addresses, one client per address, and its refusals as one sentence each.

Credentials, region and endpoint are boto3's to find (environment, profile, instance role, and
``AWS_ENDPOINT_URL`` for services other than Amazon's). It deliberately knows nothing of what is stored.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

from kit.errors import KitError, MissingDependencyError, SettingsError, UnavailableError, install_line

ADDRESS_RULE = "write a folder, or s3://bucket/prefix without credentials, query string or fragment"
#: What S3 takes in one PUT: docs.aws.amazon.com/AmazonS3, "Uploading objects".
MAX_PUT_BYTES = 5 << 30

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONNECT_TIMEOUT_S = 2
_READ_TIMEOUT_S = 30
_BAD_KEYS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "TokenRefreshRequired",
}


class Access:
    """One address on S3 as this process reaches it; nothing is contacted before the first request.

    Threads may share it. It does not survive pickling: open it in the process that uses it.

    Args:
        uri: ``s3://bucket/prefix``, for messages.
        max_attempts: How often a request is sent before it fails, waits of boto3's standard mode between.
        read_timeout_s: Longest silence of the server within a request.
        rights: What one must be allowed there, for the hint.
    """

    def __init__(
        self,
        uri: str,
        *,
        max_attempts: int = 4,
        read_timeout_s: float = _READ_TIMEOUT_S,
        rights: str = "s3:ListBucket, s3:GetObject and s3:PutObject",
    ) -> None:
        self.uri = uri
        self._max_attempts = max_attempts
        self._read_timeout_s = read_timeout_s
        self._rights = rights
        self._opened: Any = None
        self._opening = threading.Lock()

    def client(self) -> Any:
        """Give the boto3 client, made at the first call.

        Raises:
            SettingsError: The configured endpoint is not a URL.
        """
        with self._opening:  # a session of boto3 is not for two threads
            if self._opened is None:
                import boto3
                from botocore.config import Config

                config = Config(
                    connect_timeout=_CONNECT_TIMEOUT_S,
                    read_timeout=self._read_timeout_s,
                    retries={"mode": "standard", "total_max_attempts": self._max_attempts},
                )
                try:
                    self._opened = boto3.session.Session().client("s3", config=config)
                except ValueError as error:  # botocore's only word for an endpoint that is not a URL
                    if "endpoint" not in str(error):
                        raise
                    raise SettingsError(
                        "the S3 endpoint that was configured is not a URL",
                        hint="set AWS_ENDPOINT_URL to http(s)://host:port",
                    ) from error
            return self._opened

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what boto3 raises inside the block into errors of the kit.

        Raises:
            MissingDependencyError: boto3 is not installed.
            UnavailableError: The server does not answer, or refuses.
        """
        try:
            from boto3.exceptions import Boto3Error
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise MissingDependencyError(
                f"{self.uri} needs boto3, which is not installed", hint=install_line("cluster")
            ) from error
        try:
            yield
        except ClientError as error:
            raise self._refused(error) from error
        except (BotoCoreError, Boto3Error) as error:
            raise self._unreachable(error) from error

    def endpoint(self) -> str:
        """Name the server for a message, without a password."""
        return "the S3 endpoint" if self._opened is None else shown(self._opened.meta.endpoint_url)

    def _refused(self, error: Any) -> KitError:
        # Only the code is shown: a server's own sentence may repeat key ids and account names.
        code = error_code(error)
        if code == "NoSuchBucket":
            bucket = self.uri.removeprefix("s3://").partition("/")[0]
            return UnavailableError(
                f"the bucket {bucket!r} of {self.uri} does not exist at {self.endpoint()}",
                hint="create the bucket or correct the address",
            )
        if code in _BAD_KEYS:
            return UnavailableError(
                f"{self.endpoint()} refuses the S3 credentials for {self.uri}: {code}",
                hint="renew the credentials, or choose others with AWS_PROFILE",
            )
        if code in ("AccessDenied", "403", "AllAccessDisabled"):
            return UnavailableError(
                f"access to {self.uri} is denied",
                hint=f"allow {self._rights} there, or choose other credentials",
            )
        return UnavailableError(
            f"{self.endpoint()} answers {code} for {self.uri}",
            hint="check the address, then run the same command again",
        )

    def _unreachable(self, error: Exception) -> KitError:
        from botocore import exceptions as botocore

        if isinstance(error, botocore.NoCredentialsError):
            return UnavailableError(
                f"no S3 credentials were found for {self.uri}",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
            )
        credential_errors = (
            botocore.PartialCredentialsError,
            botocore.CredentialRetrievalError,
            botocore.ProfileNotFound,
            botocore.SSOError,
            botocore.TokenRetrievalError,
        )
        if isinstance(error, credential_errors):
            return UnavailableError(
                f"the S3 credentials for {self.uri} cannot be used: {type(error).__name__}",
                hint="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
            )
        cut_short = (botocore.ResponseStreamingError, botocore.IncompleteReadError)
        if isinstance(error, (botocore.ConnectionError, botocore.HTTPClientError, *cut_short)):
            return UnavailableError(
                f"the S3 endpoint {self.endpoint()} does not answer for {self.uri}: {type(error).__name__}",
                hint="check the network and AWS_ENDPOINT_URL, then run the same command again",
            )
        return UnavailableError(
            f"{self.uri} cannot be used: {type(error).__name__}",
            hint="check the AWS configuration of this machine",
        )


def error_code(error: Any) -> str:
    """Give the code of a botocore ``ClientError``, such as ``NoSuchKey``."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def split_address(uri: str, *, kind: str) -> tuple[str, str]:
    """Split ``s3://bucket/prefix``.

    Args:
        uri: The address.
        kind: What it should be the address of, for the message: ``a store``.

    Returns:
        The bucket, and the prefix with a slash at its end, or empty.

    Raises:
        SettingsError: It is no such address, or holds credentials, a query string or a fragment.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    segments = prefix.removesuffix("/").split("/") if prefix else []
    clean = all(segment not in ("", ".", "..") for segment in segments) and uri.isprintable()
    if not _BUCKET.fullmatch(bucket) or ".." in bucket or not clean or any(sign in uri for sign in "?#@ \\"):
        raise SettingsError(f"{shown(uri)!r} is not {kind} address", hint=ADDRESS_RULE)
    return bucket, "".join(f"{segment}/" for segment in segments)


def shown(uri: str) -> str:
    """Write an address for a message or a log, without what may be a password (before an @, after a ?)."""
    parts = re.split(r"[?#]", uri)
    return re.sub(r"//[^/]*@", "//***@", parts[0]) + ("?..." if len(parts) > 1 else "")
