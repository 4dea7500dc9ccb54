"""What the storage libraries raise, as the few errors that a person can act upon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tomoray.credentials import redacted


@contextmanager
def plain_errors(address: str, *, local: bool) -> Iterator[None]:
    """Turn what the storage libraries raise in this block into errors that say of which address, why, and what to do.

    Raises
    ------
    OSError
        FileNotFoundError, IsADirectoryError, PermissionError, TimeoutError or ConnectionError; that of a `local` file as it came, where it
        is none of these.
    """
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{address}: there is no such file or folder; check the path and, for s3://, the bucket and the endpoint") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{address}: this is a folder where a file is needed; give the path of a file in it") from None
    except PermissionError as error:
        raise PermissionError(_refused(address, error, local=local)) from None
    except TimeoutError as error:
        raise TimeoutError(
            f"{address}: the server did not answer in time; check the network, or raise TOMORAY_CONNECT_TIMEOUT_S and TOMORAY_READ_TIMEOUT_S"
        ) from error
    except _library_errors() as error:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError") or getattr(error, "status", 0) in (401, 403):
            raise PermissionError(_refused(address, error, local=local)) from None
        raise _wrong_answer(address, error) from error
    except OSError as error:  # as s3fs words a 503, without saying of what
        if local or address in str(error):
            raise
        raise _wrong_answer(address, error) from error


def _wrong_answer(address: str, error: Exception) -> ConnectionError:
    told = redacted(str(error))
    return ConnectionError(f"{address}: the server did not answer as it must ({told}); check the address, AWS_ENDPOINT_URL and the network")


def _refused(address: str, error: Exception, *, local: bool) -> str:
    if local:
        return f"{address}: access refused ({error}); you need the right to read or write here: ask its owner, or choose another folder"
    return (
        f"{address}: access refused ({redacted(str(error))}); the key must have the right to this object, which must exist: "
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or TOMORAY_S3_ANONYMOUS=1 for a public bucket"
    )


def _library_errors() -> tuple[type[Exception], ...]:
    # Looked up when something has failed, so that local work never imports them.
    from aiohttp import ClientError
    from botocore import exceptions  # type: ignore[import-untyped]

    return ClientError, exceptions.BotoCoreError, exceptions.ClientError
