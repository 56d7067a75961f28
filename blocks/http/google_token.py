"""ID tokens by which Google Cloud Run and its like know who asks."""

from __future__ import annotations

import threading
import time
from typing import Any

from prefect_renderfarm.blocks.errors import SetupError, WorkerLost

INSTALL = "pip install 'prefect-renderfarm[google]'"
# Google's tokens last an hour. A new one is fetched this long before, so that a request that waits
# at a provider's door does not come in with an old one.
_EARLY_SECONDS = 300.0


class GoogleToken:
    """An ID token for one audience, fetched when it is needed; safe to use from several threads.

    Args:
        audience: Whom the token is for: the address of the service.
    """

    def __init__(self, audience: str) -> None:
        self.audience = audience
        self._lock = threading.Lock()
        self._token = ""
        self._good_until = 0.0

    def value(self) -> str:
        """Return a token that is good for minutes yet.

        It comes from where google-auth looks: the file that `GOOGLE_APPLICATION_CREDENTIALS` names,
        else the metadata server of the machine.

        Raises:
            SetupError: google-auth is not installed, or finds no credentials.
            WorkerLost: Google did not answer.
        """
        with self._lock:
            if time.time() > self._good_until - _EARLY_SECONDS:
                self._token = self._fetch()
                self._good_until = _expiry(self._token)
            return self._token

    def _fetch(self) -> str:
        try:
            # Only here: google-auth is an extra.
            from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
            from google.auth.transport.requests import Request
            from google.oauth2 import id_token
        except ImportError:
            raise SetupError(
                f"a Google ID token for {self.audience!r} needs google-auth: {INSTALL}"
            ) from None
        fetch: Any = id_token.fetch_id_token  # has no types
        try:
            return str(fetch(Request(), self.audience))
        except DefaultCredentialsError as error:
            raise SetupError(
                f"there are no Google credentials for an ID token for {self.audience!r}: "
                f"{_line(error)}; set GOOGLE_APPLICATION_CREDENTIALS to a service account's file, "
                "or run where Google gives one"
            ) from None
        except GoogleAuthError as error:
            raise WorkerLost(
                f"Google gave no ID token for {self.audience!r}: {_line(error)}"
            ) from None


def _expiry(token: str) -> float:
    """Return until when a token is good, in seconds since 1970; it is not verified here."""
    from google.auth import jwt

    decode: Any = jwt.decode  # has no types
    try:
        return float(decode(token, verify=False)["exp"])
    except (ValueError, KeyError, TypeError):
        return 0.0  # of another form: fetched anew each time


def _line(error: Exception) -> str:
    return str(error.args[0] if error.args else error).splitlines()[0][:200]
