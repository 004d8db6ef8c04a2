"""One Ray dashboard over HTTP: is it there, take this job, how is that one, what does it write.

Ray's client has no deadline and half a dozen kinds of error; here every question is asked after a
look with a deadline, and every failure is one of ours. Knows nothing of what the jobs do.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jobs.cluster import show_token
from kit.errors import MissingDependencyError, NotFoundError, UnavailableError, install_line

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

_START_HINT = "start it (ray up ray-cluster.yaml; ray dashboard ray-cluster.yaml), or correct --address"
_TOKEN_HINT = "set RAY_AUTH_TOKEN to the cluster's token, or write it to ~/.ray/auth_token"


class Dashboard:
    """The dashboard of a cluster that answers when this is made.

    Args:
        address: Its URL.
        timeout_s: Longest wait for an answer.

    Raises:
        UnavailableError: Nobody answers in time, it is no Ray dashboard, or it refuses the token.
        MissingDependencyError: Ray is not installed.
    """

    def __init__(self, address: str, *, timeout_s: float) -> None:
        self.address, self.timeout_s = address, timeout_s
        self._client = self._connect()

    def submit(self, job_id: str, *, entrypoint: str, runtime_env: Mapping[str, Any]) -> None:
        """Start a job under an id that no job of the cluster has had.

        Raises:
            UnavailableError: The cluster does not answer, is still starting, or refuses.
        """
        with self._reached():
            self._client.submit_job(
                entrypoint=entrypoint, runtime_env=dict(runtime_env), submission_id=job_id
            )

    def details(self, job_id: str) -> JobDetails:
        """Ask how a job is.

        Raises:
            NotFoundError: The cluster does not know it.
            UnavailableError: The cluster does not answer.
        """
        self.look()
        with self._reached():
            try:
                return self._client.get_job_info(job_id)
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
                raise NotFoundError(
                    f"the cluster at {self.address} knows no job {job_id!r}",
                    hint=f"list its jobs: ray job list --address {self.address}",
                ) from error

    async def log(self, job_id: str) -> AsyncIterator[str]:
        """Give a job's output from its beginning, in chunks, until it has ended or the way to it is cut.

        Raises:
            UnavailableError: The connection was lost; the job may go on.
        """
        import aiohttp

        try:
            async for chunk in self._client.tail_job_logs(job_id):
                yield chunk
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise UnavailableError(f"{error or type(error).__name__}") from error

    def look(self) -> None:
        """Make sure a Ray dashboard answers, within the deadline.

        Raises:
            UnavailableError: It does not.
        """
        url = f"{self.address.rstrip('/')}/api/version"
        try:
            with urllib.request.urlopen(url, timeout=self.timeout_s) as answer:
                is_ray = "ray_version" in json.load(answer)
        except urllib.error.HTTPError as error:
            is_ray = error.code in (401, 403)  # Ray's client has the token and the words for it
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UnavailableError(
                f"no cluster answers at {self.address} within {self.timeout_s:g} s: {reason}",
                hint=_START_HINT,
            ) from error
        if not is_ray:
            raise UnavailableError(f"what answers at {self.address} is not a Ray dashboard", hint=_START_HINT)

    def _connect(self) -> JobSubmissionClient:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise MissingDependencyError(
                f"this command needs Ray, which cannot be imported: {error}", hint=install_line("cluster")
            ) from error
        self.look()
        show_token()
        with self._reached():
            client = JobSubmissionClient(self.address)
        for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return client

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn what Ray's client raises into ours."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise UnavailableError(
                f"the cluster at {self.address} refuses the token", hint=_TOKEN_HINT
            ) from error
        except (ConnectionError, requests.RequestException) as error:
            raise UnavailableError(
                f"the cluster at {self.address} does not answer any more: {type(error).__name__}",
                hint=_START_HINT,
            ) from error
        except (RuntimeError, ValueError) as error:
            if "No available agent" in str(error):
                raise UnavailableError(
                    f"the cluster at {self.address} is still starting",
                    hint="run the same command again in a minute",
                ) from error
            raise UnavailableError(
                f"the cluster at {self.address} refuses the job: {str(error)[:300]}",
                hint="correct what it names; large data belongs on s3:// or a shared folder, not in "
                "the project",
            ) from error
