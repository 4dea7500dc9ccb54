"""What is shown holds no key and no password, and is else as it was."""

import pytest

from tomoray.credentials import IN_ENVIRONMENT, has_credentials, redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg2://mlflow:hunter2@db:5432/mlflow", "postgresql+psycopg2://***@db:5432/mlflow"),
        ("s3://AKIAEXAMPLE:wJalr/K7MDENG+bPx@bucket/a", "s3://***@bucket/a"),
        ("https://u:p@ss@host/x: gone, see http://u:q@other", "https://***@host/x: gone, see http://***@other"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("URL('http://u:12345@host:80/x')", "URL('http://***@host:80/x')"),
        ("https://b.s3.example/x?X-Amz-Credential=A%2Fb&X-Amz-Date=1&X-Amz-Signature=abc", None),
        ("https://host/x?a=1&token=abc, and so on", "https://host/x?a=1&token=***"),
    ],
)
def test_credentials_of_addresses_are_blacked_out(text: str, shown: str | None) -> None:
    """AWS' keys hold slashes. Planted: a pattern that ends at the first slash; one that takes a password up to its first `@`."""
    assert has_credentials(text)
    for secret in ("hunter2", "wJalr", "MDENG", "ss@", "12345", "ghp_token", "=abc", "A%2Fb"):
        assert secret not in redacted(text)
    if shown and " and " not in shown and " see " not in shown:
        assert redacted(text).startswith(shown)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/user@lab/a.mrc",
        "http://host:8080/a@b",
        "models:/picker@champion",
        "/data/run@5/x.mrc: a=1&b=2",
        "https://host/x?page=2",
        "postgresql://db/mlflow",
        "TS_5_4: 3.5",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    """Planted: every `@` after `://` taken for the end of a password."""
    assert not has_credentials(text)
    assert redacted(text) == text


@pytest.mark.parametrize("name", IN_ENVIRONMENT)
def test_secrets_of_the_environment_are_blacked_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "not-for-your-eyes")
    assert redacted("SignatureDoesNotMatch: not-for-your-eyes") == "SignatureDoesNotMatch: ***"
    monkeypatch.setenv(name, "test")
    assert redacted("tests of a test") == "tests of a test", "a word that is everywhere is no secret"
