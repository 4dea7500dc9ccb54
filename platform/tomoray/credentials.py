"""Keys and passwords: they live in the environment, and are blacked out of whatever is shown, logged or saved."""

from __future__ import annotations

import os
import re

BLACKED_OUT = "***"
IN_ENVIRONMENT = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
    "RAY_AUTH_TOKEN",
)
SHORTEST = 8  # a secret of fewer letters may be part of any word

# After `://` and before `@`: a name and a secret, which may hold slashes (AWS' do) where it is no port; or one word, such as a token.
_USER = re.compile(r"""([A-Za-z][\w+.-]*://)(?:[^\s/@:'"]*:(?!\d{1,5}/)[^\s'"]*|[^\s/@'"]+)@""")
_QUERY = re.compile(r"""(?i)([?&](?:[\w-]*(?:signature|credential|token|password|secret)|sig|api_?key)=)[^&\s'"]+""")


def has_credentials(text: str) -> bool:
    """Return whether an address in a text holds a name and a password, a token or a signature."""
    return bool(_USER.search(text) or _QUERY.search(text))


def redacted(text: str) -> str:
    """Return a text as it may be shown: without the credentials of addresses in it, and without the secrets of our environment."""
    for name in IN_ENVIRONMENT:
        secret = os.environ.get(name, "")
        if len(secret) >= SHORTEST:
            text = text.replace(secret, BLACKED_OUT)
    return _QUERY.sub(rf"\1{BLACKED_OUT}", _USER.sub(rf"\1{BLACKED_OUT}@", text))
